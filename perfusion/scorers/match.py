"""What a backbone by itself says of a picture and its prompt, for backbones that embed neither apart from the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from perfusion.reward import Backbone
from perfusion.reward.batches import spread
from perfusion.scorers.embedding import rows_of
from perfusion.scorers.protocol import check_batch, reported_name

__all__ = ["MatchScore"]

_PICTURES = 320  # a pass


@dataclass(frozen=True)
class MatchScore:
    """The backbone's own score of a pair, such as ViLT's rank output; blind to users.

    Attributes:
        backbone: any.
        twin: whether it is a tiny twin.
        family: the name its numbers are reported under, less the twin's mark.
    """

    backbone: Backbone
    twin: bool
    family: str
    encoder: ClassVar[None] = None

    @property
    def name(self) -> str:
        return reported_name(self.family, self.twin)

    @torch.no_grad()
    def score(
        self, prompts: list[str], pixels: Tensor, users: Tensor | None = None, valid: Tensor | None = None
    ) -> Tensor:
        """See `perfusion.scorers.Scorer`; users are ignored."""
        check_batch(prompts, pixels, users, valid)
        pictures, group, valid = rows_of(pixels, valid)
        parts = [torch.empty(0)]
        for rows in torch.arange(len(pictures)).split(_PICTURES):
            asked, place = group[rows].unique(return_inverse=True)
            tokens = self.backbone.tokens([prompts[row] for row in asked.tolist()])
            prepared = self.backbone.prepare(pictures[rows].to(self.backbone.device))
            parts.append(self.backbone.scores(tokens, prepared, place.to(self.backbone.device)).float().cpu())
        return spread(torch.cat(parts), valid)
