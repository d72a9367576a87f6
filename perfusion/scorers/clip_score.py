"""CLIP Score: how well a picture shows what its prompt says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from perfusion.scorers.cosine import CosineScore

__all__ = ["ClipScore"]


@dataclass(frozen=True)
class ClipScore(CosineScore):
    """100 x cosine of prompt and picture, in [-100, 100]; the real one takes CLIP ViT-H-14 (Sec. 5.1.3).

    Attributes:
        backbone: a CLIP model that was never tuned on picks.
    """

    family: ClassVar[str] = "clip_score"
    factor: ClassVar[float] = 100.0
