"""Scores that are a cosine of prompt and picture in one CLIP's joint embedding, whoever asks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from perfusion.scorers.embedding import Towers, cosines
from perfusion.scorers.protocol import check_batch, reported_name

__all__ = ["CosineScore"]


@dataclass(frozen=True)
class CosineScore(ABC):
    """`factor` x cosine of prompt and picture; blind to users.

    Attributes:
        backbone: a CLIP model, of transformers or of open_clip.
        twin: whether it is a tiny twin.
        family: the name its numbers are reported under, less the twin's mark.
    """

    backbone: Towers
    twin: bool
    family: ClassVar[str]
    encoder: ClassVar[None] = None

    @property
    def name(self) -> str:
        return reported_name(self.family, self.twin)

    @property
    @abstractmethod
    def factor(self) -> float:
        """What the cosine is multiplied by."""

    def score(
        self, prompts: list[str], pixels: Tensor, users: Tensor | None = None, valid: Tensor | None = None
    ) -> Tensor:
        """See `perfusion.scorers.Scorer`; users are ignored."""
        check_batch(prompts, pixels, users, valid)
        return self.factor * cosines(self.backbone, prompts, pixels, valid)
