"""Check every picture that a group refers to: stored once, whole, decodable, of a bearable size."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from perfusion.data import decode_image
from perfusion.data.parquetfiles import bounded_batches
from perfusion.errors import DataError
from perfusion.progress import Progress
from tasks.validation_columns import as_text, read_bytes, read_image_ids
from tasks.validation_reading import Coercion, picture_parts, read_column

__all__ = ["Pictures", "check_pictures", "picture_fault"]

BATCH = 256
PNG = b"\x89PNG"
# Pillow names the buffer by its address, which differs from run to run.
ADDRESS = re.compile(r"<_io\.BytesIO object at 0x[0-9a-f]+>")


@dataclass
class Pictures:
    """What is known of the stored pictures.

    Attributes:
        frame: one row a stored picture: image_id, file, row (in its file), size (bytes), digest, referenced, fault
            (text; None if whole or not referenced).
        coercions: columns that were converted.
        parts: number of part files.
        unreadable_ids: row of `frame` -> the id's text, where it is not text in UTF-8.
    """

    frame: pd.DataFrame
    coercions: list[Coercion]
    parts: int
    unreadable_ids: dict[int, str]


def check_pictures(root: Path, referenced: set[str], max_pixels: int) -> Pictures:
    """Read every part file once and decode the pictures that are referenced.

    Args:
        root: the dataset's folder.
        referenced: image ids that some group uses; other pictures are indexed and not decoded.
        max_pixels: width x height above which a picture is refused before it is decoded.

    Raises:
        DataError: a part file is not readable or lacks a column.
    """
    parts = picture_parts(root)
    total = sum(pq.read_metadata(part).num_rows for part in parts)
    progress = Progress("validate pictures", max(1, total))
    rows: list[dict[str, object]] = []
    coercions: dict[tuple[str, str], str] = {}
    unreadable: dict[int, str] = {}
    for part in parts:
        file = f"images/{part.name}"
        start = len(rows)
        for batch in _batches(part, file):
            ids = read_column(batch.column("image_id"), file, "image_id", read_image_ids)
            unreadable |= {len(rows) + row: text for row, text in ids.unreadable.items()}
            images = read_column(batch.column("image"), file, "image", read_bytes)
            coercions |= {(file, "image_id"): ids.says, (file, "image"): images.says}
            for image_id, data in zip(ids.values, images.values, strict=True):
                place = {"image_id": image_id, "file": file, "row": len(rows) - start}
                rows.append(place | _examine(data, image_id in referenced, max_pixels))
            progress.show(len(rows), {})
    columns = ["image_id", "file", "row", "size", "digest", "referenced", "fault"]
    frame = pd.DataFrame(rows, columns=columns).astype({"image_id": object, "fault": object})
    stated = [Coercion(file, column, says) for (file, column), says in coercions.items() if says]
    return Pictures(frame, stated, len(parts), unreadable)


def picture_fault(data: bytes, max_pixels: int) -> str | None:
    """Why an encoded picture cannot be used; None if it can.

    Decoding is the very function that training uses. PNG's check sums are verified besides: its decoder alone lets
    damaged pixels through.
    """
    try:
        decode_image(data, "", max_pixels)
        if data.startswith(PNG):
            with Image.open(io.BytesIO(data)) as image:
                image.verify()
    except Exception as error:  # untrusted bytes: a decoder may fail in any way, and each is the picture's fault
        text = str(error).removeprefix("image '': ") if isinstance(error, DataError) else f"check sum: {error}"
        return as_text(ADDRESS.sub("them", text))
    return None


def _batches(part: Path, file: str) -> Iterator[pa.RecordBatch]:
    try:
        yield from bounded_batches(part, ["image_id", "image"], BATCH)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file}: rule readable: {as_text(str(error))}; copy or write the file again") from None


def _examine(data: bytes | None, referenced: bool, max_pixels: int) -> dict[str, object]:
    data = data or b""
    fault = picture_fault(data, max_pixels) if referenced and data else None
    digest = hashlib.blake2b(data, digest_size=8).hexdigest()
    return {"size": len(data), "digest": digest, "referenced": referenced, "fault": fault}
