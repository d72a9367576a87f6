"""Flat-lay garments of the sample marketplace: eight attributes, every one of them visible in every picture.

A garment is eight codes, one for each of `FAMILIES`. Its picture is affine in its colours: outline, background and trim
are drawn once for each cut, and the cloth is laid under them. Cloth patterns repeat every 4 or 8 pixels, so that they
sit the same way in every 4x4 patch.

Legend: n pictures, P = 48 * 48 pixels, C cuts (silhouette and trim), D dyes (palette and pattern).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import product
from math import cos, pi, radians, sin

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

__all__ = ["CODES", "FAMILIES", "FREE", "SIZE", "STATED", "all_codes", "cut_index", "dye_index", "layers", "render"]

SIZE = 48
FAMILIES: dict[str, tuple[str, ...]] = {
    "type": ("dress", "top", "coat", "jumpsuit"),
    "neckline": ("v-neck", "round-neck", "square-neck"),
    "sleeve length": ("short sleeves", "three-quarter sleeves", "long sleeves"),
    "fit": ("slim-fit", "loose-fit"),
    "palette": ("red", "yellow", "green", "blue", "purple", "pink", "black", "beige"),
    "pattern": ("solid", "striped", "pinstriped", "dotted", "gingham"),
    "trim": ("untrimmed", "buttoned", "belted", "lace-trimmed"),
    "sleeve shape": ("straight-cut sleeves", "puff sleeves", "bell sleeves"),
}
STATED = ("type", "neckline", "sleeve length", "fit")
FREE = ("palette", "pattern", "trim", "sleeve shape")
CODES: tuple[int, ...] = tuple(len(values) for values in FAMILIES.values())
_CUT = (0, 1, 2, 3, 7, 6)  # families that decide the drawing: type, neckline, sleeve length, fit, sleeve shape, trim
_DYE = (4, 5)  # families that decide the cloth

_OVERSAMPLE = 5
_CELLS = _OVERSAMPLE**2
_BACKGROUND, _OUTLINE, _CREAM, _LEATHER, _BRASS, _CLOTH, _SLEEVE = range(7)  # materials
_COLOURS = ((246, 245, 242), (38, 34, 44), (253, 250, 240), (150, 92, 44), (250, 208, 84))  # of the first five
_SHADE = (100, 93)  # hundredths, of cloth and sleeve: sleeves lie a little darker
_DYES: tuple[tuple[tuple[int, int, int], tuple[int, int, int]], ...] = (  # cloth and the colour of its pattern
    ((206, 40, 46), (255, 206, 196)),
    ((244, 198, 44), (168, 104, 12)),
    ((44, 138, 72), (196, 236, 178)),
    ((44, 96, 196), (190, 220, 255)),
    ((122, 62, 160), (226, 196, 250)),
    ((244, 146, 182), (176, 34, 100)),
    ((64, 64, 72), (206, 208, 214)),
    ((214, 190, 152), (124, 84, 50)),
)

Point = tuple[float, float]
Polygon = tuple[Point, ...]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class _Layers:
    """The factors of a picture in whole numbers: (200 still[cut] + weight[cut] * cloth[dye]) / 5000, rounded.

    Whole numbers, so that every machine draws the same bytes.

    Attributes:
        still: (C, P, 3) int32, what no dye changes: grey levels times `_CELLS`.
        weight: (C, P) int32, how much of the pixel is cloth: hundredths of its shade times `_CELLS`.
        cloth: (D, P, 3) int32, the dyed cloth as an endless sheet: twice the grey levels.
    """

    still: NDArray[np.int32]
    weight: NDArray[np.int32]
    cloth: NDArray[np.int32]

    def factors(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """The same in float32 and grey levels: a picture is still[cut] + weight[cut] * cloth[dye], rounded."""
        scales = ((self.still, _CELLS), (self.weight, 100 * _CELLS), (self.cloth, 2))
        still, weight, cloth = ((factor / scale).astype(np.float32) for factor, scale in scales)
        return still, weight, cloth


def render(codes: ArrayLike) -> NDArray[np.uint8]:
    """Draw garments: (n, 8) integer codes in the order of `FAMILIES` -> (n, 48, 48, 3) uint8 RGB.

    Raises:
        ValueError: codes are not (n, 8) or one lies outside its family.
    """
    codes = _checked(codes)
    drawn = layers()
    pictures = np.empty((len(codes), SIZE * SIZE, 3), np.uint8)
    whole = 200 * _CELLS
    for start in range(0, len(codes), 256):
        part = slice(start, start + 256)
        cuts, dyes = cut_index(codes[part]), dye_index(codes[part])
        pixels = drawn.cloth[dyes]
        pixels *= drawn.weight[cuts][..., None]
        pixels += 200 * drawn.still[cuts] + whole // 2
        pictures[part] = pixels // whole
    return pictures.reshape(-1, SIZE, SIZE, 3)


def all_codes() -> NDArray[np.int64]:
    """Every garment there is: (34560, 8)."""
    return np.stack(np.meshgrid(*map(np.arange, CODES), indexing="ij"), -1).reshape(-1, len(CODES))


def cut_index(codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n, 8) codes -> (n,) row of `layers().still`."""
    return np.ravel_multi_index(tuple(codes[:, _CUT].T), tuple(CODES[i] for i in _CUT))


