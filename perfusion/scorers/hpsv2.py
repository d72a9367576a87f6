"""HPS v2 and v2.1: open_clip's ViT-H-14 tuned on HPD v2, blind to users. The two are not comparable with each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from perfusion.scorers.cosine import CosineScore
from perfusion.scorers.weights import Source

__all__ = ["HPSV2", "HPSV21", "HpsV2Score", "HpsV21Score"]

ARCHITECTURE = "ViT-H-14"
HPSV2 = Source("evaluate.weights.hpsv2", "xswu/HPSv2", ("HPS_v2_compressed.pt", "HPS_v2.pt"))
HPSV21 = Source("evaluate.weights.hpsv2.1", "xswu/HPSv2", ("HPS_v2.1_compressed.pt",))


@dataclass(frozen=True)
class HpsV2Score(CosineScore):
    """Cosine of prompt and picture, in [-1, 1].

    Attributes:
        backbone: ViT-H-14 with the state dict of HPS v2.0, or its twin.
    """

    family: ClassVar[str] = "hpsv2"
    factor: ClassVar[float] = 1.0


@dataclass(frozen=True)
class HpsV21Score(CosineScore):
    """Cosine of prompt and picture, in [-1, 1].

    Attributes:
        backbone: ViT-H-14 with the state dict of HPS v2.1, or its twin.
    """

    family: ClassVar[str] = "hpsv2.1"
    factor: ClassVar[float] = 1.0
