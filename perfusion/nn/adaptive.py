"""The adaptive network (Eq. 4): user representation -> what is added to one place of one Transformer layer."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["AdaptiveNetwork"]


class AdaptiveNetwork(nn.Module):
    """Two-layer GELU perceptron whose last layer starts at zero, so that it adds nothing before training (Eq. 4).

    Args:
        width: width of the user representation u.
        hidden: width of the hidden layer.
        out: width of the Transformer layer it feeds.
    """

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, hidden)
        self.activation = nn.GELU()
        self.last = nn.Linear(hidden, out)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.first.reset_parameters()
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, u: Tensor) -> Tensor:
        """(B, out) from u of shape (B, width)."""
        return self.last(self.activation(self.first(u)))
