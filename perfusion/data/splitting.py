"""The split: a function of each record's own name, so that appending data never moves an old record."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from perfusion.config import DataConfig
from perfusion.data.filtering import USABLE, Filtered, filter_users
from perfusion.data.layout import GROUP_SCHEMA, read_users, write_rows, write_table
from perfusion.data.query import database
from perfusion.data.statistics import images_seen, table_one

__all__ = ["SPLITS", "SPLIT_BY", "SplitBy", "cold_users", "split_dataset", "split_keys", "split_records"]

SPLITS = ("train", "valid", "test", "cold", "few")
_COLD, _FEW = SPLITS.index("cold"), SPLITS.index("few")
_BY_RECORD = -1  # a user whose records are dealt to train, valid and test
_ROWS = 1 << 17  # records in memory at a time; a row group of the file

Names: TypeAlias = "Sequence[str] | pa.Array"
SplitBy = Literal["record", "prompt", "user"]
SPLIT_BY: tuple[SplitBy, ...] = get_args(SplitBy)


def split_records(
    names: Names, ratios: tuple[int, int, int] = (8, 1, 1), salt: str = "perfusion", scope: SplitBy = "record"
) -> NDArray[np.int8]:
    """Which of train, valid and test (0, 1, 2) each record belongs to (Sec. 5.1.1, 8:1:1), (n,).

    The draw is a hash of the record's name: uniform in [0, 1), the same on every machine, for ever.

    Args:
        names: what the draw depends on: the record's own name, or its prompt or user (see `split_keys`).
        ratios: train : valid : test.
        salt: another salt is another split.
        scope: what the names are names of; a user and a record of the same name are drawn apart.
    """
    total = sum(ratios)
    edges = [ratios[0] / total, (ratios[0] + ratios[1]) / total]
    return np.searchsorted(
        edges, _uniform(names, salt, scope if scope != "user" else "split user"), side="right"
    ).astype(np.int8)


def split_keys(records: pa.Table | pa.RecordBatch, by: SplitBy) -> Names:
    """What decides a record's split: its name, its prompt but for case and spaces, or its user."""
    if by == "prompt":
        return [" ".join(prompt.casefold().split()) for prompt in records.column("prompt").to_pylist()]
    column = records.column({"record": "record_id", "user": "user_id"}[by])
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def cold_users(users: Sequence[str], share: float = 0.08, salt: str = "perfusion") -> set[str]:
    """Users held out entirely: a `share` of all, drawn by a hash of the user's name."""
    draws = _uniform(users, salt, "user")
    return {user for user, cold in zip(users, (draws < share).tolist(), strict=True) if cold}


def split_dataset(valid_dir: Path, config: DataConfig, out_dir: Path, seed: int = 0) -> dict[str, object]:
    """Filter and split the clean tables of `valid_dir` into `out_dir`; the counts add up to what came in.

    Records keep their order. They are read by column and some at a time, whatever their number; pictures are not read.

    Returns:
        {"in", "used", "filtered", "dropped": {reason: n}, "splits": {name: n}, "users": {...}, "images_seen": share of
        test candidates whose picture also stands in a training group, "table_one": see `table_one`}.

    Raises:
        DataError: see `filter_users`.
    """
    groups, written = valid_dir / "groups.parquet", out_dir / "groups.parquet"
    filtered = filter_users(groups, config.min_records)
    salt = f"perfusion/{seed}"
    cold = cold_users(list(filtered.kept), config.cold_users, salt)
    _write_users(valid_dir, filtered, out_dir)
    counts = np.zeros(len(SPLITS), np.int64)
    rows = _split_rows(groups, _fates(filtered, cold), config, salt)
    write_rows(written, _SCHEMA, _count(rows, counts))
    used = int(counts[:_FEW].sum())
    if (used, counts[_FEW]) != (sum(filtered.kept.values()), sum(filtered.few.values())):
        raise RuntimeError(f"{groups}: {counts} records written, {sum(filtered.kept.values())} expected")
    return {
        "in": filtered.records,
        "used": used,
        "filtered": int(counts[_FEW]),
        "dropped": filtered.dropped,
        "splits": dict(zip(SPLITS, counts.tolist(), strict=True)),
        "users": {"known": len(filtered.kept) - len(cold), "cold": len(cold), "few": len(filtered.few)},
        "images_seen": images_seen(written),
        "table_one": table_one(written, "split <> 'few'"),
    }


_SCHEMA = GROUP_SCHEMA.append(pa.field("split", pa.string()))


def _fates(filtered: Filtered, cold: set[str]) -> dict[str, int]:
    """User -> index of the split that all of the user's records share, or `_BY_RECORD`."""
    fates = dict.fromkeys(filtered.few, _FEW)
    return fates | {user: _COLD if user in cold else _BY_RECORD for user in filtered.kept}


def _split_rows(groups: Path, fates: Mapping[str, int], config: DataConfig, salt: str) -> Iterator[pa.RecordBatch]:
    """Usable records in their order, with a column `split`."""
    columns = ", ".join(name if name != "created_at" else "created_at::TIMESTAMP_MS" for name in GROUP_SCHEMA.names)
    with database() as query:
        rows = query.sql(f"SELECT {columns} FROM read_parquet(?) WHERE {USABLE}", params=[str(groups)])
        for batch in rows.to_arrow_reader(_ROWS):
            fate = np.fromiter(map(fates.__getitem__, batch.column(1).to_pylist()), np.int8, batch.num_rows)
            drawn = split_records(split_keys(batch, config.split_by), config.ratios, salt, config.split_by)
            codes = np.where(fate == _BY_RECORD, drawn, fate)
            split = pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(SPLITS)).cast(pa.string())
            yield pa.record_batch([*batch.columns, split], schema=_SCHEMA)


def _count(batches: Iterable[pa.RecordBatch], counts: NDArray[np.int64]) -> Iterator[pa.RecordBatch]:
    """Pass the batches on, adding their records to `counts` by split."""
    for batch in batches:
        for found in batch.column("split").value_counts().to_pylist():
            counts[SPLITS.index(found["values"])] += found["counts"]
        yield batch


def _write_users(valid_dir: Path, filtered: Filtered, out_dir: Path) -> None:
    users = read_users(valid_dir / "users.parquet")
    used = users["user_id"].map(lambda user: user in filtered.kept or user in filtered.few).astype(bool)
    write_table(out_dir / "users.parquet", users[used])


def _uniform(names: Names, *scope: str) -> NDArray[np.float64]:
    """Numbers in [0, 1) that depend on nothing but the scope and each name, (n,).

    Each is the first 64 bits of BLAKE2b over scope and name, joined by a unit separator; the scope is hashed once.
    """
    start = hashlib.blake2b("".join(f"{part}\x1f" for part in scope).encode(), digest_size=8)

    def digest(name: bytes) -> bytes:
        own = start.copy()
        own.update(name)
        return own.digest()

    encoded = pa.array(names, pa.string()) if not isinstance(names, pa.Array) else names
    digests = b"".join(map(digest, encoded.cast(pa.binary()).to_pylist()))
    return np.frombuffer(digests, ">u8").astype(np.float64) / 2.0**64
