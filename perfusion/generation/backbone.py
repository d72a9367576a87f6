"""A Stable Diffusion backbone in its five parts: real weights by path or hub id, or the twin of the same classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor
from transformers import AutoTokenizer, CLIPTextModel, PreTrainedTokenizerBase

from perfusion.config import DiffusionConfig
from perfusion.errors import WeightsError
from perfusion.generation.codec import PatchCodec
from perfusion.model_folder import check_model_folder, reading

__all__ = ["DiffusionBackbone", "build_scheduler", "build_unet", "load_backbone", "load_unet"]

_CODECS: dict[str, type[Any]] = {"AutoencoderKL": AutoencoderKL, "PatchCodec": PatchCodec}


@dataclass
class DiffusionBackbone:
    """The parts of Stable Diffusion, frozen, in evaluation mode.

    Attributes:
        vae: AutoencoderKL or PatchCodec.
        text_encoder, tokenizer: prompts to conditions (P, T, D).
        unet: the denoiser.
        scheduler: noise schedule and sampler.
    """

    vae: Any
    text_encoder: CLIPTextModel
    tokenizer: PreTrainedTokenizerBase
    unet: UNet2DConditionModel
    scheduler: DDIMScheduler

    def components(self) -> dict[str, Any]:
        """The parts by the names of the Stable Diffusion folder layout."""
        return {
            "vae": self.vae, "text_encoder": self.text_encoder, "tokenizer": self.tokenizer, "unet": self.unet,
            "scheduler": self.scheduler,
        }  # fmt: skip

    def freeze(self) -> DiffusionBackbone:
        """No gradients, evaluation mode; returns itself."""
        for part in (self.vae, self.text_encoder, self.unet):
            part.requires_grad_(False).eval()
        return self


def build_unet(config: DiffusionConfig, image_size: int) -> UNet2DConditionModel:
    """The tiny twin's U-Net: cross-attention everywhere but at the finest resolution."""
    shape = config.unet
    crossed = len(shape.channels) - 1
    return UNet2DConditionModel(
        sample_size=image_size // config.codec.patch,
        in_channels=config.codec.latent_channels,
        out_channels=config.codec.latent_channels,
        block_out_channels=shape.channels,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * crossed,
        up_block_types=("CrossAttnUpBlock2D",) * crossed + ("UpBlock2D",),
        layers_per_block=shape.layers_per_block,
        cross_attention_dim=config.text.width,
        attention_head_dim=shape.heads,
        norm_num_groups=shape.groups,
    )


def build_scheduler(config: DiffusionConfig) -> DDIMScheduler:
    """DDIM over a schedule that ends in pure noise, so that training and sampling start from the same thing.

    Linear betas, not Stable Diffusion's scaled ones: eight of twenty sampling steps then lie below a signal-to-noise
    ratio of .01, where a picture of this size decides its colours; with four it averages them into brown.
    """
    return DDIMScheduler(
        num_train_timesteps=1000, beta_start=0.0001, beta_end=0.02, beta_schedule="linear", clip_sample=False,
        prediction_type=config.prediction, rescale_betas_zero_snr=config.prediction != "epsilon",
        timestep_spacing="trailing",
    )  # fmt: skip


def load_backbone(path: str | Path, dtype: torch.dtype = torch.float32) -> DiffusionBackbone:
    """Read the Stable Diffusion folder layout from a directory or a hub id.

    The sampler is DDIM with the noise schedule that the weights were trained with.

    Raises:
        WeightsError: a part is absent or unreadable; names the place and the remedy.
    """
    if Path(path).is_dir():
        check_model_folder(Path(path))
    kind = _read(path, "vae", lambda: AutoencoderKL.load_config(str(path), subfolder="vae"))["_class_name"]
    if kind not in _CODECS:
        raise WeightsError(f"{path}/vae: class {kind} is not known; known: {', '.join(_CODECS)}")
    tokenizer = _read(path, "tokenizer", lambda: AutoTokenizer.from_pretrained(
        _part(path, "tokenizer"), trust_remote_code=False, **_sub(path, "tokenizer")))  # fmt: skip
    return DiffusionBackbone(
        vae=_load(_CODECS[kind], path, "vae", dtype),
        text_encoder=_read(path, "text_encoder", lambda: CLIPTextModel.from_pretrained(
            _part(path, "text_encoder"), dtype=dtype, **_sub(path, "text_encoder"))),
        tokenizer=tokenizer,
        unet=_load(UNet2DConditionModel, path, "unet", dtype),
        scheduler=_read(path, "scheduler", lambda: DDIMScheduler.from_pretrained(str(path), subfolder="scheduler")),
    ).freeze()  # fmt: skip


def load_unet(path: str | Path, dtype: torch.dtype = torch.float32) -> UNet2DConditionModel:
    """Read a denoiser saved on its own (the DPO or SFT arm).

    Raises:
        WeightsError: it is absent or unreadable.
    """
    check_model_folder(Path(path))
    return _read(path, "", lambda: UNet2DConditionModel.from_pretrained(str(path), torch_dtype=dtype))


def latent_shape(unet: UNet2DConditionModel) -> tuple[int, int, int]:
    """(C, H, W) of the latents a denoiser was made for."""
    size = unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return unet.config.in_channels, height, width


def scaled_latents(vae: Any, moment: Tensor) -> Tensor:
    """Codec units -> the denoiser's units (about unit variance)."""
    return moment * vae.config.scaling_factor


def _part(path: str | Path, name: str) -> str:
    return str(Path(path) / name) if Path(path).is_dir() else str(path)


def _sub(path: str | Path, name: str) -> dict[str, Any]:
    return {} if Path(path).is_dir() else {"subfolder": name}


def _load(kind: type[ModelMixin], path: str | Path, name: str, dtype: torch.dtype) -> Any:
    return _read(path, name, lambda: kind.from_pretrained(str(path), subfolder=name, torch_dtype=dtype))


def _read(path: str | Path, name: str, load: Any) -> Any:
    """Call `load`; what the libraries raise for absent or broken files becomes one error with place and remedy."""
    with reading(
        f"{path}/{name}".rstrip("/"),
        "Give a directory in Stable Diffusion's layout (vae/ text_encoder/ tokenizer/ unet/ scheduler/) or a hub id "
        "that this machine can reach or has cached in diffusion.path, or leave diffusion.path empty to train the small "
        "twin",
    ):
        return load()
