"""Contact sheets: the same prompt and noise beside each other, labelled, big enough to look at."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

__all__ = ["ContactSheet", "draw_sheet", "to_png"]

_CELL = 192  # side of a picture on the sheet, in pixels
_GAP = 10
_LABEL = 300  # width of the row labels
_LINE = 17
_PAPER, _INK, _GREY = (255, 255, 255), (30, 30, 36), (110, 110, 120)


@dataclass(frozen=True)
class ContactSheet:
    """What stands on a sheet.

    Attributes:
        title: one line.
        columns: K headings of one line or several, as `rows`.
        rows: R labels of one line or several, the first of them in ink and the others in grey.
        pictures: R x K pictures (3, S, S) uint8; None leaves a cell empty.
        captions: R x K short texts under the pictures; "" for none.
    """

    title: str
    columns: Sequence[Sequence[str]]
    rows: Sequence[Sequence[str]]
    pictures: Sequence[Sequence[Tensor | None]]
    captions: Sequence[Sequence[str]]


def draw_sheet(sheet: ContactSheet) -> Image.Image:
    """Draw a contact sheet; small pictures are enlarged without smoothing: what was generated is what is seen."""
    step_x, step_y = _CELL + _GAP, _CELL + _GAP + _LINE
    head = max(len(heading) for heading in sheet.columns)
    top = (2 + head) * _LINE + _GAP
    size = (_LABEL + step_x * len(sheet.columns) + _GAP, top + step_y * len(sheet.rows) + _GAP)
    page = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((_GAP, _GAP), sheet.title, fill=_INK, font=_font(15))
    for column, heading in enumerate(sheet.columns):
        _write(draw, _LABEL + column * step_x, top - head * _LINE - 4, [[line] for line in heading])
    for row, label in enumerate(sheet.rows):
        y = top + row * step_y
        _write(draw, _GAP, y, [_wrapped(line) for line in label])
        for column, picture in enumerate(sheet.pictures[row]):
            x = _LABEL + column * step_x
            if picture is not None:
                page.paste(_enlarged(picture), (x, y))
            draw.text((x, y + _CELL + 2), sheet.captions[row][column], fill=_GREY, font=_font(11))
    return page


def _write(draw: ImageDraw.ImageDraw, x: float, y: float, lines: Sequence[Sequence[str]]) -> None:
    """Lines, each in its pieces, one below the other: the first line in ink, the others in grey."""
    for number, pieces in enumerate(lines):
        for piece in pieces:
            draw.text((x, y), piece, fill=_GREY if number else _INK, font=_font(12))
            y += _LINE


def to_png(picture: Tensor | Image.Image) -> bytes:
    """A picture (3, H, W) uint8, or a drawn sheet, as PNG."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(_array(picture))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _array(picture: Tensor) -> np.ndarray:
    return np.ascontiguousarray(picture.permute(1, 2, 0).numpy())


def _enlarged(picture: Tensor) -> Image.Image:
    image = Image.fromarray(_array(picture))
    smooth = Image.Resampling.LANCZOS if image.width > _CELL else Image.Resampling.NEAREST
    return image.resize((_CELL, _CELL), smooth)


def _wrapped(line: str) -> list[str]:
    """The line in pieces that fit the label's width, broken at spaces."""
    pieces, current = [], ""
    for word in line.split():
        longer = f"{current} {word}".strip()
        if current and _font(12).getlength(longer) > _LABEL - 3 * _GAP:
            pieces.append(current)
            current = word
        else:
            current = longer
    return [*pieces, current]


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
