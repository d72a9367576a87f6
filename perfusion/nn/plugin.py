"""The personalised plug-in: feature embeddings, crossing (Eq. 2) and the adaptive networks of one tower (Eq. 4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from perfusion.nn.adaptive import AdaptiveNetwork
from perfusion.nn.crossing import CrossNetwork
from perfusion.nn.embedding import FeatureEmbedding

__all__ = ["PersonalPlugIn", "UserEncoder"]


class UserEncoder(nn.Module):
    """User features -> user representation u: embedding, then crossing (Eq. 2).

    Args:
        cardinalities: ids per feature, the unknown id 0 included.
        embedding_dim: width of each feature's vector.
        cross_layers: crossings.
        cross_norm: LayerNorm on the crossing's output.
        embedding_std: standard deviation of the initial embeddings.
    """

    def __init__(
        self,
        cardinalities: Sequence[int],
        embedding_dim: int,
        cross_layers: int,
        cross_norm: bool = False,
        embedding_std: float = 1.0,
    ) -> None:
        super().__init__()
        self.embedding = FeatureEmbedding(cardinalities, embedding_dim, embedding_std)
        self.crossing = CrossNetwork(self.embedding.width, cross_layers, cross_norm)

    @property
    def width(self) -> int:
        """Width of u."""
        return self.embedding.width

    def forward(self, users: Tensor) -> Tensor:
        """u of shape (B, width) from feature ids of shape (B, F)."""
        return self.crossing(self.embedding(users))


class PersonalPlugIn(nn.Module):
    """u -> one vector before attention and one before the feed-forward network of every layer of a tower (Eq. 4).

    Args:
        encoder: the user encoder; pass the same one to two plug-ins to share it between towers.
        hidden: hidden width of the adaptive networks.
        tower_width: D, hidden width of the tower.
        tower_layers: L, its layers; there are 2L adaptive networks.
    """

    def __init__(self, encoder: UserEncoder, hidden: int, tower_width: int, tower_layers: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.attn = nn.ModuleList(AdaptiveNetwork(encoder.width, hidden, tower_width) for _ in range(tower_layers))
        self.ffn = nn.ModuleList(AdaptiveNetwork(encoder.width, hidden, tower_width) for _ in range(tower_layers))

    def forward(self, users: Tensor) -> Tensor:
        """Knowledge of shape (B, L, 2, D): [:, l, 0] is u_attn^l, [:, l, 1] is u_ffn^l."""
        u = self.encoder(users)
        attn = torch.stack([network(u) for network in self.attn], dim=1)
        ffn = torch.stack([network(u) for network in self.ffn], dim=1)
        return torch.stack([attn, ffn], dim=2)
