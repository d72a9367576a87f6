"""The networks that benchmarks run, with random weights: the sample's twin and Stable Diffusion v1.5.

Nothing but torch and diffusers is needed, so that `benchmarks/gpu.py` runs on a bare machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from perfusion.generation.pan import (
    PersonalAdaptiveNetwork,  # before diffusers: it mends a torchvision that is not whole
)

from diffusers import UNet2DConditionModel  # isort: skip

__all__ = ["CARDINALITIES", "SIZES", "Size", "SizeName", "build_parser"]

SizeName = Literal["twin", "sd15"]
CARDINALITIES = (12, 8, 6, 6, 5, 400)  # ids per user feature, the user's own last, about as in the sample marketplace


@dataclass(frozen=True)
class Size:
    """What a U-Net is built from and fed with.

    Attributes:
        unet: arguments of UNet2DConditionModel; what is not said is diffusers' default, which is SD1.5's.
        latent: side of its latents at the size it was made for.
        tokens: of an encoded prompt.
        pictures: that a training step works through, unless told otherwise.
    """

    unet: dict[str, Any]
    latent: int
    tokens: int
    pictures: int

    def build_unet(self, device: str, latent: int | None = None) -> UNet2DConditionModel:
        """A U-Net with random float32 weights, frozen."""
        with torch.device(device):
            unet = UNet2DConditionModel(sample_size=latent or self.latent, **self.unet)
        return unet.requires_grad_(False)

    def build_pan(self, unet: UNet2DConditionModel, device: str) -> PersonalAdaptiveNetwork:
        """A network on it that has something to say: its zero layers are not zero.

        It is made without memory first, as loading one does: to be built it makes a whole U-Net on the way.
        """
        with torch.device("meta"):
            pan = PersonalAdaptiveNetwork(dict(unet.config), CARDINALITIES)
        if device == "meta":
            return pan
        pan.to_empty(device=device)
        for weight in pan.parameters():
            torch.nn.init.normal_(weight, std=1e-3)
        pan.copy_blocks(unet)
        return pan

    def users(self, count: int) -> Tensor:
        """Random feature codes (count, F)."""
        return torch.stack([torch.randint(ids, (count,)) for ids in CARDINALITIES], dim=1)


SIZES: dict[SizeName, Size] = {
    "twin": Size(  # params.yaml: 48-pixel pictures, a code of 4x4 patches
        {
            "in_channels": 20, "out_channels": 20, "block_out_channels": (64, 96), "layers_per_block": 1,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "cross_attention_dim": 64, "attention_head_dim": 4,
            "norm_num_groups": 16,
        },
        latent=12, tokens=24, pictures=60,
    ),
    "sd15": Size({"cross_attention_dim": 768}, latent=64, tokens=77, pictures=4),
}  # fmt: skip


def build_parser(
    module: str, description: str | None, pictures: str, arms: Iterable[str], precisions: Iterable[str]
) -> argparse.ArgumentParser:
    """The arguments that benchmarks over sizes share.

    Args:
        module: under `benchmarks`.
        description: its docstring.
        pictures: help on the number of pictures.
        arms: names that `--peak`, which a benchmark calls itself with, may take beside "imports".
        precisions: that `--dtype` may take.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{module}", description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--size", choices=get_args(SizeName), default="twin")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--latent", type=int, help="side of the latents; default: the size's own, 64 for sd15")
    parser.add_argument("--pictures", type=int, help=pictures)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=precisions, help="default: fp32 on a processor, bf16 elsewhere")
    parser.add_argument("--only", choices=["time", "memory"], help="measure this alone; default: both")
    parser.add_argument("--peak", choices=["imports", *arms], help=argparse.SUPPRESS)
    return parser
