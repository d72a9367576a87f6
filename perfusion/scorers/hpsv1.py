"""HPS v1: OpenAI's CLIP ViT-L/14 tuned on pictures that people chose, blind to users."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from perfusion.scorers.cosine import CosineScore
from perfusion.scorers.weights import Source

__all__ = ["HPSV1", "HpsV1Score"]

ARCHITECTURE = "ViT-L-14-quickgelu"  # OpenAI's weights were trained with QuickGELU
HPSV1 = Source("evaluate.weights.hpsv1", "tgxs002/align_sd (its README links the file)", ("hpc.pth",))


@dataclass(frozen=True)
class HpsV1Score(CosineScore):
    """Cosine of prompt and picture, in [-1, 1].

    Attributes:
        backbone: CLIP L/14 with the state dict of hpc.pth, or its twin.
    """

    family: ClassVar[str] = "hpsv1"
    factor: ClassVar[float] = 1.0
