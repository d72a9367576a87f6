"""Read a dataset for validation: leniently where a value can be read in one way only, and always saying so.

The schema (files, columns, types) must hold before single rows can be judged: what breaks it is collected and raised at
once. A cell that its column's type allows but that cannot be read (a date in words, a pick of 2) is kept aside as text.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from perfusion.errors import DataError

__all__ = ["Coercion", "Table", "as_text", "picture_parts", "read_bytes", "read_groups", "read_ids", "read_users"]

VALUE_CHARS = 200
MAX_SECONDS = 2**63 // 1000 - 1
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


@dataclass(frozen=True)
class Column:
    """A column as read: values by row, what was converted, and the text of cells that could not be read."""

    values: list[Any] | pd.Series
    says: str = ""
    unreadable: Mapping[int, str] = field(default_factory=dict)


class TypeMismatch(Exception):
    """The column's stored type does not fit; its text says what is needed instead."""


def as_text(value: Any) -> str:
    """A value as text of bounded length, for quarantine files and messages."""
    text = str(value).encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= VALUE_CHARS else f"{text[:VALUE_CHARS]}... ({len(text)} characters)"


def read_users(root: Path) -> Table:
    """users.parquet: user_id as text, and every further column as a feature (text = category, number = number).

    Raises:
        DataError: the file, a column or a type is not what the layout asks for; every fault is named at once.
    """
    arrow = _read_parquet(root / "users.parquet", "users.parquet", ("user_id",))
    table = Table("users", "users.parquet", pd.DataFrame(index=pd.RangeIndex(arrow.num_rows)))
    readers: dict[str, Reader] = {"user_id": read_ids}
    for name in arrow.column_names:
        if name != "user_id":
            readers[name] = _read_feature
            if not _is_feature(arrow.schema.field(name).type):
                table.ignored[name] = f"type {arrow.schema.field(name).type} is neither text nor number: not a feature"
                del readers[name]
    return _fill(table, arrow, readers)


def read_groups(root: Path) -> Table:
    """groups.parquet: its six columns; any other is ignored and named.

    Raises:
        DataError: the file, a column or a type is not what the layout asks for; every fault is named at once.
    """
    readers: dict[str, Reader] = {
        "record_id": read_ids,
        "user_id": read_ids,
        "created_at": _read_times,
        "prompt": _read_prompts,
        "image_ids": _read_id_lists,
        "picked": _read_flag_lists,
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


def read_bytes(column: pa.Array, file: str) -> tuple[list[bytes | None], str]:
    """Encoded pictures from a binary column or a struct with a field `bytes`, and what was converted.

    Raises:
        DataError: the column is neither.
    """
    says = ""
    if pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
        says = "struct with a field 'bytes', read as its bytes"
        column = pc.struct_field(column, "bytes")
    kinds = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_null)
    if not any(kind(column.type) for kind in kinds):
        raise DataError(
            f"{file}: column 'image' has type {column.type}; needs encoded bytes (binary); "
            "write the content of the PNG, JPEG or WebP file itself"
        )
    return column.to_pylist(), says


def read_ids(column: pa.Array | pa.ChunkedArray) -> Column:
    """Identifiers as text: text as it is (blank = empty), whole numbers in decimal."""
    kind = column.type
    if pa.types.is_integer(kind):
        return Column([None if v is None else str(v) for v in column.to_pylist()], f"{kind} read as text")
    if pa.types.is_floating(kind):
        values = column.to_pylist()
        if any(v is not None and not (v != v) and not float(v).is_integer() for v in values):
            raise TypeMismatch("text; the numbers in it have fractions, which cannot be identifiers")
        return Column([None if v is None or v != v else str(int(v)) for v in values], f"{kind} read as text")
    texts, unreadable = _texts(column, "text")
    return Column([_blank_to_none(text) for text in texts], _encoding(kind), unreadable)


Reader = Callable[[pa.ChunkedArray], Column]