def dye_index(codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n, 8) codes -> (n,) row of `layers().cloth`."""
    return np.ravel_multi_index(tuple(codes[:, _DYE].T), tuple(CODES[i] for i in _DYE))


@cache
def layers() -> _Layers:
    """Draw every cut and dye every cloth, once for each process (about a second)."""
    cells = np.stack([_count(_draw(*codes)) for codes in product(*(range(CODES[i]) for i in _CUT))])
    still = cells[..., : len(_COLOURS)] @ np.array(_COLOURS, np.int32)
    return _Layers(still, cells[..., len(_COLOURS) :] @ np.array(_SHADE, np.int32), _dye())


def _count(materials: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Materials cell by cell -> how many cells of each material each pixel has, (P, 7)."""
    pixel = np.arange(SIZE * SIZE, dtype=np.int64).reshape(SIZE, SIZE).repeat(_OVERSAMPLE, 0).repeat(_OVERSAMPLE, 1)
    return np.bincount((7 * pixel + materials).reshape(-1), minlength=7 * SIZE * SIZE).reshape(-1, 7).astype(np.int32)


def _checked(codes: ArrayLike) -> NDArray[np.int64]:
    array = np.asarray(codes, dtype=np.int64)
    if array.ndim != 2 or array.shape[1] != len(CODES):
        raise ValueError(
            f"codes have shape {array.shape}, want (n, {len(CODES)}): one code for each of {list(FAMILIES)}"
        )
    outside = (array < 0) | (array >= np.array(CODES))
    if outside.any():
        row, family = map(int, np.argwhere(outside)[0])
        raise ValueError(f"codes[{row}] = {array[row].tolist()}: {list(FAMILIES)[family]!r} has {CODES[family]} values")
    return array


