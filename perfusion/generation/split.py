"""A U-Net's forward pass in two halves, so that frozen encoder blocks run once for the policy and its reference.

The halves are diffusers' own `UNet2DConditionModel.forward`, cut after the mid block; put together they give its output
bit for bit, forward and backward (tested against it).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

__all__ = ["Encoded", "Residuals", "decode", "encode", "expand_timesteps", "run_encoder"]


@dataclass(frozen=True)
class Encoded:
    """What the decoder needs of the encoder.

    Attributes:
        temb: (B, E) time embedding.
        context: (B, T, D) condition.
        skips: one (B, C_i, H_i, W_i) for each of the encoder's blocks, conv_in first (12 in SD1.5).
        mid: (B, C, H, W), the mid block's output.
    """

    temb: Tensor
    context: Tensor
    skips: tuple[Tensor, ...]
    mid: Tensor

    def rows(self, chosen: slice | Tensor) -> Encoded:
        """The same for some rows of the batch."""
        return Encoded(
            self.temb[chosen], self.context[chosen], tuple(skip[chosen] for skip in self.skips), self.mid[chosen]
        )


@dataclass(frozen=True)
class Residuals:
    """What an adaptive network adds to a decoder: to each skip connection and to the mid block's output."""

    skips: tuple[Tensor, ...]
    mid: Tensor

    def scaled(self, weight: Tensor) -> Residuals:
        """Each row of the batch multiplied by its weight, (B,)."""
        factor = weight[:, None, None, None]
        return Residuals(tuple(skip * factor for skip in self.skips), self.mid * factor)


def encode(unet: UNet2DConditionModel, z: Tensor, t: Tensor | int, context: Tensor) -> Encoded:
    """Encoder and mid block of a U-Net.

    Args:
        z: (B, C, H, W) noised latents.
        t: (B,) or one noise level.
        context: (B, T, D) condition.
    """
    return run_encoder(unet, z, expand_timesteps(t, z), context)


def run_encoder(unet: Any, z: Tensor, t: Tensor, context: Tensor) -> Encoded:
    """As `encode`, for anything with a U-Net's encoder parts (the adaptive network's copy has no decoder)."""
    temb = unet.time_embedding(unet.time_proj(t).to(z.dtype))
    sample = unet.conv_in(z)
    skips: tuple[Tensor, ...] = (sample,)
    for block in unet.down_blocks:
        if getattr(block, "has_cross_attention", False):
            sample, outputs = block(hidden_states=sample, temb=temb, encoder_hidden_states=context)
        else:
            sample, outputs = block(hidden_states=sample, temb=temb)
        skips += tuple(outputs)
    if getattr(unet.mid_block, "has_cross_attention", False):
        sample = unet.mid_block(sample, temb, encoder_hidden_states=context)
    else:
        sample = unet.mid_block(sample, temb)
    return Encoded(temb, context, skips, sample)


def decode(unet: UNet2DConditionModel, encoded: Encoded, residuals: Residuals | None = None) -> Tensor:
    """Decoder of a U-Net: (B, C, H, W), its prediction. With residuals, they are added to skips and mid first."""
    skips, sample = encoded.skips, encoded.mid
    if residuals is not None:
        skips = tuple(skip + extra for skip, extra in zip(skips, residuals.skips, strict=True))
        sample = sample + residuals.mid
    ragged = any(side % 2**unet.num_upsamplers for side in encoded.skips[0].shape[-2:])
    for index, block in enumerate(unet.up_blocks):
        count = len(block.resnets)
        skips, used = skips[:-count], skips[-count:]
        size = skips[-1].shape[2:] if ragged and index < len(unet.up_blocks) - 1 else None
        more = {"encoder_hidden_states": encoded.context} if getattr(block, "has_cross_attention", False) else {}
        sample = block(
            hidden_states=sample, temb=encoded.temb, res_hidden_states_tuple=used, upsample_size=size, **more
        )  # fmt: skip
    if unet.conv_norm_out is not None:
        sample = unet.conv_act(unet.conv_norm_out(sample))
    return unet.conv_out(sample)


def expand_timesteps(t: Tensor | int, z: Tensor) -> Tensor:
    """One noise level, or one a row -> (B,) on the device of z."""
    return torch.as_tensor(t, device=z.device).reshape(-1).expand(len(z))


def check_supported(config: Mapping[str, Any]) -> None:
    """Refuse U-Nets whose forward has parts the halves leave out.

    Raises:
        NotImplementedError: class or additional embeddings, centred input, or encoder_hid_proj (SDXL, Kandinsky ...).
    """
    extra = [
        name
        for name in (
            "class_embed_type",
            "addition_embed_type",
            "encoder_hid_dim",
            "num_class_embeds",
            "time_cond_proj_dim",
        )
        if config.get(name) is not None
    ]
    if extra or config.get("center_input_sample") or config.get("time_embedding_act_fn") is not None:
        raise NotImplementedError(
            f"U-Net with {extra or 'centred input or a time activation'}: not a Stable Diffusion 1.x U-Net"
        )
