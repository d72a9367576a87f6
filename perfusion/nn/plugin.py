"""The personalised plug-in: feature embeddings, crossing (Eq. 2) and the adaptive networks of a tower (Eq. 4).

Legend: B users, F features, D width and L layers of a tower.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from perfusion.nn.adaptive import AdaptiveNetwork
from perfusion.nn.crossing import CrossNetwork
from perfusion.nn.embedding import FeatureEmbedding

__all__ = ["AdaptiveStack", "PersonalPlugIn", "UserEncoder"]


class UserEncoder(nn.Module):
    """User features -> user representation u: embedding, then crossing (Eq. 2).

    Args:
        cardinalities: ids per feature, the unknown id 0 included.
        embedding_dim: width of each feature's vector.
        cross_layers: crossings.
        cross_norm: LayerNorm on the crossing's output.
        embedding_std: standard deviation of the initial embeddings. As long as biases are zero, crossing multiplies u_0
            by one number, the product over layers of 1 + u_0^T w_l. With embeddings of standard deviation 1 it is
            negative for about a third of the users, and users who resemble each other start on opposite sides.
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


class AdaptiveStack(nn.Module):
    """The 2L adaptive networks of one tower (Eq. 4).

    Args:
        width: width of u.
        hidden: hidden width of the networks.
        tower_width: D, hidden width of the tower.
        tower_layers: L, its layers.
    """

    def __init__(self, width: int, hidden: int, tower_width: int, tower_layers: int) -> None:
        super().__init__()
        self.attn = nn.ModuleList(AdaptiveNetwork(width, hidden, tower_width) for _ in range(tower_layers))
        self.ffn = nn.ModuleList(AdaptiveNetwork(width, hidden, tower_width) for _ in range(tower_layers))

    def forward(self, u: Tensor) -> Tensor:
        """Knowledge of shape (B, L, 2, D) from u (B, width): [:, l, 0] is u_attn^l, [:, l, 1] is u_ffn^l (Eq. 4)."""
        attn = torch.stack([network(u) for network in self.attn], dim=1)
        ffn = torch.stack([network(u) for network in self.ffn], dim=1)
        return torch.stack([attn, ffn], dim=2)


class PersonalPlugIn(nn.Module):
    """The personalised plug-in of one tower, or of several that share it (Fig. 3).

    Args:
        encoder: features -> u.
        hidden: hidden width of the adaptive networks.
        towers: name of each tower served -> (D, L), its width and layers. Towers of equal size share all networks;
            of unequal size (ViT-H: 24 layers of 1024 and 32 of 1280) they share the encoder, as far as sharing can go.
    """

    def __init__(self, encoder: UserEncoder, hidden: int, towers: Mapping[str, tuple[int, int]]) -> None:
        super().__init__()
        self.encoder = encoder
        self._stack = {name: f"{width}x{layers}" for name, (width, layers) in towers.items()}
        self.adaptive = nn.ModuleDict(
            {
                f"{width}x{layers}": AdaptiveStack(encoder.width, hidden, width, layers)
                for width, layers in towers.values()
            }
        )

    def forward(self, users: Tensor, tower: str) -> Tensor:
        """Knowledge for `tower` about `users` (B, F): (B, L, 2, D)."""
        return self.adaptive[self._stack[tower]](self.encoder(users))
