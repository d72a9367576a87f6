"""Pictures: decoding what merchants upload, whatever its mode, and refusing what could do harm."""

from __future__ import annotations

import io
import re
import struct
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image, ImageOps, UnidentifiedImageError

from perfusion.data.parquetfiles import MAX_PART_BYTES, bounded_batches, check_place, read_bounded
from perfusion.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "ImageStore",
    "decode_image",
    "decode_pixels",
    "encode_png",
    "is_safe_id",
    "read_part",
    "stored_fault",
]

MAX_PIXELS = 50_000_000
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
_SAFE_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,199}")
_OPEN_PARTS = 4
_ADDRESS = re.compile(r"<(_io\.BytesIO|pyarrow\.lib\.BufferReader)[^>]*>")  # Pillow names what it reads by its address


def is_safe_id(image_id: str) -> bool:
    """Whether an image id may become a file name: letters, digits, `_`, `-`, `.`; no `..`, no leading dot, <= 200."""
    return _SAFE_ID.fullmatch(image_id) is not None and ".." not in image_id


def decode_image(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode one picture to RGB: turned as its EXIF tag says, transparency over white, 16-bit greys scaled to 8.

    Args:
        data: the encoded bytes, in one of `FORMATS`.
        name: shown in errors, usually the image id.
        max_pixels: larger pictures are refused from their header, before any pixel is decoded.

    Raises:
        DataError: not a picture, truncated, too large, or in a mode without a defined brightness.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        pixels = image.width * image.height
        if pixels <= max_pixels:
            image.load()
            return _rgb(ImageOps.exif_transpose(image), name)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        pixels = None
    except UnidentifiedImageError:
        raise DataError(
            f"image {name!r}: {len(data)} bytes are not a picture ({', '.join(FORMATS)}); upload it again"
        ) from None
    except (OSError, ValueError, SyntaxError, EOFError, KeyError, TypeError, struct.error, OverflowError) as error:
        raise DataError(
            f"image {name!r}: {len(data)} bytes that no decoder accepts ({error}); upload it again as PNG or JPEG"
        ) from None
    size = "far more" if pixels is None else f"{pixels:,}"
    raise DataError(f"image {name!r}: {size} pixels, the limit is {max_pixels:,}; scale it down before the upload")


def stored_fault(data: pa.Buffer, max_pixels: int = MAX_PIXELS) -> str | None:
    """Why an encoded picture is not whole, told without decoding it where that can be done; None if it is.

    The header is read, and JPEG, PNG and WebP must end as they should; what does not, and other formats, are decoded.
    """
    try:
        if _ends_well(data):
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                header = Image.open(pa.BufferReader(data), formats=FORMATS)
            if header.width * header.height <= max_pixels:
                return None
        decode_image(data.to_pybytes(), "", max_pixels)
    except (
        DataError, OSError, ValueError, SyntaxError, EOFError, KeyError, TypeError, struct.error, OverflowError,
        Image.DecompressionBombError, Image.DecompressionBombWarning,
    ) as error:  # fmt: skip
        return _ADDRESS.sub("them", str(error).removeprefix("image '': "))
    return None


def _ends_well(data: pa.Buffer) -> bool:
    """Whether a JPEG, PNG or WebP picture is as long as it says."""
    head, tail = bytes(memoryview(data)[:12]), bytes(memoryview(data)[-32:])
    if head.startswith(b"\xff\xd8"):
        return b"\xff\xd9" in tail
    if head.startswith(b"\x89PNG"):
        return b"IEND\xaeB`\x82" in tail
    return head[:4] == b"RIFF" and head[8:12] == b"WEBP" and int.from_bytes(head[4:8], "little") + 8 <= data.size


def _rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode in ("F", "I"):
        raise DataError(f"image {name!r}: 32-bit pixels have no agreed brightness; save it with 8 bits a channel")
    if image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.int64)
        return Image.fromarray((grey >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        clear = image.convert("RGBA")
        paper = Image.new("RGBA", clear.size, (255, 255, 255, 255))
        return Image.alpha_composite(paper, clear).convert("RGB")
    return image.convert("RGB")


def decode_pixels(named: Iterable[tuple[str, bytes]], count: int, size: int) -> Tensor:
    """Decode `count` pictures, given as (name, encoded bytes): (count, 3, size, size) uint8 RGB.

    A picture that is not square is padded in its border's colour.

    Raises:
        DataError: see `decode_image`.
    """
    import torch  # here, so that looking at a picture does not import it

    pixels = np.empty((count, size, size, 3), np.uint8)
    for row, (name, data) in enumerate(named):
        pixels[row] = np.asarray(_squared(decode_image(data, name), size))
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def encode_png(pixels: np.ndarray) -> bytes:
    """(H, W, 3) uint8 -> PNG, at the fastest compression (pictures here are small and many)."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


class ImageStore:
    """The pictures of a dataset: `images/part-*.parquet` with columns image_id and image, read when asked for.

    Attributes:
        problems: image id -> why it is not served as stored (unsafe name, no bytes, or a second picture of that name).
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.files = sorted(self.folder.glob("part-*.parquet"))
        self.problems: dict[str, str] = {}
        self._where: dict[str, tuple[int, int]] = {}
        self._parts: dict[int, pa.ChunkedArray] = {}
        if not self.files:
            raise DataError(
                f"{self.folder}: no part-*.parquet here; a dataset keeps its pictures in images/part-*.parquet"
            )
        for part, file in enumerate(self.files):
            self._index(part, file)

    def _index(self, part: int, file: Path) -> None:
        _check_columns(file)
        ids = _ids(read_bounded(file, ["image_id"]).column(0))
        for row, image_id in enumerate(ids):
            if image_id is None:
                self.problems["null"] = f"{file.name} row {row}: no image_id"
            elif not is_safe_id(image_id):
                self.problems[image_id] = f"{file.name} row {row}: {image_id[:80]!r} cannot be a file name"
            elif image_id in self._where:
                self.problems[image_id] = (
                    f"{file.name} row {row}: {image_id!r} was stored before; the first one is used"
                )
            else:
                self._where[image_id] = (part, row)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._where

    def __len__(self) -> int:
        return len(self._where)

    def ids(self) -> list[str]:
        """Every id served, in stored order."""
        return list(self._where)

    def encoded(self, ids: Sequence[str]) -> list[bytes]:
        """The stored bytes of pictures, in the order asked.

        Raises:
            DataError: an id is unknown, or its bytes are null.
        """
        absent = [image_id for image_id in ids if image_id not in self._where]
        if absent:
            raise DataError(f"{self.folder}: {len(absent)} of {len(ids)} pictures absent, first {absent[0]!r}")
        found: list[bytes] = [b""] * len(ids)
        by_part: dict[int, list[int]] = {}
        for position, image_id in enumerate(ids):
            by_part.setdefault(self._where[image_id][0], []).append(position)
        for part, positions in by_part.items():
            rows = [self._where[ids[position]][1] for position in positions]
            for position, data in zip(positions, self._column(part).take(pa.array(rows)).to_pylist(), strict=True):
                if data is None:
                    raise DataError(f"{self.files[part]}: image {ids[position]!r} has no bytes")
                found[position] = data
        return found

    def pixels(self, ids: Sequence[str], size: int) -> Tensor:
        """Decoded pictures, (n, 3, size, size) uint8 RGB; one that is not square is padded in its border's colour.

        Raises:
            DataError: see `encoded` and `decode_image`.
        """
        chunks = (ids[start : start + 4096] for start in range(0, len(ids), 4096))
        named = (pair for chunk in chunks for pair in zip(chunk, self.encoded(chunk), strict=True))
        return decode_pixels(named, len(ids), size)

    def _column(self, part: int) -> pa.ChunkedArray:
        if part not in self._parts:
            while len(self._parts) >= _OPEN_PARTS:
                self._parts.pop(next(iter(self._parts)))
            self._parts[part] = _binary(read_bounded(self.files[part], ["image"], MAX_PART_BYTES).column(0))
        return self._parts[part]


def read_part(file: Path) -> Iterator[tuple[str | None, bytes | None]]:
    """Every row of a part file, sound or not, a few pictures in memory at a time.

    Raises:
        DataError: the file cannot be read, or its columns are not those of the layout.
    """
    _check_columns(file)
    try:
        for batch in bounded_batches(file, ["image_id", "image"], 256):
            yield from zip(_ids(batch.column("image_id")), _binary(batch.column("image")).to_pylist(), strict=True)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file}: not a readable parquet file ({error})") from None


def _squared(image: Image.Image, size: int) -> Image.Image:
    if image.size == (size, size):
        return image
    if image.width == image.height:
        return image.resize((size, size), Image.Resampling.BICUBIC)
    border = tuple(int(value) for value in np.median(_border(np.asarray(image)), axis=0))
    return ImageOps.pad(image, (size, size), Image.Resampling.BICUBIC, color=border)


def _border(pixels: np.ndarray) -> np.ndarray:
    return np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])


