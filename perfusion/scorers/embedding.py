"""CLIP embeddings of prompts and pictures, on the unit sphere."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from perfusion.reward import TwoTowers
from perfusion.reward.batches import spread
from perfusion.reward.frozen import embed_pictures, embed_prompts

__all__ = ["cosines", "picture_embeddings", "prompt_embeddings", "rows_of"]


def picture_embeddings(backbone: TwoTowers, pixels: Tensor) -> Tensor:
    """(n, 3, H, W) uint8 -> (n, D) float32, each of length 1."""
    return functional.normalize(embed_pictures(backbone, pixels), dim=-1)


def prompt_embeddings(backbone: TwoTowers, prompts: list[str]) -> Tensor:
    """B prompts -> (B, D) float32, each of length 1; a repeated prompt is encoded once."""
    known = embed_prompts(backbone, prompts)
    return functional.normalize(torch.stack([known[prompt] for prompt in prompts]), dim=-1)


def cosines(backbone: TwoTowers, prompts: list[str], pixels: Tensor, valid: Tensor | None = None) -> Tensor:
    """Cosine of each prompt and each of its pictures, in [-1, 1].

    Args:
        prompts: B prompts.
        pixels: (B, N, 3, H, W) uint8.
        valid: (B, N) bool, the pictures to look at; the others get 0. None looks at all.

    Returns:
        (B, N).
    """
    pictures, group, valid = rows_of(pixels, valid)
    text = prompt_embeddings(backbone, prompts)
    return spread((text[group] * picture_embeddings(backbone, pictures)).sum(-1), valid)


def rows_of(pixels: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """The pictures to look at, (R, 3, H, W), the group of each, (R,), and where they belong, (B, N) bool."""
    if valid is None:
        valid = torch.ones(pixels.shape[:2], dtype=torch.bool)
        return pixels.flatten(0, 1), valid.nonzero()[:, 0], valid
    return pixels[valid], valid.nonzero()[:, 0], valid
