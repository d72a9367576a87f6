"""How a garment in a photograph looks, measured from its pixels: colour, brightness, colourfulness, pattern.

The background is estimated from the picture's border, and the garment is what differs from it near the middle. Colours
are named by thresholds on CIELAB lightness, chroma and hue, pixel by pixel, and the commonest name wins.

Shapes: n pictures of S x S pixels, P = S * S.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["APPEARANCE", "appearance", "colour_names", "garment_mask", "to_lab"]

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

COLOURS = (
    "black", "grey", "white", "red", "orange", "yellow", "green",
    "teal", "blue", "navy", "purple", "pink", "brown", "beige",
)  # fmt: skip
APPEARANCE: dict[str, tuple[str, ...]] = {
    "colour": COLOURS,
    "brightness": ("dark", "mid-tone", "bright"),
    "colourfulness": ("muted", "vivid"),
    "pattern": ("plain", "patterned"),
}

_BORDER = 1 / 16  # width of the border that shows background, as a share of the side
_REACH = 0.34  # radius of the middle that shows garment, as a share of the side
_LEAST_GARMENT = 0.08  # a smaller mask is not trusted; the whole middle is used then
_LEAST_CONTRAST, _SPREADS = 14.0, 3.0  # CIELAB distance from the background, and the same in spreads of the border
_GREY_CHROMA = 9.0
_DARK, _BRIGHT = 35.0, 65.0  # CIELAB lightness of the median garment pixel
_MUTED, _VIVID = 12.0, 22.0  # CIELAB chroma; between the two nothing is said
_PLAIN, _PATTERNED = 1.9, 3.0  # mean local contrast of lightness; between the two nothing is said
_CHUNK = 512


def appearance(pixels: Tensor) -> Tensor:
    """The looks of the garments in pictures (n, 3, S, S) uint8: (n, 4) codes of `APPEARANCE`, -1 = neither clearly."""
    parts = [_looks(pixels[start : start + _CHUNK]) for start in range(0, len(pixels), _CHUNK)]
    return torch.cat(parts) if parts else torch.zeros(0, len(APPEARANCE), dtype=torch.int64)


def _looks(pixels: Tensor) -> Tensor:
    lab = to_lab(pixels.permute(0, 2, 3, 1).numpy())
    mask = garment_mask(lab)
    weights = mask.reshape(len(lab), -1)
    names = colour_names(lab).reshape(len(lab), -1)
    votes = np.stack([((names == name) & weights).sum(1) for name in range(len(COLOURS))], axis=1)
    garment = np.where(weights[..., None], lab.reshape(len(lab), -1, 3), np.nan)
    lightness = np.nanmedian(garment[..., 0], axis=1)
    chroma = np.nanmedian(np.hypot(garment[..., 1], garment[..., 2]), axis=1)
    contrast = _mean_contrast(lab[..., 0], mask)
    columns = [
        votes.argmax(1),
        np.digitize(lightness, [_DARK, _BRIGHT]),
        _two_sided(chroma, _MUTED, _VIVID),
        _two_sided(contrast, _PLAIN, _PATTERNED),
    ]
    return torch.from_numpy(np.stack(columns, axis=1).astype(np.int64))


def _two_sided(values: Floats, low: float, high: float) -> NDArray[np.int64]:
    """0 below `low`, 1 above `high`, -1 between."""
    return np.where(values < low, 0, np.where(values > high, 1, -1))


def to_lab(rgb: NDArray[np.uint8]) -> Floats:
    """sRGB (..., 3) uint8 -> CIELAB under D65, lightness 0 .. 100 (IEC 61966-2-1, CIE 15)."""
    value = rgb.astype(np.float32) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    )
    xyz = linear @ to_xyz.T.astype(np.float32) / np.array([0.95047, 1.0, 1.08883], np.float32)
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1).astype(np.float32)


def garment_mask(lab: Floats) -> Mask:
    """Where the garment is, (n, S, S): unlike the border and near the middle; if too little, the whole middle."""
    side = lab.shape[1]
    width = max(1, round(side * _BORDER))
    ring = np.ones((side, side), bool)
    ring[width:-width, width:-width] = False
    border = lab[:, ring]
    background = np.median(border, axis=1)
    spread = np.median(np.linalg.norm(border - background[:, None], axis=-1), axis=1)
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    middle = np.hypot(y, x) < max(1.0, _REACH * side)
    distance = np.linalg.norm(lab - background[:, None, None], axis=-1)
    mask = (distance > np.maximum(_LEAST_CONTRAST, _SPREADS * spread)[:, None, None]) & middle
    mask[mask.mean((1, 2)) < _LEAST_GARMENT] = middle
    return mask


def colour_names(lab: Floats) -> NDArray[np.int64]:
    """The name of each pixel's colour, (...,) codes of `COLOURS`; later rules overrule earlier ones."""
    lightness, a, b = np.moveaxis(lab, -1, 0)
    chroma, hue = np.hypot(a, b), np.degrees(np.arctan2(b, a)) % 360
    grey, reddish, warm = chroma < _GREY_CHROMA, (hue < 45) | (hue >= 340), (hue >= 45) & (hue < 110)
    earthy = (hue > 25) & (hue < 45) & (chroma < 25)
    bluish = (hue >= 235) & (hue < 310)
    rules: list[tuple[str, Mask]] = [
        ("red", reddish & (lightness < 44)),
        ("pink", reddish & (lightness >= 44)),
        ("red", reddish & (chroma > 55) & (hue > 15) & (hue < 45)),
        ("brown", earthy),
        ("beige", earthy & (lightness > 55)),
        ("beige", warm & (chroma < 33) & (lightness >= 53)),
        ("brown", warm & (lightness < 53)),
        ("orange", warm & (chroma >= 33) & (lightness >= 53)),
        ("yellow", warm & (chroma >= 33) & (lightness >= 53) & (hue >= 72)),
        ("green", (hue >= 100) & (hue < 170) & ~((chroma < 15) & (lightness > 60))),
        ("green", warm & (hue >= 85) & (lightness < 45)),
        ("teal", (hue >= 170) & (hue < 235)),
        ("blue", bluish),
        ("navy", bluish & (lightness < 30)),
        ("purple", (hue >= 310) & (hue < 340)),
        ("grey", grey),
        ("black", grey & (lightness < 23)),
        ("white", grey & (lightness >= 77)),
    ]
    names = np.full(lightness.shape, COLOURS.index("grey"))
    for name, where in rules:
        names[where] = COLOURS.index(name)
    return names


def _mean_contrast(lightness: Floats, mask: Mask) -> Floats:
    """How much a pixel's lightness differs from its four neighbours' mean, over pixels with all in the mask, (n,)."""
    inner = mask & np.logical_and.reduce(_neighbours(mask))
    difference = np.abs(lightness - np.mean(_neighbours(lightness), axis=0))
    return np.where(inner, difference, 0).sum((1, 2)) / np.maximum(inner.sum((1, 2)), 1)


def _neighbours(image: NDArray) -> list[NDArray]:
    """The four neighbours of each pixel, (n, S, S) each; the edge repeats itself."""
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)), mode="edge")
    return [padded[:, :-2, 1:-1], padded[:, 2:, 1:-1], padded[:, 1:-1, :-2], padded[:, 1:-1, 2:]]
