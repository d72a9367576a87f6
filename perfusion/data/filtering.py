"""Which group records can be trained on and tested (Sec. 5.1.1: users with at least ten group records)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from perfusion.data.layout import check_groups
from perfusion.data.query import database
from perfusion.errors import DataError

__all__ = ["USABLE", "Filtered", "filter_users"]

USABLE = "list_contains(picked, true) AND list_contains(picked, false)"
_COUNTS = f"""
    SELECT user_id, count(*) AS came,
           count(*) FILTER ({USABLE}) AS usable,
           count(*) FILTER (NOT list_contains(picked, true)) AS nothing,
           count(*) FILTER (list_contains(picked, true) AND NOT list_contains(picked, false)) AS everything
    FROM read_parquet(?) GROUP BY user_id ORDER BY user_id
"""


@dataclass(frozen=True)
class Filtered:
    """What the filter makes of each user's records; kept + few + dropped records are those that came in.

    Attributes:
        records: group records that came in.
        kept: user -> usable records, of users with enough of them.
        few: user -> usable records, of users with too few (at least one): the cold-start slice.
        dropped: reason -> count of records that hold no comparison.
    """

    records: int
    kept: dict[str, int]
    few: dict[str, int]
    dropped: dict[str, int]


def filter_users(groups: Path, min_records: int) -> Filtered:
    """Keep records with a picked and an unpicked candidate, of users with at least `min_records` of those.

    Args:
        groups: groups.parquet as validation leaves it; read by column, pictures are not looked at.
        min_records: usable records a user needs.

    Raises:
        DataError: the file breaks the layout, there are no groups, none holds a comparison, or no user has enough.
    """
    check_groups(groups)
    with database() as query:
        counts = query.sql(_COUNTS, params=[str(groups)]).fetchnumpy()
    came = int(counts["came"].sum())
    if not came:
        raise DataError("groups: no rows to filter; a dataset needs at least one group record")
    dropped = {
        "nothing picked": int(counts["nothing"].sum()),
        "everything picked": int(counts["everything"].sum()),
    }
    usable = {user: n for user, n in zip(counts["user_id"].tolist(), counts["usable"].tolist(), strict=True) if n}
    kept = {user: n for user, n in usable.items() if n >= min_records}
    few = {user: n for user, n in usable.items() if n < min_records}
    lost = came - sum(usable.values()) - sum(dropped.values())
    if lost:
        raise DataError(f"{groups}: {lost} of {came} records have no picks to judge; validate the dataset first")
    if not kept:
        raise DataError(
            f"groups: no user has {min_records} usable records (data.min_records); the most is "
            f"{max(few.values(), default=0)}, of {came} records {dropped}; add data or lower data.min_records"
        )
    return Filtered(came, kept, few, dropped)
