"""Low-rank adapters on a U-Net's attention (Hu et al. 2022), the trained part of SPO: W x + B A x, of rank r.

A is drawn from a normal distribution of standard deviation 1/r and B is zero, as in the public SPO code, so that at
first the network is the one it was, bit for bit. Merged, an adapter leaves an ordinary U-Net.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

__all__ = ["LowRankLinear", "add_lora", "merge_lora", "without_lora"]


class LowRankLinear(nn.Module):
    """A frozen linear layer W with a trained addition B A, (..., I) -> (..., O).

    Args:
        base: the layer, (O, I); it is frozen.
        rank: rows of A, at least 1.
    """

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.normal_(self.down.weight, std=1 / rank)
        nn.init.zeros_(self.up.weight)
        self.enabled = True

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x)) if self.enabled else self.base(x)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The layer W + B A; changes the frozen layer in place."""
        self.base.weight += self.up.weight @ self.down.weight
        return self.base


def add_lora(unet: UNet2DConditionModel, rank: int) -> None:
    """Freeze a U-Net and put an adapter on each of its attentions' query, key, value and output layers, in place.

    The random half of the adapters comes from torch's global generator.
    """
    unet.requires_grad_(False)
    for part in [module for module in unet.modules() if isinstance(module, Attention)]:
        part.to_q, part.to_k, part.to_v = (LowRankLinear(layer, rank) for layer in (part.to_q, part.to_k, part.to_v))
        part.to_out[0] = LowRankLinear(part.to_out[0], rank)


def merge_lora(unet: UNet2DConditionModel) -> None:
    """Take what the adapters say into the weights they stand beside, and the adapters away, in place."""
    for part in [module for module in unet.modules() if isinstance(module, Attention)]:
        part.to_q, part.to_k, part.to_v = (layer.merged() for layer in (part.to_q, part.to_k, part.to_v))
        part.to_out[0] = part.to_out[0].merged()


@contextmanager
def without_lora(unet: UNet2DConditionModel) -> Iterator[None]:
    """Within, the U-Net is the one it was before: the reference, without a second copy."""
    adapters = [module for module in unet.modules() if isinstance(module, LowRankLinear)]
    for adapter in adapters:
        adapter.enabled = False
    try:
        yield
    finally:
        for adapter in adapters:
            adapter.enabled = True
