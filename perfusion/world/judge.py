"""The judge: which garment a picture shows, by exact nearest render over every garment there is.

A render is still + weight * cloth, so its distance to a picture needs inner products with the cuts' weights and with
the weights times each pattern only: 5 x 864 templates instead of 34,560, with the same answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from perfusion.world.garments import CODES, SIZE, layers, render

__all__ = ["Reading", "read"]

_CHUNK = 128
_LEAST_ERROR = 1 / 12  # squared grey levels: what rounding to whole grey levels leaves


@dataclass(frozen=True)
class Reading:
    """What pictures show.

    Attributes:
        codes: (n, 8) the nearest garments.
        cleanness_db: (n,) peak signal to noise ratio against the nearest garment's own picture, at most 58.9 dB.
    """

    codes: NDArray[np.int64]
    cleanness_db: NDArray[np.float64]


@dataclass(frozen=True)
class _Templates:
    """Factors of every render. P = 48 * 48, C = 864 cuts, D = 40 dyes, Q = 5 patterns.

    Attributes:
        still: (3P, C).
        weight: (P, Q * C): pattern 0 is the plain weight, the others are the weight times the pattern.
        ground: (8, 3) colours of the palettes.
        figure: (8, 3) colours of the patterns, less the ground.
        norm: (C, D) squared length of each render.
    """

    still: Tensor
    weight: Tensor
    ground: Tensor
    figure: Tensor
    norm: Tensor


def read(pixels: Tensor) -> Reading:
    """Read garments from pictures, (n, 3, S, S) uint8; another size than 48 is resized first."""
    if pixels.shape[-2:] != (SIZE, SIZE):
        resized = functional.interpolate(pixels.float(), size=(SIZE, SIZE), mode="bilinear", antialias=True)
        pixels = resized.round().clamp(0, 255).to(torch.uint8)
    parts = [_nearest(pixels[start : start + _CHUNK].float().flatten(2)) for start in range(0, len(pixels), _CHUNK)]
    cut, dye = (torch.cat(column).numpy() for column in zip(*parts, strict=True)) if parts else (np.zeros(0, int),) * 2
    kind, neckline, length, fit, shape, trim = np.unravel_index(cut, tuple(CODES[i] for i in (0, 1, 2, 3, 7, 6)))
    palette, pattern = np.unravel_index(dye, (CODES[4], CODES[5]))
    codes = np.stack([kind, neckline, length, fit, palette, pattern, trim, shape], axis=1).astype(np.int64)
    shown = pixels.permute(0, 2, 3, 1).numpy().astype(np.float32)
    error = np.square(shown - render(codes)).mean((1, 2, 3), dtype=np.float64)
    return Reading(codes, 10 * np.log10(255**2 / np.maximum(error, _LEAST_ERROR)))


@torch.no_grad()
def _nearest(x: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures (n, 3, P) -> the nearest cut and dye, (n,) each."""
    known = _templates()
    cuts, patterns = known.still.shape[1], CODES[5]
    still = x.flatten(1) @ known.still  # (n, C)
    seen = (x.flatten(0, 1) @ known.weight).reshape(len(x), 3, patterns, cuts)  # (n, 3, Q, C)
    ground = torch.einsum("nkc,pk->npc", seen[:, :, 0], known.ground)  # (n, 8, C)
    figure = torch.einsum("nkqc,pk->npqc", seen[:, :, 1:], known.figure)  # (n, 8, Q - 1, C)
    product = still[:, None, None] + torch.cat([ground[:, :, None], ground[:, :, None] + figure], dim=2)
    distance = known.norm.T.reshape(1, CODES[4], patterns, cuts) - 2 * product  # up to the picture's own length
    best = distance.flatten(1).argmin(1)
    return best % cuts, best // cuts


@cache
def _templates() -> _Templates:
    still, weight, sheets = map(torch.from_numpy, layers().factors())
    cloth = sheets.reshape(CODES[4], CODES[5], -1, 3)
    ground = cloth[:, 0, 0]
    figure, pattern = _patterns(cloth)
    norm = torch.stack([(still + weight[..., None] * c).square().sum((1, 2)) for c in cloth.flatten(0, 1)], dim=1)
    templates = torch.stack([weight, *(weight * pattern[q] for q in range(1, CODES[5]))])  # (Q, C, P)
    return _Templates(
        still.permute(2, 1, 0).reshape(-1, len(still)), templates.permute(2, 0, 1).flatten(1), ground, figure, norm
    )


def _patterns(cloth: Tensor) -> tuple[Tensor, Tensor]:
    """Cloth (8, Q, P, 3) -> colour of the figure less the ground, (8, 3), and the share of figure, (Q, P)."""
    contrast = cloth - cloth[:, :1]
    figure = contrast[:, 1, contrast[0, 1, :, 0].abs().argmax()]
    channel = figure[0].abs().argmax()
    return figure, contrast[0, :, :, channel] / figure[0, channel]
