"""Columns as stored -> canonical values, leniently where a value can be read in one way only, and always saying so.

A cell that its column's type allows but that cannot be read (a date in words, a pick of 2) is kept aside as text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

__all__ = [
    "Column",
    "Reader",
    "TypeMismatch",
    "as_text",
    "is_feature",
    "read_bytes",
    "read_feature",
    "read_flag_lists",
    "read_id_lists",
    "read_ids",
    "read_image_ids",
    "read_prompts",
    "read_times",
]

VALUE_CHARS = 200
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e]")
UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
FIRST_SECOND, LAST_SECOND = -62_135_596_800, 253_402_300_799


@dataclass(frozen=True)
class Column:
    """A column as read: values by row, what was converted, and the text of cells that could not be read."""

    values: list[Any] | pd.Series
    says: str = ""
    unreadable: Mapping[int, str] = field(default_factory=dict)


class TypeMismatch(Exception):
    """The column's stored type does not fit; its text says what is needed instead."""


Reader = Callable[[pa.Array | pa.ChunkedArray], Column]


def as_text(value: Any) -> str:
    """A value as text of bounded length without control characters, for quarantine files and messages."""
    text = str(value)
    more = f"... ({len(text)} characters)" if len(text) > VALUE_CHARS else ""
    shown = text[:VALUE_CHARS].encode("utf-8", "backslashreplace").decode()
    return CONTROL.sub(lambda found: repr(found[0])[1:-1], shown) + more


def read_image_ids(column: pa.Array | pa.ChunkedArray) -> Column:
    """Ids of stored pictures: like `read_ids`, without what `perfusion.data.ImageStore` does not read."""
    if pa.types.is_floating(column.type) or pa.types.is_null(column.type):
        raise TypeMismatch("text")
    return read_ids(column)


def read_bytes(column: pa.Array | pa.ChunkedArray) -> Column:
    """Encoded pictures from a binary column, or from a struct with a field `bytes`."""
    says = ""
    if pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
        says = "struct with a field 'bytes', read as its bytes"
        column = pc.struct_field(column, "bytes")
    if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        raise TypeMismatch("binary, the encoded bytes of a PNG, JPEG or WebP file")
    return Column(column.to_pylist(), says)


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


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def is_feature(kind: pa.DataType) -> bool:
    numbers = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_boolean, pa.types.is_null)
    return _is_text(kind) or any(number(kind) for number in numbers)


def _encoding(kind: pa.DataType) -> str:
    return "dictionary read as text" if pa.types.is_dictionary(kind) else ""


def _blank_to_none(text: str | None) -> str | None:
    return None if text is None or not text.strip() else text


def _texts(column: pa.Array | pa.ChunkedArray, needs: str) -> tuple[list[str | None], dict[int, str]]:
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


def read_prompts(column: pa.Array | pa.ChunkedArray) -> Column:
    texts, unreadable = _texts(column, "text")
    return Column(texts, _encoding(column.type), unreadable)


def read_feature(column: pa.Array | pa.ChunkedArray) -> Column:
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


def read_times(column: pa.Array | pa.ChunkedArray) -> Column:
    """Dates and times in UTC without a zone, in milliseconds."""
    kind = column.type
    if pa.types.is_date(kind):
        times = column.cast(pa.timestamp("s"), safe=False)
        return _stored_times(times, f"{kind} read as a time in UTC")
    if pa.types.is_timestamp(kind):
        return _stored_times(column, f"{kind} read as a time in UTC" if kind.tz is not None else "")
    if pa.types.is_null(kind):
        return Column(pd.Series([pd.NaT] * len(column), dtype="datetime64[ms]"))
    raw, undecodable = _texts(column, "a timestamp or ISO 8601 text (a bare number has no known unit)")
    parsed = pd.to_datetime(pd.Series(raw, dtype=object), errors="coerce", utc=True, format="ISO8601")
    times = parsed.dt.tz_localize(None).dt.floor("ms").astype("datetime64[ms]")
    lost = {row: as_text(raw[row]) for row in times.index[times.isna()] if raw[row] is not None}
    return Column(times, "ISO 8601 text read as a time in UTC", undecodable | lost)


def _stored_times(column: pa.Array | pa.ChunkedArray, says: str) -> Column:
    """Times after the year 9999 or before the year 1 are unreadable; digits below a millisecond are cut."""
    a_second = UNITS[column.type.unit]
    counts = column.cast(pa.int64()).to_pylist()
    far = {r: f"{n} x 1/{a_second} s" for r, n in enumerate(counts) if n is not None and not _near(n // a_second)}
    kept = [None if n is None or row in far else n * 1000 // a_second for row, n in enumerate(counts)]
    return Column(pd.Series(pa.array(kept, pa.timestamp("ms")).to_pandas()), says, far)


def _near(seconds: int) -> bool:
    """Whether a count of seconds since 1970 falls into the years that calendars here know."""
    return FIRST_SECOND <= seconds <= LAST_SECOND


def read_id_lists(column: pa.Array | pa.ChunkedArray) -> Column:
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
        ids = None if items is None else [None if item is None else _blank_to_none(str(item)) for item in items]
        values.append(ids)
    return Column(values, says, unreadable)


def read_flag_lists(column: pa.Array | pa.ChunkedArray) -> Column:
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


def _lists(column: pa.Array | pa.ChunkedArray, needs: str) -> tuple[list[list[Any] | None], str, dict[int, str]]:
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
