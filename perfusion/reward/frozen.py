"""What a frozen backbone computes before, or without, hearing of users: each picture and each prompt once.

What is kept of a picture depends on what the model's plug-ins reach: its embedding, where the vision tower hears of
nobody; what the first layer is given (patches, positions, norm), where it hears of users from there on; nothing, where
that would be larger than the picture itself (CLIP-H: 1.3 MB for .1 % of the tower's work, more to move than to
compute). So what is kept never takes more memory than the pictures it comes from. Of a prompt, its embedding is kept
where the text tower hears of nobody; what that tower's first layer is given is a row of a table already.

Everything is computed in fixed blocks, not when it is first asked for: a resumed training gets the same bytes.

Legend: M pictures, T tokens, D width of the encoder that looks at them, P width of the joint embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from perfusion.reward.backbones import Backbone, TwoTowers

__all__ = ["MOST_PROMPTS", "Frozen", "embed_pictures", "embed_prompts", "start_fits", "start_pictures"]

MOST_PROMPTS = 100_000  # embeddings kept at most: 25 MB for the twin, 400 MB for CLIP-H
_PICTURES, _PROMPTS = 256, 64  # a pass


@dataclass(frozen=True)
class Frozen:
    """What is kept of pictures and prompts; the default keeps nothing.

    Attributes:
        pictures: (M, T, D) of `start_pictures` or (M, P) of `embed_pictures`, a row for each picture of the table.
        prompts: embeddings (P,) by prompt.
    """

    pictures: Tensor | None = None
    prompts: Mapping[str, Tensor] | None = None


def embed_pictures(backbone: TwoTowers, pixels: Tensor) -> Tensor:
    """User-blind embeddings of pictures (M, 3, H, W) uint8: (M, P) on the CPU, not normalised."""
    return _blocks(backbone, pixels, lambda part: backbone.picture_embeds(backbone.picture_start(part)))


def start_pictures(backbone: Backbone, pixels: Tensor) -> Tensor:
    """What the first layer that looks at pictures is given of them, (M, 3, H, W) uint8: (M, T, D) on the CPU."""
    return _blocks(backbone, pixels, backbone.picture_start)


def start_fits(backbone: Backbone, pixels: Tensor) -> bool:
    """Whether what `start_pictures` gives takes no more memory than the pictures (M, 3, H, W) uint8."""
    tokens, width = backbone.start_shape
    return tokens * width * backbone.model.dtype.itemsize <= pixels[:1].numel()


@torch.no_grad()
def embed_prompts(backbone: TwoTowers, prompts: Collection[str], most: int | None = None) -> dict[str, Tensor]:
    """User-blind embeddings (P,) on the CPU, not normalised, by prompt; of the `most` shortest."""
    distinct = sorted(set(prompts), key=lambda prompt: (len(prompt), prompt))[:most]  # a pass holds little padding
    found: dict[str, Tensor] = {}
    for start in range(0, len(distinct), _PROMPTS):
        part = distinct[start : start + _PROMPTS]
        embedded = backbone.prompt_embeds(**backbone.tokens(part)).float().cpu()
        found.update(zip(part, embedded, strict=True))
    return found


@torch.no_grad()
def _blocks(backbone: Backbone, pixels: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
    """`compute` of prepared pictures, a block at a time, into one tensor."""
    found = torch.empty(0)
    for start in range(0, max(len(pixels), 1), _PICTURES):  # of no pictures, too, the result has its shape
        block = slice(start, start + _PICTURES)
        part = compute(backbone.prepare(pixels[block].to(backbone.device)))
        if start == 0:
            found = torch.empty(len(pixels), *part.shape[1:], dtype=part.dtype)
        found[block] = part
    return found
