"""The forward diffusion process and what a denoiser is asked for, over diffusers' schedulers (Sec. 3.2).

A real Stable Diffusion predicts the noise; the tiny twin predicts the clean latent, which at its size gives better
pictures, with a schedule that ends in pure noise (zero terminal signal-to-noise). Errors (Eq. 1) are always taken in
the scheduler's own kind of prediction, as the public Diffusion-DPO code does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import DDIMScheduler
from torch import Tensor

__all__ = ["beta_at", "error_weight", "prediction_target", "sample_timesteps", "signal_to_noise"]


def prediction_target(scheduler: DDIMScheduler, z: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """What the network should say at noise level t: the noise, the clean latent or the velocity, shape of z."""
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "sample":
        return z
    return scheduler.get_velocity(z, noise, t)


def signal_to_noise(scheduler: DDIMScheduler, t: Tensor) -> Tensor:
    """abar_t / (1 - abar_t), (B,) -> (B,); 0 where a picture is pure noise."""
    kept = scheduler.alphas_cumprod.to(t.device)[t]
    return kept / (1.0 - kept)


def error_weight(scheduler: DDIMScheduler, t: Tensor, floor: float) -> Tensor:
    """Weight of Eq. 1 by noise level, (B,): 1 / max(1 - abar_t, floor) when the clean latent is predicted, else 1.

    Without it a predictor of clean latents learns little from slightly noised pictures, where its error is small.
    """
    if scheduler.config.prediction_type != "sample":
        return torch.ones_like(t, dtype=torch.float32)
    return 1.0 / (1.0 - scheduler.alphas_cumprod.to(t.device)[t]).clamp(min=floor)


def sample_timesteps(count: int, ranges: Sequence[tuple[int, int]]) -> Tensor:
    """Noise levels (count,): each draw picks one of the half-open ranges, then a level in it, both uniformly."""
    low, high = torch.tensor(ranges, dtype=torch.long)[torch.randint(len(ranges), (count,))].T
    return low + (torch.rand(count) * (high - low)).long()


def beta_at(scheduler: DDIMScheduler, t: Tensor, beta: float, pivot: float | None, floor: float) -> Tensor:
    """beta at each noise level, (B,): constant without a pivot, else beta * clip(snr_t / pivot, floor, 1).

    Near pure noise the clean latent is hardly known and a small shift already decides colour and pattern; a constant
    beta that moves anything there lets the rest run away.
    """
    if pivot is None:
        return torch.full(t.shape, beta, device=t.device)
    return beta * (signal_to_noise(scheduler, t) / pivot).clamp(floor, 1.0)
