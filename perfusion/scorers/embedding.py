"""CLIP embeddings of prompts and pictures, on the unit sphere; transformers' CLIP or open_clip's."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor
from torch.nn import functional

from perfusion.reward import TwoTowers, frozen
from perfusion.reward.batches import spread
from perfusion.scorers.open_clip_towers import OpenClipTowers

__all__ = [
    "Towers",
    "cosines",
    "embed_pictures",
    "embed_prompts",
    "picture_embeddings",
    "prompt_embeddings",
    "rows_of",
]

#: What can embed a prompt and a picture.
Towers = TwoTowers | OpenClipTowers


def embed_pictures(backbone: Towers, pixels: Tensor) -> Tensor:
    """(n, 3, H, W) uint8 -> (n, P) float32 on the CPU, not normalised."""
    if not len(pixels):  # attention cannot be asked about nothing
        return torch.zeros(0, backbone.width)
    if isinstance(backbone, OpenClipTowers):
        return backbone.embed_pictures(pixels)
    return frozen.embed_pictures(backbone, pixels)


def embed_prompts(backbone: Towers, prompts: Collection[str]) -> dict[str, Tensor]:
    """Embeddings (P,) on the CPU, not normalised, by prompt."""
    if isinstance(backbone, OpenClipTowers):
        return backbone.embed_prompts(prompts)
    return frozen.embed_prompts(backbone, prompts)


def picture_embeddings(backbone: Towers, pixels: Tensor) -> Tensor:
    """(n, 3, H, W) uint8 -> (n, D) float32, each of length 1."""
    return functional.normalize(embed_pictures(backbone, pixels), dim=-1)


def prompt_embeddings(backbone: Towers, prompts: list[str]) -> Tensor:
    """B prompts -> (B, D) float32, each of length 1; a repeated prompt is encoded once."""
    known = embed_prompts(backbone, prompts)
    return functional.normalize(torch.stack([known[prompt] for prompt in prompts]), dim=-1)


def cosines(backbone: Towers, prompts: list[str], pixels: Tensor, valid: Tensor | None = None) -> Tensor:
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
