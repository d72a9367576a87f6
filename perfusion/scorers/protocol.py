"""What every scorer answers to.

Shapes: B groups (one prompt, one user each), N pictures of a group, F user features.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from perfusion.data import FeatureEncoder

__all__ = ["Scorer", "check_batch", "reported_name"]


class Scorer(Protocol):
    """A number for each picture of each group; higher is better."""

    @property
    def name(self) -> str:
        """The name its numbers are reported under; ends in `[twin]` when a tiny twin gives them."""
        ...

    @property
    def encoder(self) -> FeatureEncoder | None:
        """What encodes users for this scorer; None for a user-blind one."""
        ...

    def score(
        self, prompts: list[str], pixels: Tensor, users: Tensor | None = None, valid: Tensor | None = None
    ) -> Tensor:
        """Score groups.

        Args:
            prompts: B prompts.
            pixels: (B, N, 3, H, W) uint8 RGB.
            users: (B, F) int64 features, or None for no user; user-blind scorers ignore them.
            valid: (B, N) bool, the pictures that exist; the others are not looked at and score 0. None takes all.

        Returns:
            (B, N) float32 on the CPU, in the scorer's unit.

        Raises:
            ValueError: the shapes do not fit or the pixels are not uint8.
        """
        ...


def reported_name(family: str, twin: bool) -> str:
    """`family`, or `family[twin]`: a twin's score is never reported under the real metric's name."""
    return f"{family}[twin]" if twin else family


def check_batch(prompts: list[str], pixels: Tensor, users: Tensor | None = None, valid: Tensor | None = None) -> None:
    """Refuse a batch whose parts do not fit each other.

    Raises:
        ValueError: names the shapes.
    """
    if pixels.ndim != 5 or pixels.shape[2] != 3 or pixels.dtype != torch.uint8:
        raise ValueError(f"pictures are {tuple(pixels.shape)} {pixels.dtype}; need (B, N, 3, H, W) uint8")
    if valid is not None and (valid.shape != pixels.shape[:2] or valid.dtype != torch.bool):
        raise ValueError(f"valid is {tuple(valid.shape)} {valid.dtype}; need {tuple(pixels.shape[:2])} bool")
    lengths = {len(prompts), len(pixels), *([] if users is None else [len(users)])}
    if len(lengths) != 1:
        raise ValueError(
            f"{len(prompts)} prompts, {len(pixels)} groups of pictures, users {None if users is None else len(users)}"
        )
