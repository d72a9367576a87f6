"""Read a dataset's tables for validation, more leniently than training reads them.

The schema (files, columns, types) must hold before single rows can be judged: what breaks it is collected and raised at
once. Single cells are judged later, see `validation_rules`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from perfusion.data.parquetfiles import check_place, read_bounded
from perfusion.errors import DataError
from tasks.validation_columns import (
    Column,
    Reader,
    TypeMismatch,
    as_text,
    is_feature,
    read_feature,
    read_flag_lists,
    read_id_lists,
    read_ids,
    read_prompts,
    read_times,
)

__all__ = ["Coercion", "Table", "picture_parts", "read_column", "read_groups", "read_users"]

PANDAS_INDEX = re.compile(r"__index_level_\d+__")
LAYOUT = "see docs/operations.md, section 'Your own data', for the layout"


@dataclass(frozen=True)
class Coercion:
    """A column that was not stored in the layout's own type but can be read in one way only."""

    file: str
    column: str
    says: str


@dataclass
class Table:
    """One table with canonical types; the index is the row number in its file.

    Attributes:
        name: "users" or "groups".
        file: the file's name inside the dataset.
        frame: canonical columns; None where a cell is empty or could not be read.
        unreadable: column -> row number -> the cell's text, for cells that could not be read.
        coercions: columns that were converted.
        ignored: columns that are not used, with the reason.
    """

    name: str
    file: str
    frame: pd.DataFrame
    unreadable: dict[str, dict[int, str]] = field(default_factory=dict)
    coercions: list[Coercion] = field(default_factory=list)
    ignored: dict[str, str] = field(default_factory=dict)


def read_users(root: Path) -> Table:
    """users.parquet: user_id as text, and every further column as a feature (text = category, number = number).

    Raises:
        DataError: the file, a column or a type is not what the layout asks for; every fault is named at once.
    """
    arrow = _read_parquet(root / "users.parquet", "users.parquet", ("user_id",))
    table = Table("users", "users.parquet", pd.DataFrame(index=pd.RangeIndex(arrow.num_rows)))
    readers: dict[str, Reader] = {"user_id": read_ids}
    for column in arrow.schema:
        if PANDAS_INDEX.fullmatch(column.name):
            table.ignored[column.name] = "the row index that pandas wrote: not a feature"
        elif not is_feature(column.type):
            table.ignored[column.name] = f"type {column.type} is neither text nor number: not a feature"
        elif column.name != "user_id":
            readers[column.name] = read_feature
    return _fill(table, arrow, readers)


def read_groups(root: Path) -> Table:
    """groups.parquet: its six columns; any other is ignored and named.

    Raises:
        DataError: the file, a column or a type is not what the layout asks for; every fault is named at once.
    """
    readers: dict[str, Reader] = {
        "record_id": read_ids,
        "user_id": read_ids,
        "created_at": read_times,
        "prompt": read_prompts,
        "image_ids": read_id_lists,
        "picked": read_flag_lists,
    }
    arrow = _read_parquet(root / "groups.parquet", "groups.parquet", tuple(readers))
    table = Table("groups", "groups.parquet", pd.DataFrame(index=pd.RangeIndex(arrow.num_rows)))
    table.ignored = {name: "not a column of the layout" for name in arrow.column_names if name not in readers}
    return _fill(table, arrow, readers)


def picture_parts(root: Path) -> list[Path]:
    """The part files of images/, each readable and with its two columns.

    Raises:
        DataError: there is none, or one is unreadable or lacks a column.
    """
    parts = sorted((root / "images").glob("part-*.parquet"))
    if not parts:
        raise DataError(f"{root / 'images'}: no part-*.parquet file; the pictures of the groups belong there; {LAYOUT}")
    problems: list[str] = []
    for part in parts:
        try:
            _check_columns(_schema(part), f"images/{part.name}", ("image_id", "image"))
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))
    return parts


def read_column(column: pa.Array | pa.ChunkedArray, file: str, name: str, read: Reader) -> Column:
    """The column's values.

    Raises:
        DataError: its stored type does not fit; names file, column, both types and the remedy.
    """
    try:
        return read(column)
    except TypeMismatch as needs:
        raise DataError(
            f"{file}: column {name!r}: rule type: it is stored as {column.type} and must be {needs}; "
            f"rewrite the column; {LAYOUT}"
        ) from None


def _fill(table: Table, arrow: pa.Table, readers: Mapping[str, Reader]) -> Table:
    problems = []
    columns: dict[str, Any] = {}
    for name, read in readers.items():
        try:
            column = read_column(arrow.column(name), table.file, name, read)
        except DataError as error:
            problems.append(str(error))
            continue
        is_series = isinstance(column.values, pd.Series)
        columns[name] = column.values if is_series else pd.Series(column.values, index=table.frame.index, dtype=object)
        if column.unreadable:
            table.unreadable[name] = dict(column.unreadable)
        if column.says:
            table.coercions.append(Coercion(table.file, name, column.says))
    if problems:
        raise DataError("\n".join(problems))
    table.frame = pd.DataFrame(columns, index=table.frame.index)
    return table


def _schema(path: Path) -> pa.Schema:
    """The schema of a file in the dataset's folder, or of a part file in its images/."""
    check_place(path, path.parent.parent if path.parent.name == "images" else path.parent)
    try:
        return pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(_not_parquet(path, error)) from None


def _read_parquet(path: Path, file: str, required: Iterable[str]) -> pa.Table:
    if not path.exists():
        raise DataError(f"{path}: no such file; a dataset holds users.parquet, groups.parquet and images/; {LAYOUT}")
    schema = _schema(path)
    _check_columns(schema, file, required)
    try:
        table = read_bounded(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(_not_parquet(path, error)) from None
    if table.num_rows == 0:
        raise DataError(f"{path}: rule not empty: 0 rows, at least 1 needed; write the dataset again")
    for place, column in enumerate(schema):  # read as their values within bounds; what was delivered is to be told
        if pa.types.is_dictionary(column.type):
            table = table.set_column(place, column.name, table.column(place).dictionary_encode())
    return table


def _not_parquet(path: Path, error: Exception) -> str:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"{path}: rule readable: not a whole Parquet file ({as_text(reason)}); copy or write it again"


def _check_columns(schema: pa.Schema, file: str, required: Iterable[str]) -> None:
    problems = []
    for name in required:
        if name not in schema.names:
            near = difflib.get_close_matches(name, schema.names, n=1)
            hint = f"rename {near[0]!r}" if near else f"add it (it holds {', '.join(schema.names) or 'no columns'})"
            problems.append(f"{file}: column {name!r}: rule required: it is missing; {hint}; {LAYOUT}")
    twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
    problems += [f"{file}: column {name!r}: rule once: it is there twice; keep one" for name in twice]
    if problems:
        raise DataError("\n".join(problems))
