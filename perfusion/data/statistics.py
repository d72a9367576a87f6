"""The statistics of a dataset as the paper reports them (Table 1), and a little more."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from perfusion.data.hashing import content_hash
from perfusion.data.layout import check_groups, read_users
from perfusion.data.query import database
from perfusion.errors import DataError

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["describe_dataset", "images_seen", "table_one", "whole_records"]

_COMPLETE = """
    user_id IS NOT NULL AND prompt IS NOT NULL
    AND list_count(image_ids) = len(image_ids) AND list_count(picked) = len(picked)
"""


def table_one(groups: Path, among: str = "true") -> dict[str, Any]:
    """#Users, #Prompts, #Samples and group size (Table 1), of group records that lack nothing.

    A sample is a group record: Table 1's Industrial row has 11.04 of them per user. Pictures are told apart by a hash
    of 64 bits of their ids: among 5 x 10^7 of them the chance that any two share one is 7 x 10^-5.

    Args:
        groups: groups.parquet; read by column.
        among: condition in SQL on its columns; only such records are counted.

    Returns:
        {"users", "prompts", "samples", "group_size": {size: records}, "group_size_mean", "picked": {count: records},
        "records_per_user", "images"}.

    Raises:
        DataError: the file cannot be read.
    """
    with database() as query:
        whole_records(query, groups, among)
        rows = query.sql("SELECT len(image_ids), list_sum(picked::UTINYINT[]), count(*) FROM whole GROUP BY ALL")
        sizes: Counter[int] = Counter()
        picked: Counter[int] = Counter()
        for size, picks, records in rows.fetchall():
            sizes[size] += records
            picked[int(picks or 0)] += records
        users, prompts = (_distinct(query, column) for column in ("user_id", "prompt"))
        images = query.sql("SELECT hash(unnest(image_ids)) AS image FROM whole").fetchnumpy()["image"]
    samples = sizes.total()
    return {
        "users": users,
        "prompts": prompts,
        "samples": samples,
        "group_size": {str(size): sizes[size] for size in sorted(sizes)},
        "group_size_mean": sum(n * size for size, n in sizes.items()) / max(1, samples),
        "picked": {str(count): picked[count] for count in sorted(picked)},
        "records_per_user": samples / max(1, users),
        "images": int(np.count_nonzero(_first_of_its_kind(images))),
    }


def describe_dataset(root: Path, hashed: bool = True) -> tuple[dict[str, object], dict[str, dict[str, object]]]:
    """What a dataset holds, by its tables; with `hashed`, its content hash too, for which pictures are decoded.

    Returns:
        (see `table_one`, with "incomplete": records that lack a user, a prompt, pictures or picks;
        feature of users -> {"kind", "values", "missing"}).

    Raises:
        DataError: a file breaks the layout, or there are no users or groups at all.
    """
    users, groups = read_users(root / "users.parquet"), root / "groups.parquet"
    check_groups(groups)
    records = pq.read_metadata(groups).num_rows
    for name, rows in (("users", len(users)), ("groups", records)):
        if not rows:
            raise DataError(f"{root / name}.parquet: no rows; a dataset needs at least one user with one group")
    counts = table_one(groups)
    features: dict[str, dict[str, object]] = {
        str(name): {"kind": str(column.dtype), "values": int(column.nunique()), "missing": int(column.isna().sum())}
        for name, column in users.items()
        if name != "user_id"
    }
    identity = {"content_hash": content_hash(root)} if hashed else {}
    return {**identity, **counts, "incomplete": records - counts["samples"]}, features


def images_seen(groups: Path) -> float:
    """Share of the candidates of split `test` whose picture also stands in a group of split `train`."""
    with database() as query:
        whole_records(query, groups, "true")
        trained, tested = (
            query.sql(
                "SELECT hash(unnest(image_ids)) AS image FROM whole WHERE split = ?", params=[split]
            ).fetchnumpy()["image"]
            for split in ("train", "test")
        )
    if not len(trained) or not len(tested):
        return 0.0
    known, asked = trained[_first_of_its_kind(trained)], np.sort(tested)
    place = np.searchsorted(known, asked)
    return int((known[np.minimum(place, len(known) - 1)] == asked).sum()) / len(asked)


def whole_records(query: DuckDBPyConnection, groups: Path, among: str) -> None:
    """Make the view `whole`: the records among `groups` that lack nothing."""
    path = str(groups).replace("'", "''")
    query.execute(f"CREATE VIEW whole AS SELECT * FROM read_parquet('{path}') WHERE {_COMPLETE} AND ({among})")


def _distinct(query: DuckDBPyConnection, column: str) -> int:
    """Counted by grouping, which spills to disk; COUNT(DISTINCT) does not."""
    [(count,)] = query.sql(f"SELECT count(*) FROM (SELECT DISTINCT {column} FROM whole)").fetchall()
    return count


def _first_of_its_kind(hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Sorts `hashes` in place, for memory's sake; (n,) True where a value differs from the one before."""
    hashes.sort()
    first = np.ones(len(hashes), bool)
    np.not_equal(hashes[1:], hashes[:-1], out=first[1:])
    return first
