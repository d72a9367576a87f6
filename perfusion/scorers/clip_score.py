"""CLIP Score: how well a picture shows what its prompt says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from perfusion.reward import Backbone
from perfusion.scorers.embedding import cosines
from perfusion.scorers.protocol import check_batch, reported_name

__all__ = ["ClipScore"]


@dataclass(frozen=True)
class ClipScore:
    """100 x cosine of prompt and picture, in [-100, 100]; the real one takes CLIP ViT-H-14 (Sec. 5.1.3).

    Attributes:
        backbone: a CLIP model that was never tuned on picks.
        twin: whether it is a tiny twin.
    """

    backbone: Backbone
    twin: bool
    encoder: ClassVar[None] = None

    @property
    def name(self) -> str:
        return reported_name("clip_score", self.twin)

    def score(self, prompts: list[str], pixels: Tensor, users: Tensor | None = None) -> Tensor:
        """See `perfusion.scorers.Scorer`; users are ignored."""
        check_batch(prompts, pixels, users)
        return 100.0 * cosines(self.backbone, prompts, pixels)
