"""Parquet files that somebody else wrote: opened only where they belong, read only as far as memory bears it.

A parquet file can expand a million times: pages are compressed, and a dictionary stores a value once however often it
occurs. So the footer is asked first for the sizes it states, columns with a dictionary are read as such, and what they
would expand to is counted before they are expanded. What is not bounded: a forged footer, whose pages are larger than
it says, costs up to 2 GiB a page and column, which is what the format allows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from perfusion.data.query import database
from perfusion.errors import DataError
from perfusion.paths import stays_inside

__all__ = ["MAX_BATCH_BYTES", "MAX_PART_BYTES", "MAX_TABLE_BYTES", "bounded_batches", "check_place", "read_bounded"]

MAX_TABLE_BYTES = 16 << 30  # users.parquet or groups.parquet in memory
MAX_PART_BYTES = 4 << 30  # the pictures of one part file; four parts are open at most
MAX_BATCH_BYTES = 2 << 30  # rows read at a time
_ROWS = 1 << 16


def check_place(file: Path, root: Path) -> None:
    """Refuse a file that is a link out of the dataset's folder.

    Raises:
        DataError: names the link and where it leads.
    """
    if not stays_inside(file, root):
        raise DataError(
            f"{file}: a link to {file.resolve()}, outside the dataset's folder; put the file itself there if it "
            "belongs to the dataset"
        )


def read_bounded(file: Path, columns: Sequence[str] | None = None, limit: int = MAX_TABLE_BYTES) -> pa.Table:
    """A whole table, or some of its columns; categories come back as their values.

    Raises:
        DataError: its rows would take more than `limit` bytes; nothing larger is made on the way.
        OSError, pyarrow.ArrowException: not readable as parquet.
    """
    schema = pq.read_schema(file)
    if columns is not None:
        schema = pa.schema([schema.field(name) for name in columns])
    schema = pa.schema([_without_dictionary(field) for field in schema], schema.metadata)
    parts, total = [], 0
    for batch in bounded_batches(file, columns, _ROWS, limit, whole=True):
        total += batch.nbytes
        if total > limit:
            raise _too_large(file, total, limit)
        part = pa.Table.from_batches([batch])
        part = part if columns is None else part.select(list(columns))
        parts.append(part if part.schema.equals(schema, check_metadata=True) else part.cast(schema))
    return pa.concat_tables(parts) if parts else schema.empty_table()


def bounded_batches(
    file: Path, columns: Sequence[str] | None, rows: int, limit: int = MAX_BATCH_BYTES, *, whole: bool = False,
    groups: Sequence[int] | None = None, buffer: int = 0,
) -> Iterator[pa.RecordBatch]:  # fmt: skip
    """A few rows at a time, dictionaries expanded.

    Args:
        file: to read.
        columns: of it; None: all.
        rows: in a batch, at most.
        limit: bytes of a batch, expanded.
        whole: the limit is for the whole file, so that its footer can be held against it.
        groups: row groups to read; None: all.
        buffer: bytes of a column read ahead; 0 reads a column chunk at once.

    Raises:
        DataError: a batch (or the file) would take more than `limit` bytes.
        OSError, pyarrow.ArrowException: not readable as parquet.
    """
    metadata = pq.read_metadata(file)
    if whole and (stated := _stated_bytes(file, metadata, columns, limit)) > limit:
        raise _too_large(file, stated, limit)
    flat, nested = _dictionaries(metadata, columns)
    for chunk in nested:  # read expanded: no value is longer than its chunk
        rows = min(rows, max(1, limit // max(1, chunk.total_uncompressed_size)))
    with pq.ParquetFile(file, metadata=metadata, read_dictionary=flat, buffer_size=buffer) as opened:
        for batch in opened.iter_batches(rows, row_groups=groups, columns=columns):
            size = sum(_expanded_bytes(column) for column in batch.columns)
            if size > limit:
                raise _too_large(file, size, limit, f" in {batch.num_rows} rows")
            plain = [one.dictionary_decode() if pa.types.is_dictionary(one.type) else one for one in batch.columns]
            yield pa.record_batch(plain, names=batch.schema.names)


def _chunks(metadata: pq.FileMetaData, columns: Sequence[str] | None) -> Iterator[Any]:
    """The column chunks of the wanted columns, nested ones included."""
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for index in range(row_group.num_columns):
            chunk = row_group.column(index)
            if columns is None or chunk.path_in_schema.split(".")[0] in columns:
                yield chunk


def _stated_bytes(file: Path, metadata: pq.FileMetaData, columns: Sequence[str] | None, limit: int) -> int:
    """What the footer says of the columns' size, four bytes of offset for each value, and what lists expand to.

    A list with a dictionary is measured by a query, which expands nothing, where it might be too large.
    """
    size = 0
    lists: dict[str, int] = {}
    for chunk in _chunks(metadata, columns):
        size += chunk.total_uncompressed_size + 4 * chunk.num_values
        if _has_dictionary(chunk) and ".list." in chunk.path_in_schema:
            name = chunk.path_in_schema.split(".list.")[0]
            lists[name] = lists.get(name, 0) + chunk.total_uncompressed_size * chunk.num_values
    for name, worst in lists.items():
        if worst > limit >= size:
            size += _text_in_lists(file, name)
    return size


def _text_in_lists(file: Path, column: str) -> int:
    place, name = str(file).replace("'", "''"), column.replace('"', '""')
    with database() as query:
        found = query.sql(
            f"SELECT coalesce(sum(octet_length(encode(entry))), 0) "
            f"FROM (SELECT unnest(\"{name}\") AS entry FROM read_parquet('{place}'))"
        ).fetchall()
    return int(found[0][0])


def _has_dictionary(chunk: Any) -> bool:
    return chunk.physical_type == "BYTE_ARRAY" and any("DICTIONARY" in encoding for encoding in chunk.encodings)


def _dictionaries(metadata: pq.FileMetaData, columns: Sequence[str] | None) -> tuple[list[str], list[Any]]:
    """Columns of text and bytes of which a chunk has a dictionary; chunks of fields of structs that have one.

    Arrow reads dictionaries of plain columns as such, and not reliably those inside of structs and lists.
    """
    flat, nested = set(), []
    for chunk in _chunks(metadata, columns):
        if _has_dictionary(chunk):
            if "." not in chunk.path_in_schema:
                flat.add(chunk.path_in_schema)
            elif ".list." not in chunk.path_in_schema:
                nested.append(chunk)
    return sorted(flat), nested


def _expanded_bytes(array: pa.Array) -> int:
    """Bytes that a column takes once its dictionary is expanded."""
    kind = array.type
    if not pa.types.is_dictionary(kind):
        return int(array.nbytes)
    if not _is_text(kind.value_type):
        return len(array) * 8
    lengths = pc.binary_length(array.dictionary).fill_null(0).to_numpy(zero_copy_only=False)
    used = np.bincount(array.indices.drop_null().to_numpy(), minlength=len(lengths))
    return int(lengths.astype(np.int64) @ used) + 4 * len(array)


def _without_dictionary(field: pa.Field) -> pa.Field:
    return field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field


def _is_text(kind: pa.DataType) -> bool:
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(test(kind) for test in tests)


def _too_large(file: Path, size: int, limit: int, more: str = "") -> DataError:
    return DataError(
        f"{file}: {file.stat().st_size:,} bytes that expand to {size:,}{more}, the limit is {limit:,}: either it was "
        "made to fill the memory, or it has to be delivered in smaller files"
    )