def _fill(table: Table, arrow: pa.Table, readers: Mapping[str, Reader]) -> Table:
    problems = []
    columns: dict[str, Any] = {}
    for name, read in readers.items():
        try:
            column = read(arrow.column(name))
        except TypeMismatch as needs:
            kind = arrow.schema.field(name).type
            problems.append(
                f"{table.file}: column {name!r}: rule type: it is stored as {kind} and must be {needs}; "
                f"rewrite the column; {LAYOUT}"
            )
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
    try:
        return pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(_not_parquet(path, error)) from None


def _read_parquet(path: Path, file: str, required: Iterable[str]) -> pa.Table:
    if not path.exists():
        raise DataError(f"{path}: no such file; a dataset holds users.parquet, groups.parquet and images/; {LAYOUT}")
    _check_columns(_schema(path), file, required)
    try:
        table = pq.ParquetFile(path).read()
    except (pa.ArrowException, OSError) as error:
        raise DataError(_not_parquet(path, error)) from None
    if table.num_rows == 0:
        raise DataError(f"{path}: rule not empty: 0 rows, at least 1 needed; write the dataset again")
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


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _is_feature(kind: pa.DataType) -> bool:
    numbers = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_boolean, pa.types.is_null)
    return _is_text(kind) or any(number(kind) for number in numbers)


def _encoding(kind: pa.DataType) -> str:
    return "dictionary read as text" if pa.types.is_dictionary(kind) else ""


def _blank_to_none(text: str | None) -> str | None:
    return None if text is None or not text.strip() else text


def _texts(column: pa.ChunkedArray, needs: str) -> tuple[list[str | None], dict[int, str]]:
    """Texts, and the rows whose bytes are not UTF-8 (these read as None)."""
    if pa.types.is_null(column.type):
        return [None] * len(column), {}
    if not _is_text(column.type):
        raise TypeMismatch(needs)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    try:
        return column.to_pylist(), {}
    except UnicodeDecodeError:
        unreadable = {}
        texts: list[str | None] = []
        for row, raw in enumerate(column.cast(pa.large_string()).cast(pa.large_binary()).to_pylist()):
            try:
                texts.append(None if raw is None else raw.decode())
            except UnicodeDecodeError:
                texts.append(None)
                unreadable[row] = as_text(raw)
        return texts, unreadable


def _read_prompts(column: pa.ChunkedArray) -> Column:
    texts, unreadable = _texts(column, "text")
    return Column(texts, _encoding(column.type), unreadable)


def _read_feature(column: pa.ChunkedArray) -> Column:
    """A feature: numbers as float64 (NaN = empty), everything else as text with blanks empty."""
    kind = column.type
    if pa.types.is_boolean(kind):
        return Column([None if v is None else str(v).lower() for v in column.to_pylist()], "bool read as text")
    if pa.types.is_decimal(kind):
        return Column(column.cast(pa.float64()).to_pandas(), f"{kind} read as double")
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return Column(column.cast(pa.float64(), safe=False).to_pandas())
    texts, unreadable = _texts(column, "text or numbers")
    values = [_blank_to_none(text) for text in texts]
    blanks = sum(new is None and old is not None for new, old in zip(values, texts, strict=True))
    says = f"{blanks} blank texts read as empty" if blanks else _encoding(kind)
    return Column(values, says, unreadable)


def _read_times(column: pa.ChunkedArray) -> Column:
    """Dates and times in UTC without a zone, in milliseconds."""
    kind = column.type
    if pa.types.is_date(kind):
        return Column(_milliseconds(column), f"{kind} read as a time in UTC")
    if pa.types.is_timestamp(kind):
        return _stored_times(column, f"{kind} read as a time in UTC" if kind.tz is not None else "")
    if pa.types.is_null(kind):
        return Column(pd.Series([pd.NaT] * len(column), dtype="datetime64[ms]"))
    raw, undecodable = _texts(column, "a timestamp or ISO 8601 text (a bare number has no known unit)")
    parsed = pd.to_datetime(pd.Series(raw, dtype=object), errors="coerce", utc=True, format="ISO8601")
    times = parsed.dt.tz_localize(None).dt.floor("ms").astype("datetime64[ms]")
    lost = {row: as_text(raw[row]) for row in times.index[times.isna()] if raw[row] is not None}
    return Column(times, "ISO 8601 text read as a time in UTC", undecodable | lost)


