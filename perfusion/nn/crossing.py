"""The feature-crossing network (Eq. 2): version 1 of the Deep & Cross Network, where every w_l is a vector."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["CrossNetwork", "cross_layer"]


def cross_layer(u_0: Tensor, u_l: Tensor, w_l: Tensor, b_l: Tensor) -> Tensor:
    """One crossing with its residual, u_{l+1} = u_0 u_l^T w_l + b_l + u_l (Eq. 2).

    Args:
        u_0, u_l: (B, D).
        w_l, b_l: (D,).
    """
    return u_0 * (u_l @ w_l).unsqueeze(-1) + b_l + u_l


class CrossNetwork(nn.Module):
    """Stacked crossings of the concatenated feature embeddings (Eq. 2).

    Args:
        width: D, the width of u_0.
        layers: number of crossings; each adds one polynomial degree.
        norm: LayerNorm on the output. The paper has none: its output grows with the product of the features, and a
            small data set needs the bound.
    """

    def __init__(self, width: int, layers: int, norm: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(layers, width))
        self.bias = nn.Parameter(torch.empty(layers, width))
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.weight.shape[1] ** -0.5)
        nn.init.zeros_(self.bias)
        if isinstance(self.norm, nn.LayerNorm):
            self.norm.reset_parameters()

    def forward(self, u_0: Tensor) -> Tensor:
        """u of shape (B, D) from u_0 of shape (B, D)."""
        u = u_0
        for w_l, b_l in zip(self.weight, self.bias, strict=True):
            u = cross_layer(u_0, u, w_l, b_l)
        return self.norm(u)
