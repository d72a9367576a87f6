"""A U-Net's forward pass in two halves, so that frozen encoder blocks run once for the policy and its reference.

The halves are diffusers' own `UNet2DConditionModel.forward`, cut after the mid block; put together they give its output
bit for bit, forward and backward (tested against it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

__all__ = [
    "Encoded",
    "Residuals",
    "decode",
    "decode_deep",
    "decode_finest",
    "embed_time",
    "encode",
    "encode_finest",
    "expand_timesteps",
    "run_encoder",
    "stack",
]


@dataclass(frozen=True)
class Encoded:
    """What the decoder needs of the encoder.

    Attributes:
        temb: (B, E) time embedding.
        context: (B, T, D) condition.
        skips: one (B, C_i, H_i, W_i) for each of the encoder's blocks, conv_in first (12 in SD1.5).
        mid: (B, C, H, W), the mid block's output; None where only the finest resolution was run.
    """

    temb: Tensor
    context: Tensor
    skips: tuple[Tensor, ...]
    mid: Tensor | None

    def rows(self, chosen: slice | Tensor) -> Encoded:
        """The same for some rows of the batch."""
        mid = None if self.mid is None else self.mid[chosen]
        return Encoded(self.temb[chosen], self.context[chosen], tuple(skip[chosen] for skip in self.skips), mid)

    def plus(self, residuals: Residuals) -> Encoded:
        """What a decoder reads that an adaptive network steers."""
        skips = tuple(skip + extra for skip, extra in zip(self.skips, residuals.skips, strict=self.mid is not None))
        return replace(self, skips=skips, mid=None if self.mid is None else self.mid + residuals.mid)


def stack(parts: Sequence[Encoded]) -> Encoded:
    """One batch of several."""
    if len(parts) == 1:
        return parts[0]
    mids = [part.mid for part in parts if part.mid is not None]
    return Encoded(
        torch.cat([part.temb for part in parts]),
        torch.cat([part.context for part in parts]),
        tuple(torch.cat(skips) for skips in zip(*(part.skips for part in parts), strict=True)),
        torch.cat(mids) if mids else None,
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
    descended = _descend(unet, z, embed_time(unet, z, t), context, unet.down_blocks)
    if getattr(unet.mid_block, "has_cross_attention", False):
        mid = unet.mid_block(descended.mid, descended.temb, encoder_hidden_states=context)
    else:
        mid = unet.mid_block(descended.mid, descended.temb)
    return replace(descended, mid=mid)


def encode_finest(unet: UNet2DConditionModel, z: Tensor, t: Tensor | int, context: Tensor) -> Encoded:
    """As `encode`, for the finest resolution alone: its own skips, and no `mid`."""
    descended = _descend(unet, z, embed_time(unet, z, expand_timesteps(t, z)), context, unet.down_blocks[:1])
    return replace(descended, skips=descended.skips[: len(unet.up_blocks[-1].resnets)], mid=None)


def embed_time(unet: Any, z: Tensor, t: Tensor) -> Tensor:
    """Noise levels (B,) -> time embedding (B, E)."""
    return unet.time_embedding(unet.time_proj(t).to(z.dtype))


def decode(unet: UNet2DConditionModel, encoded: Encoded, residuals: Residuals | None = None) -> Tensor:
    """Decoder of a U-Net: (B, C, H, W), its prediction. With residuals, they are added to skips and mid first."""
    steered = encoded if residuals is None else encoded.plus(residuals)
    return decode_finest(unet, steered, decode_deep(unet, steered))


def decode_deep(unet: UNet2DConditionModel, encoded: Encoded) -> Tensor:
    """The decoder up to its last block, which works at the finest resolution and takes this output."""
    assert encoded.mid is not None
    skips, sample = encoded.skips, encoded.mid
    ragged = any(side % 2**unet.num_upsamplers for side in encoded.skips[0].shape[-2:])
    for block in unet.up_blocks[:-1]:
        count = len(block.resnets)
        skips, used = skips[:-count], skips[-count:]
        sample = _ascend(block, sample, used, encoded, skips[-1].shape[2:] if ragged else None)
    return sample


def decode_finest(unet: UNet2DConditionModel, encoded: Encoded, deep: Tensor) -> Tensor:
    """The rest of the decoder, its last block and the output layers: (B, C, H, W), the prediction.

    Args:
        encoded: of `encode`, or of `encode_finest`: other skips than the finest are not read.
        deep: of `decode_deep`.
    """
    block = unet.up_blocks[-1]
    sample = _ascend(block, deep, encoded.skips[: len(block.resnets)], encoded, None)
    if unet.conv_norm_out is not None:
        sample = unet.conv_act(unet.conv_norm_out(sample))
    return unet.conv_out(sample)


def expand_timesteps(t: Tensor | int, z: Tensor) -> Tensor:
    """One noise level, or one a row -> (B,) on the device of z."""
    return torch.as_tensor(t, device=z.device).reshape(-1).expand(len(z))


def _descend(unet: Any, z: Tensor, temb: Tensor, context: Tensor, blocks: Any) -> Encoded:
    """conv_in and some down blocks; `mid` is the last one's output."""
    sample = unet.conv_in(z)
    skips: tuple[Tensor, ...] = (sample,)
    for block in blocks:
        if getattr(block, "has_cross_attention", False):
            sample, outputs = block(hidden_states=sample, temb=temb, encoder_hidden_states=context)
        else:
            sample, outputs = block(hidden_states=sample, temb=temb)
        skips += tuple(outputs)
    return Encoded(temb, context, skips, sample)


def _ascend(block: Any, sample: Tensor, skips: tuple[Tensor, ...], encoded: Encoded, size: Any) -> Tensor:
    """One up block."""
    more = {"encoder_hidden_states": encoded.context} if getattr(block, "has_cross_attention", False) else {}
    return block(hidden_states=sample, temb=encoded.temb, res_hidden_states_tuple=skips, upsample_size=size, **more)


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
