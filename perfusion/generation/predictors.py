"""Policy and reference on the same noised pictures: what each shares, and what each has to compute anew.

Legend: R rows, (C, H, W) a latent.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from perfusion.generation.pan import PersonalAdaptiveNetwork
from perfusion.generation.split import decode, encode

__all__ = ["Predictor", "predict_from_decoder", "predict_from_pan", "predict_from_unet"]

Predictor = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(z_t (R, C, H, W), t (R,), context (R, T, D), users (R, F)) -> predictions of (policy, reference)."""


def predict_from_unet(policy: UNet2DConditionModel, reference: UNet2DConditionModel) -> Predictor:
    """Every weight of the policy trains; the reference is a second network."""

    def predict(z: Tensor, t: Tensor, context: Tensor, users: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            from_reference = reference(z, t, context).sample
        return policy(z, t, context).sample, from_reference

    return predict


def predict_from_decoder(policy: UNet2DConditionModel, reference: UNet2DConditionModel) -> Predictor:
    """Only the policy's decoder trains: the encoder they share runs once, without gradient."""

    def predict(z: Tensor, t: Tensor, context: Tensor, users: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            encoded = encode(reference, z, t, context)
            from_reference = decode(reference, encoded)
        return decode(policy, encoded), from_reference

    return predict


def predict_from_pan(pan: PersonalAdaptiveNetwork, unet: UNet2DConditionModel) -> Predictor:
    """The adaptive network on a frozen U-Net, which without it is the reference: no second copy, one encoder pass."""

    def predict(z: Tensor, t: Tensor, context: Tensor, users: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            encoded = encode(unet, z, t, context)
            from_reference = decode(unet, encoded)
        return decode(unet, encoded, pan(z, t, context, pan.user_map(users))), from_reference

    return predict
