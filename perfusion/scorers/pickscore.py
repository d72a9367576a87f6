"""PickScore: what people in general pick for a prompt; the user-blind baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from perfusion.scorers.cosine import CosineScore

__all__ = ["PickScore"]


@dataclass(frozen=True)
class PickScore(CosineScore):
    """exp(logit_scale) x cosine of prompt and picture; yuvalkirstain/PickScore_v1, or two towers tuned on our picks.

    Attributes:
        backbone: two towers tuned on picks, with its learned scale.
    """

    family: ClassVar[str] = "pickscore"

    @property
    def factor(self) -> float:
        return self.backbone.log_scale.detach().exp().item()
