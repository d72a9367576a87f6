"""Which group records can be trained on and tested (Sec. 5.1.1: users with at least ten group records)."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from perfusion.errors import DataError

__all__ = ["Filtered", "filter_users"]


@dataclass(frozen=True)
class Filtered:
    """Group records sorted by use; len(kept) + len(few) + sum(dropped.values()) is the number that came in.

    Attributes:
        kept: usable records of users with enough of them.
        few: usable records of users with too few: the cold-start slice.
        dropped: reason -> count of records that hold no comparison.
    """

    kept: pd.DataFrame
    few: pd.DataFrame
    dropped: dict[str, int]


def filter_users(groups: pd.DataFrame, min_records: int) -> Filtered:
    """Keep records with a picked and an unpicked candidate, of users with at least `min_records` of those.

    Raises:
        DataError: there are no groups, none holds a comparison, or no user has enough.
    """
    if groups.empty:
        raise DataError("groups: no rows to filter; a dataset needs at least one group record")
    nothing_picked = ~groups["picked"].map(any).astype(bool)
    all_picked = groups["picked"].map(all).astype(bool) & ~nothing_picked
    usable = groups[~nothing_picked & ~all_picked]
    dropped = {"nothing picked": int(nothing_picked.sum()), "everything picked": int(all_picked.sum())}
    records = usable.groupby("user_id")["record_id"].transform("size")
    enough = records >= min_records
    if not enough.any():
        most = int(records.max()) if len(records) else 0
        raise DataError(
            f"groups: no user has {min_records} usable records (data.min_records); the most is {most}, of "
            f"{len(groups)} records {dropped}; add data or lower data.min_records"
        )
    return Filtered(usable[enough].reset_index(drop=True), usable[~enough].reset_index(drop=True), dropped)
