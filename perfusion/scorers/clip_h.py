"""CLIP-H: open_clip's ViT-H-14 trained on LAION-2B, blind to users."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from perfusion.scorers.cosine import CosineScore
from perfusion.scorers.weights import Source

__all__ = ["CLIP_H", "ClipHScore"]

ARCHITECTURE = "ViT-H-14"
CLIP_H = Source(
    "evaluate.weights.clip_h", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
)  # fmt: skip


@dataclass(frozen=True)
class ClipHScore(CosineScore):
    """Cosine of prompt and picture, in [-1, 1] (Table 2's CLIP-H).

    Attributes:
        backbone: open_clip's ViT-H-14 (laion2b_s32b_b79k), or its twin.
    """

    family: ClassVar[str] = "clip_h"
    factor: ClassVar[float] = 1.0
