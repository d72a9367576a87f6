"""PickScore: what people in general pick for a prompt; the user-blind baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from perfusion.reward import Backbone
from perfusion.scorers.embedding import cosines
from perfusion.scorers.protocol import check_batch, reported_name

__all__ = ["PickScore"]


@dataclass(frozen=True)
class PickScore:
    """exp(logit_scale) x cosine of prompt and picture; yuvalkirstain/PickScore_v1, or CLIP tuned on our picks.

    Attributes:
        backbone: a CLIP model tuned on picks, with its learned scale.
        twin: whether it is a tiny twin.
    """

    backbone: Backbone
    twin: bool
    encoder: ClassVar[None] = None

    @property
    def name(self) -> str:
        return reported_name("pickscore", self.twin)

    def score(self, prompts: list[str], pixels: Tensor, users: Tensor | None = None) -> Tensor:
        """See `perfusion.scorers.Scorer`; users are ignored."""
        check_batch(prompts, pixels, users)
        return self.backbone.clip.logit_scale.detach().exp().cpu() * cosines(self.backbone, prompts, pixels)
