"""Stable Diffusion's U-Net in miniature: four resolutions and 12 encoder blocks."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

__all__ = ["inputs", "small_unet"]


def small_unet(size: int = 8) -> UNet2DConditionModel:
    """The same random weights each time."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=size, in_channels=4, out_channels=4, block_out_channels=(8, 8, 16, 16),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        layers_per_block=2, cross_attention_dim=6, attention_head_dim=2, norm_num_groups=4,
    )  # fmt: skip


def inputs(size: int = 8, batch: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Latents (B, 4, size, size), noise levels (B,) and conditions (B, 5, 6)."""
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(batch, 4, size, size, generator=generator)
    return z, torch.tensor([3, 500, 999])[:batch], torch.randn(batch, 5, 6, generator=generator)
