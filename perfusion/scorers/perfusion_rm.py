"""PerFusionRM as a scorer: what this merchant would pick."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from perfusion.data import FeatureEncoder
from perfusion.reward import PerFusionRM
from perfusion.scorers.protocol import check_batch

__all__ = ["PersonalScore"]


@dataclass(frozen=True)
class PersonalScore:
    """scale x cosine of PerFusionRM's two towers, told for whom they look (Eq. 6).

    Attributes:
        model: the reward model.
        name: "perfusion_rm" for the current one; "champion_rm" for the champion's.
    """

    model: PerFusionRM
    name: str = "perfusion_rm"

    @property
    def encoder(self) -> FeatureEncoder | None:
        return self.model.encoder

    def score(
        self, prompts: list[str], pixels: Tensor, users: Tensor | None = None, valid: Tensor | None = None
    ) -> Tensor:
        """See `perfusion.scorers.Scorer`; without users it is the plain backbone."""
        check_batch(prompts, pixels, users, valid)
        return self.model.score(prompts, pixels, users, valid)
