"""CLIP embeddings of prompts and pictures, on the unit sphere."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from perfusion.reward import Backbone

__all__ = ["cosines", "picture_embeddings", "prompt_embeddings"]

_BATCH = 256


@torch.no_grad()
def picture_embeddings(backbone: Backbone, pixels: Tensor) -> Tensor:
    """(n, 3, H, W) uint8 -> (n, D) float32, each of length 1."""
    parts = [
        backbone.clip.get_image_features(backbone.prepare(part.to(backbone.clip.device))) for part in _batches(pixels)
    ]
    return functional.normalize(torch.cat([part.pooler_output.float().cpu() for part in parts]), dim=-1)


@torch.no_grad()
def prompt_embeddings(backbone: Backbone, prompts: list[str]) -> Tensor:
    """B prompts -> (B, D) float32, each of length 1; a repeated prompt is encoded once."""
    distinct = sorted(set(prompts))
    parts = [
        backbone.clip.get_text_features(**backbone.tokens(distinct[start : start + _BATCH])).pooler_output.float().cpu()
        for start in range(0, len(distinct), _BATCH)
    ]
    place = {prompt: row for row, prompt in enumerate(distinct)}
    return functional.normalize(torch.cat(parts), dim=-1)[[place[prompt] for prompt in prompts]]


def cosines(backbone: Backbone, prompts: list[str], pixels: Tensor) -> Tensor:
    """Cosine of each prompt and each of its pictures: B prompts, (B, N, 3, H, W) uint8 -> (B, N) in [-1, 1]."""
    pictures = picture_embeddings(backbone, pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2])  # (B, N, D)
    return torch.einsum("bd,bnd->bn", prompt_embeddings(backbone, prompts), pictures)


def _batches(pixels: Tensor) -> Iterator[Tensor]:
    return (pixels[start : start + _BATCH] for start in range(0, len(pixels), _BATCH))
