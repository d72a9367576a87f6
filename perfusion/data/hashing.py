"""A dataset's identity: a hash of what it says, not of the bytes that parquet and PNG writers happen to produce."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd

from perfusion.data.layout import GROUP_COLUMNS, read_dataset
from perfusion.data.pictures import ImageStore, decode_image
from perfusion.errors import DataError

__all__ = ["content_hash"]


def content_hash(root: Path | str) -> str:
    """Canonical hash of a dataset, 32 hexadecimal digits.

    Equal for equal users, groups and decoded pixels, whatever the order of rows and columns, the row groups, the
    compression or the numeric width. A picture that cannot be decoded counts by its bytes.
    """
    dataset = read_dataset(root)
    total = hashlib.blake2b(digest_size=16)
    features = sorted(map(str, dataset.users.columns))
    for rows in (
        _row_digests(dataset.users, features),
        _row_digests(dataset.groups, list(GROUP_COLUMNS)),
        _picture_digests(dataset.images),
    ):
        total.update(len(rows).to_bytes(8, "big"))
        for row in sorted(rows):
            total.update(row)
    return total.hexdigest()


def _row_digests(frame: pd.DataFrame, columns: list[str]) -> list[bytes]:
    rows = zip(*(map(_canonical, frame[name].tolist()) for name in columns), strict=True)
    return [_digest(json.dumps([columns, row]).encode()) for row in rows]


def _canonical(value: object) -> object:
    """A value as JSON text that does not depend on its width: numbers as hexadecimal floats, times in milliseconds."""
    if value is None or value is pd.NaT or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, list | np.ndarray):
        return [_canonical(item) for item in value]
    if isinstance(value, pd.Timestamp):
        return ["ms", round(value.timestamp() * 1000)]
    if isinstance(value, bool | str):
        return value
    if isinstance(value, int | float | np.number):
        return ["number", float(value).hex()]
    raise DataError(f"value {value!r} of type {type(value).__name__} has no place in a dataset")


def _picture_digests(images: ImageStore) -> list[bytes]:
    digests = []
    ids = images.ids()
    for start in range(0, len(ids), 4096):
        chunk = ids[start : start + 4096]
        digests += [
            _picture_digest(image_id, data) for image_id, data in zip(chunk, images.encoded(chunk), strict=True)
        ]
    return digests


def _picture_digest(image_id: str, data: bytes) -> bytes:
    try:
        image = decode_image(data, image_id)
    except DataError:
        return _digest(f"{image_id} undecodable ".encode() + data)
    return _digest(f"{image_id} {image.width}x{image.height} ".encode() + image.tobytes())


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
