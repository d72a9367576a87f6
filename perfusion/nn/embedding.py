"""User features as one dense vector: v_1 + ... + v_F side by side (the input of Eq. 2)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from perfusion.errors import ConfigError, DataError

__all__ = ["FeatureEmbedding"]


class FeatureEmbedding(nn.Module):
    """One embedding table per user feature, kept as a single table with an offset per feature.

    Id 0 of every feature means "unknown"; its row starts at zero, so that an unknown feature says nothing until
    training (which masks features now and then) teaches it the average of what it stands for.

    Args:
        cardinalities: ids per feature, the unknown id included.
        dim: width of each feature's vector.
        std: standard deviation of the initial rows.
    """

    def __init__(self, cardinalities: Sequence[int], dim: int, std: float = 1.0) -> None:
        super().__init__()
        if not cardinalities or min(cardinalities) < 1:
            raise ConfigError(
                f"cardinalities {list(cardinalities)}: need at least one feature with at least the unknown id"
            )
        self.cardinalities = tuple(int(count) for count in cardinalities)
        self.dim = dim
        self.std = std
        self.table = nn.Embedding(sum(self.cardinalities), dim)
        self.reset_parameters()

    @property
    def width(self) -> int:
        """Width of the concatenated vector, F * dim."""
        return len(self.cardinalities) * self.dim

    def _first_rows(self, device: torch.device) -> Tensor:
        """Row of each feature's id 0, (F,)."""
        return torch.tensor(list(accumulate(self.cardinalities[:-1], initial=0)), device=device)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.table.weight, std=self.std)
        with torch.no_grad():
            self.table.weight[self._first_rows(self.table.weight.device)] = 0.0

    def forward(self, users: Tensor) -> Tensor:
        """Look up and concatenate.

        Args:
            users: (B, F) long, ids in [0, cardinality) per feature.

        Returns:
            (B, F * dim).

        Raises:
            DataError: another number of features, or an id out of its range.
        """
        if users.ndim != 2 or users.shape[1] != len(self.cardinalities):
            raise DataError(f"user features of shape {tuple(users.shape)}: need (B, {len(self.cardinalities)})")
        limits = torch.tensor(self.cardinalities, device=users.device)
        if not users.is_meta and bool(((users < 0) | (users >= limits)).any()):  # meta tensors hold no values
            raise DataError(
                f"user feature ids out of range: largest {users.amax(0).tolist()}, smallest {users.amin(0).tolist()}, "
                f"allowed [0, {list(self.cardinalities)}); encode users with the FeatureEncoder saved beside the model"
            )
        return self.table(users + self._first_rows(users.device)).flatten(1)