def _stored_times(column: pa.ChunkedArray, says: str) -> Column:
    """Seconds beyond what milliseconds can count are unreadable; finer units lose their digits below a millisecond."""
    unreadable = {}
    if column.type.unit == "s":
        seconds = column.cast(pa.int64()).to_pylist()
        unreadable = {r: f"{v} seconds" for r, v in enumerate(seconds) if v is not None and abs(v) > MAX_SECONDS}
        kept = [None if row in unreadable else value for row, value in enumerate(seconds)]
        column = pa.chunked_array([pa.array(kept, pa.int64())]).cast(pa.timestamp("s"))
    return Column(_milliseconds(column), says, unreadable)


def _milliseconds(column: pa.ChunkedArray) -> pd.Series:
    return column.cast(pa.timestamp("ms"), safe=False).to_pandas()


def _read_id_lists(column: pa.ChunkedArray) -> Column:
    """Lists of identifiers as text."""
    needs = "a list of texts"
    lists, says, unreadable = _lists(column, needs)
    kind = column.type.value_type if _is_list(column.type) else None
    if kind is not None and not (_is_text(kind) or pa.types.is_null(kind)):
        if not pa.types.is_integer(kind):
            raise TypeMismatch(needs)
        says = f"list of {kind} read as texts"
    values: list[list[str | None] | None] = []
    for row, items in enumerate(lists):
        if items is not None and any(isinstance(item, (dict, list, bool, float)) for item in items):
            unreadable[row] = as_text(items)
            items = None
        values.append(None if items is None else [None if item is None else _blank_to_none(str(item)) for item in items])
    return Column(values, says, unreadable)


def _read_flag_lists(column: pa.ChunkedArray) -> Column:
    """Lists of truth values; 0 and 1 are read as such, any other number makes its row unreadable."""
    needs = "a list of booleans"
    lists, says, unreadable = _lists(column, needs)
    if _is_list(column.type) and not pa.types.is_boolean(column.type.value_type):
        kind = column.type.value_type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind)):
            raise TypeMismatch(needs)
        says = f"list of {kind}: 0 and 1 read as false and true"
    values: list[list[bool | None] | None] = []
    for row, items in enumerate(lists):
        if items is not None and not all(item is None or _is_flag(item) for item in items):
            unreadable[row] = as_text(items)
            items = None
        values.append(None if items is None else [None if item is None else bool(item) for item in items])
    return Column(values, says, unreadable)


def _is_flag(item: Any) -> bool:
    return isinstance(item, (bool, int, float)) and item in (0, 1)


def _lists(column: pa.ChunkedArray, needs: str) -> tuple[list[list[Any] | None], str, dict[int, str]]:
    """Lists of whatever is in them; text columns are read as JSON."""
    if pa.types.is_null(column.type):
        return [None] * len(column), "", {}
    if _is_list(column.type):
        try:
            return column.to_pylist(), "", {}
        except UnicodeDecodeError:
            raise TypeMismatch(f"{needs} in UTF-8") from None
    texts, unreadable = _texts(column, needs)
    if not any(text is not None and text.lstrip().startswith("[") for text in texts):
        raise TypeMismatch(f"{needs} (JSON text like '[...]' is read too)")
    lists: list[list[Any] | None] = []
    for row, text in enumerate(texts):
        items = _json_list(text)
        if text is not None and items is None:
            unreadable[row] = as_text(text)
        lists.append(items)
    return lists, "JSON text read as lists", unreadable


def _json_list(text: str | None) -> list[Any] | None:
    if text is None:
        return None
    try:
        items = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return items if isinstance(items, list) else None
