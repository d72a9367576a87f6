"""A dataset's identity: a hash of what it says, not of the bytes that parquet and PNG writers happen to produce."""

from __future__ import annotations

import hashlib
import json
import math
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow as pa

from perfusion.data.layout import GROUP_COLUMNS, read_parquet
from perfusion.data.pictures import ImageStore, decode_image, read_part
from perfusion.errors import DataError

__all__ = ["content_hash"]

_MILLISECONDS = {"s": Fraction(1000), "ms": Fraction(1), "us": Fraction(1, 1000), "ns": Fraction(1, 10**6)}


def content_hash(root: Path | str) -> str:
    """Canonical hash of a dataset, 32 hexadecimal digits.

    Equal for equal users, groups and decoded pixels, whatever the order of rows and columns, the row groups, the
    compression or the numeric width. A picture that cannot be decoded counts by its bytes. Rows and columns that break
    the layout count too: what is wrong with them is for validation to say.
    """
    root = Path(root)
    users, groups = read_parquet(root / "users.parquet"), read_parquet(root / "groups.parquet")
    total = hashlib.blake2b(digest_size=16)
    for rows in (
        _row_digests(users, sorted(users.column_names)),
        _row_digests(groups, sorted(groups.column_names, key=_layout_order)),
        _picture_digests(ImageStore(root / "images").files),
    ):
        total.update(len(rows).to_bytes(8, "big"))
        for row in sorted(rows):
            total.update(row)
    return total.hexdigest()


def _layout_order(name: str) -> tuple[int, str]:
    """The layout's columns in its own order, then the others by name."""
    order = list(GROUP_COLUMNS)
    return (order.index(name), name) if name in order else (len(order), name)


def _row_digests(table: pa.Table, columns: list[str]) -> list[bytes]:
    rows = zip(*(map(_canonical, _values(table, name)) for name in columns), strict=True)
    return [_digest(json.dumps([columns, row]).encode()) for row in rows]


def _values(table: pa.Table, name: str) -> list[Any]:
    """A column's values, whatever they are; times as ("ms", whole number)."""
    column = table.column(table.column_names.index(name))
    if pa.types.is_timestamp(column.type):
        scale = _MILLISECONDS[column.type.unit]
        values = column.cast(pa.int64()).to_pylist()
        return [None if value is None else ("ms", round(value * scale)) for value in values]
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        if not pa.types.is_string(column.type):
            raise DataError(f"column {name} holds text that is not UTF-8; write it as UTF-8") from None
        return column.cast(pa.binary()).to_pylist()


def _canonical(value: object) -> object:
    """A value as JSON text that does not depend on its width: numbers as hexadecimal floats."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    if isinstance(value, bool | str):
        return value
    if isinstance(value, int | float | Decimal):
        return ["number", float(value).hex()]
    return [type(value).__name__, str(value)]


def _picture_digests(files: list[Path]) -> list[bytes]:
    return [_picture_digest(image_id, data or b"") for file in files for image_id, data in read_part(file)]


def _picture_digest(image_id: str | None, data: bytes) -> bytes:
    try:
        image = decode_image(data, str(image_id))
    except DataError:
        return _digest(f"{image_id} undecodable ".encode() + data)
    return _digest(f"{image_id} {image.width}x{image.height} ".encode() + image.tobytes())


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