def _check_columns(file: Path) -> None:
    check_place(file, file.parent.parent)  # images/ stands in the dataset's folder
    try:
        schema = pq.read_schema(file)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file}: not a readable parquet file ({error})") from None
    for name in ("image_id", "image"):
        if schema.names.count(name) != 1:
            raise DataError(f"{file}: columns {schema.names}, want one image_id (string) and one image (binary)")
    text, data = schema.field("image_id").type, schema.field("image").type
    if not _is_id(text):
        raise DataError(f"{file}: column image_id is {text}, want string; write ids as text")
    if not _is_binary(data):
        raise DataError(f"{file}: column image is {data}, want binary; write the encoded bytes of a PNG or JPEG file")


def _is_id(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return pa.types.is_integer(kind) or any(is_text(kind) for is_text in texts)


def _is_binary(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _ids(column: pa.Array | pa.ChunkedArray) -> list[str | None]:
    """Ids as text; whole numbers in decimal."""
    try:
        return [None if value is None else str(value) for value in column.to_pylist()]
    except UnicodeDecodeError:
        raw = column.cast(pa.large_string()).cast(pa.large_binary()).to_pylist()
        return [None if value is None else value.decode(errors="backslashreplace") for value in raw]


def _binary(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Encoded pictures; other tools write them as a struct with a field `bytes`."""
    return pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column
