"""PickScore: what people in general pick for a prompt; the user-blind baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from perfusion.reward import TwoTowers
from perfusion.scorers.cosine import CosineScore
from perfusion.scorers.weights import Source

__all__ = ["FROZEN_PICKSCORE", "FrozenPickScore", "PickScore"]

FROZEN_PICKSCORE = Source("evaluate.weights.pickscore_frozen", "yuvalkirstain/PickScore_v1", ("model.safetensors",))
PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"


@dataclass(frozen=True)
class PickScore(CosineScore):
    """exp(logit_scale) x cosine of prompt and picture; yuvalkirstain/PickScore_v1, or two towers tuned on our picks.

    Attributes:
        backbone: two towers tuned on picks, with its learned scale.
    """

    backbone: TwoTowers
    family: ClassVar[str] = "pickscore"

    @property
    def factor(self) -> float:
        return self.backbone.log_scale.detach().exp().item()


@dataclass(frozen=True)
class FrozenPickScore(PickScore):
    """PickScore as published, never tuned on our picks.

    Attributes:
        backbone: yuvalkirstain/PickScore_v1, or the twin.
    """

    family: ClassVar[str] = "pickscore_frozen"
