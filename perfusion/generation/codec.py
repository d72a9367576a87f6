"""The tiny twin's picture codec: patches to latents by principal components, back by a linear map plus a small network.

It stands where Stable Diffusion has its AutoencoderKL and answers the same calls (`encode(x).latent_dist`,
`decode(z).sample`, `config.scaling_factor`). An autoencoder learned from nothing in the same minute came out worse: a
patch's principal components are optimal among linear codes and cost no training; what they drop, the decoder's
residual network learns back from the neighbouring patches. It is trained on noisy latents, so that it also mends
what the denoiser leaves over.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from perfusion.config import CodecConfig
from perfusion.loop import TrainingRun, train
from perfusion.seeding import derive_seed, generator_for

__all__ = ["PatchCodec", "from_unit", "to_unit", "train_codec"]

_LOG_VARIANCE = -60.0  # the code has no spread; DiagonalGaussianDistribution clamps this to -30


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 pictures [0, 255] -> float32 [-1, 1]."""
    return pixels.float() / 127.5 - 1.0


def from_unit(pictures: Tensor) -> Tensor:
    """Pictures about in [-1, 1] -> uint8 [0, 255]."""
    return ((pictures.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)


class _Residual(nn.Module):
    """x + conv(act(conv(act(x)))), at one resolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(F.silu(x))))


class PatchCodec(ModelMixin, ConfigMixin):
    """Linear patch code with a convolutional residual decoder.

    Args:
        patch: pixels along a patch; a latent is (latent_channels, S / patch, S / patch).
        latent_channels: principal components kept of a patch's 3 * patch^2 numbers.
        width: channels of the decoder's residual network.
        layers: its residual blocks.
        scaling_factor: as in AutoencoderKL; latents already have about unit variance here.
    """

    @register_to_config
    def __init__(
        self, patch: int = 4, latent_channels: int = 20, width: int = 64, layers: int = 2, scaling_factor: float = 1.0
    ) -> None:
        super().__init__()
        self.analysis = nn.Conv2d(3, latent_channels, patch, stride=patch).requires_grad_(False)
        self.synthesis = nn.ConvTranspose2d(latent_channels, 3, patch, stride=patch).requires_grad_(False)
        self.residual = nn.Sequential(
            nn.Conv2d(latent_channels, width, 3, padding=1),
            *(_Residual(width) for _ in range(layers)),
            nn.SiLU(),
            nn.Conv2d(width, 3 * patch * patch, 3, padding=1),
            nn.PixelShuffle(patch),
        )

    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        """Pictures (n, 3, S, S) in [-1, 1] -> distribution of latents (n, latent_channels, S/patch, S/patch)."""
        mean = self.analysis(x)
        moments = torch.cat([mean, torch.full_like(mean, _LOG_VARIANCE)], dim=1)
        posterior = DiagonalGaussianDistribution(moments)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def decode(self, z: Tensor, return_dict: bool = True, generator: torch.Generator | None = None) -> Any:
        """Latents -> pictures (n, 3, S, S), about in [-1, 1]."""
        picture = self.synthesis(z) + self.residual(z)
        return DecoderOutput(sample=picture) if return_dict else (picture,)

    @torch.no_grad()
    def fit_patches(self, pixels: Tensor, evenness: float) -> None:
        """Set both linear maps to the principal components of the pictures' patches.

        Args:
            pixels: (n, 3, S, S) uint8.
            evenness: in [0, 1]; 0 keeps the components' own sizes, 1 makes them equal. Latents have unit mean variance.
        """
        patch, kept = self.config.patch, self.config.latent_channels
        patches = F.unfold(to_unit(pixels), patch, stride=patch).transpose(1, 2).flatten(0, 1).double()
        mean = patches.mean(0)
        covariance = (patches - mean).T @ (patches - mean) / len(patches)
        variance, basis = torch.linalg.eigh(covariance)
        variance, basis = variance.flip(0)[:kept].clamp(min=1e-8), basis.flip(1)[:, :kept]
        sign = basis.gather(0, basis.abs().argmax(0, keepdim=True)).sign()  # eigenvectors come with either sign
        basis = basis * sign
        scale = variance.pow(-0.5 * evenness)
        scale = scale / (scale.square() * variance).mean().sqrt()
        _set(self.analysis, (basis * scale).T, -(mean @ basis) * scale)
        _set(self.synthesis, (basis / scale).T, torch.zeros(3))
        # the mean patch is the last layer's bias: PixelShuffle orders channels as unfold does
        last: Any = self.residual[-2]
        _set(last, torch.zeros_like(last.weight), mean)


def _set(layer: Any, weight: Tensor, bias: Tensor) -> None:
    layer.weight.copy_(weight.reshape(layer.weight.shape))
    layer.bias.copy_(bias)


def train_codec(pixels: Tensor, config: CodecConfig, run: TrainingRun) -> tuple[PatchCodec, dict[str, float]]:
    """Fit the linear code, then train the residual decoder on noisy latents.

    Args:
        pixels: (n, 3, S, S) uint8.

    Returns:
        The codec, and its metrics: `psnr` (dB, clean latents, on pictures it trained on) and `latent_std`.
    """
    torch.manual_seed(derive_seed(run.seed, run.name, "init"))
    codec = PatchCodec(config.patch, config.latent_channels, config.width, config.layers)
    few = pixels[torch.randperm(len(pixels), generator=generator_for(run.seed, run.name, "fit"))[:2048]]
    codec.fit_patches(few, config.evenness)

    def objective(step: int) -> tuple[Tensor, dict[str, float]]:
        rows = torch.randint(len(pixels), (config.batch_images,))
        x = to_unit(pixels[rows])
        z = codec.encode(x).latent_dist.mode()
        sigma = config.noise * torch.rand(len(z), 1, 1, 1)
        loss = F.mse_loss(codec.decode(z + sigma * torch.randn_like(z)).sample, x)
        return loss, {"psnr": psnr(loss)}

    train(run, {"codec": codec}, objective, config.optimiser)
    with torch.no_grad():
        x = to_unit(few[:256])
        z = codec.encode(x).latent_dist.mode()
        decoded = codec.decode(z).sample.clamp(-1, 1)
    return codec.eval(), {"psnr": psnr(F.mse_loss(decoded, x)), "latent_std": z.std().item()}


def psnr(error: Tensor) -> float:
    """Peak signal-to-noise ratio, dB, of a mean squared error of pictures in [-1, 1]."""
    return float(10 * torch.log10(4.0 / error.detach().clamp(min=1e-12)))