def _dye() -> NDArray[np.int32]:
    """Twice the colour of the cloth of every palette and pattern, (D, P, 3)."""
    y, x = np.mgrid[:SIZE, :SIZE]
    patterns = (  # twice the share of the pattern's colour
        np.zeros((SIZE, SIZE), int),
        2 * (y % 4 >= 2),  # bands two pixels high
        2 * (x % 4 == 1),  # lines one pixel wide
        2 * ((x + 1) % 4 // 2 + (y + 1) % 4 // 2 + (x // 4 + y // 4) % 2 == 3),  # a dot in every other patch
        (x // 4 + 1) % 2 + (y // 4 + 1) % 2,  # checks of a patch each
    )
    share = np.stack(patterns).reshape(1, len(patterns), -1, 1)
    ground, figure = (np.array([dye[i] for dye in _DYES])[:, None, None] for i in (0, 1))
    return (2 * ground + share * (figure - ground)).reshape(-1, SIZE * SIZE, 3).astype(np.int32)


def _draw(kind: int, neckline: int, length: int, fit: int, shape: int, trim: int) -> NDArray[np.uint8]:
    """One cut as a map of materials at `_OVERSAMPLE` times the size."""
    sheet = _Sheet()
    body = _body(kind, fit)
    sheet.lay(body, _CLOTH)
    if kind == 2:
        _coat_front(sheet, fit)
    if trim == 1:
        _placket(sheet, kind, body)
    elif trim == 2:
        _belt(sheet, body)
    elif trim == 3:
        hem = max(y for _, y in body) - 4.0
        sheet.band(((0, hem), (SIZE, hem), (SIZE, SIZE), (0, SIZE)), body, _CREAM)
    for side in (-1, 1):
        sleeve, cuff = _sleeve(side, length, fit, shape)
        sheet.lay(sleeve, _SLEEVE)
        if trim == 3:
            sheet.band(cuff, sleeve, _CREAM)
    sheet.cut_out(_NECKLINES[neckline])
    return sheet.materials


_NECKLINES: tuple[Polygon, ...] = (
    ((18.5, 1), (18.5, 4.5), (24, 16.5), (29.5, 4.5), (29.5, 1)),
    ((18.5, 1), *((24 - 5.5 * cos(radians(a)), 4.5 + 5 * sin(radians(a))) for a in range(0, 181, 10)), (29.5, 1)),
    ((18.5, 1), (18.5, 12.5), (29.5, 12.5), (29.5, 1)),
)
_BODIES: dict[tuple[int, int], Polygon] = {  # (type, fit) -> the right half, as distance from the middle and height
    (0, 0): ((7.5, 14), (5, 22), (8, 31), (11, 44.5)),
    (0, 1): ((9.5, 15), (9.5, 22), (13.5, 33), (18, 44.5)),
    (1, 0): ((7.5, 14), (5, 22), (7, 30.5)),
    (1, 1): ((9.5, 15), (10.5, 22), (12.5, 30.5)),
    (2, 0): ((8, 14), (7.5, 22), (9, 42.5)),
    (2, 1): ((10, 15), (12, 22), (14, 42.5)),
    (3, 0): ((7.5, 14), (5, 22), (7, 29), (6.5, 44.5), (2.5, 44.5), (0.8, 30)),
    (3, 1): ((9.5, 15), (9.5, 22), (12, 30), (15, 44.5), (4.5, 44.5), (0.8, 30.5)),
}


def _body(kind: int, fit: int) -> Polygon:
    """Outline of the garment without its sleeves."""
    half = ((5.5, 4.0), (9.0, 6.5), *_BODIES[kind, fit])
    return (*((24 + x, y) for x, y in half), *((24 - x, y) for x, y in reversed(half)))


def _sleeve(side: int, length: int, fit: int, shape: int) -> tuple[Polygon, Polygon]:
    """Outline of one sleeve and the region of its cuff."""
    reach = (8.0, 13.5, 19.5)[length]
    slant = radians(36)

    def place(distance: float, offset: float) -> Point:
        x = 7.4 + 0.6 * fit + sin(slant) * distance + cos(slant) * offset
        return 24 + side * x, 9.6 + cos(slant) * distance - sin(slant) * offset

    steps = [i / 16 for i in range(17)]
    outer = [place(t * reach, _half_width(t, shape)) for t in steps]
    inner = [place(t * reach, -_half_width(t, shape)) for t in steps]
    cuff = (place(reach - 3, 9), place(reach + 3, 9), place(reach + 3, -9), place(reach - 3, -9))
    return (*outer, *reversed(inner)), cuff


def _half_width(t: float, shape: int) -> float:
    """Half the width of a sleeve at share `t` of its length, in pixels."""
    if shape == 0:
        return 3.3 - 0.5 * t
    if shape == 1:
        return 2.6 + 2.6 * sin(pi * t) ** 0.7 - 0.4 * t
    return 2.6 if t < 0.3 else 2.6 + 3.0 * (t - 0.3) / 0.7


def _coat_front(sheet: _Sheet, fit: int) -> None:
    """A coat opens in front and has two pockets."""
    sheet.line(((24, 6), (24, 42.5)), 1.6)
    inner, outer = (3.0, 6.5) if fit == 0 else (4.5, 10.0)
    for side in (-1, 1):
        sheet.line(((24 + side * inner, 31), (24 + side * outer, 30.5)), 1.2)


def _placket(sheet: _Sheet, kind: int, body: Polygon) -> None:
    """A light band down the front with dark buttons every four pixels."""
    bottom = 30 if kind == 3 else int(max(y for _, y in body))
    sheet.band(((21, 0), (27, 0), (27, bottom), (21, bottom)), body, _CREAM)
    for top in range(9, bottom - 2, 4):
        sheet.fill(((23, top), (25, top), (25, top + 2), (23, top + 2)), _OUTLINE)


def _belt(sheet: _Sheet, body: Polygon) -> None:
    """A leather belt with a brass buckle at the waist."""
    sheet.band(((0, 20), (SIZE, 20), (SIZE, 24), (0, 24)), body, _LEATHER)
    sheet.fill(((22, 20.5), (26, 20.5), (26, 23.5), (22, 23.5)), _BRASS)


class _Sheet:
    """A map of materials, each pixel of the picture being `_OVERSAMPLE` squared of its cells."""

    def __init__(self) -> None:
        self.materials = np.full((SIZE * _OVERSAMPLE,) * 2, _BACKGROUND, np.uint8)

    def lay(self, polygon: Polygon, cloth: int) -> None:
        """A piece of cloth with a dark edge."""
        self.fill(polygon, cloth)
        self.materials[_edge(polygon, 1.1)] = _OUTLINE

    def band(self, polygon: Polygon, clip: Polygon, material: int) -> None:
        """A strip with a dark edge, inside `clip` only, whose own edge is drawn again."""
        within = _mask(clip)
        self.materials[_mask(polygon) & within] = material
        self.materials[(_edge(polygon, 0.8) & within) | _edge(clip, 1.1)] = _OUTLINE

    def fill(self, polygon: Polygon, material: int) -> None:
        self.materials[_mask(polygon)] = material

    def line(self, points: Polygon, width: float) -> None:
        self.materials[_stroke(points, width)] = _OUTLINE

    def cut_out(self, polygon: Polygon) -> None:
        """An opening, with a dark edge where it meets the garment."""
        edge = _edge(polygon, 1.1) & (self.materials != _BACKGROUND)
        self.fill(polygon, _BACKGROUND)
        self.materials[edge] = _OUTLINE


@lru_cache(maxsize=64)
def _mask(polygon: Polygon) -> Mask:
    canvas = Image.new("1", (SIZE * _OVERSAMPLE,) * 2)
    ImageDraw.Draw(canvas).polygon(_scaled(polygon), fill=1)
    return np.asarray(canvas)


def _edge(polygon: Polygon, width: float) -> Mask:
    return _stroke((*polygon, polygon[0]), width)


@lru_cache(maxsize=64)
def _stroke(points: Polygon, width: float) -> Mask:
    canvas = Image.new("1", (SIZE * _OVERSAMPLE,) * 2)
    ImageDraw.Draw(canvas).line(_scaled(points), fill=1, width=round(width * _OVERSAMPLE), joint="curve")
    return np.asarray(canvas)


def _scaled(points: Polygon) -> list[Point]:
    return [(x * _OVERSAMPLE, y * _OVERSAMPLE) for x, y in points]
