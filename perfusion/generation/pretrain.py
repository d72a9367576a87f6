"""Pretraining of the tiny twin of Stable Diffusion on captioned pictures: codec, then text encoder and U-Net together.

Captions state any subset of what is true of a picture, in any order, so that a prompt may say as much or as little as
it likes and the rest stays free.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from perfusion.config import DiffusionConfig
from perfusion.data.corpus import Corpus
from perfusion.generation.backbone import DiffusionBackbone, build_scheduler, build_unet
from perfusion.generation.codec import PatchCodec, to_unit, train_codec
from perfusion.generation.noising import error_weight, prediction_target
from perfusion.generation.preference import denoising_error
from perfusion.generation.text import build_text_encoder, build_tokenizer, embed_tokens, tokenise
from perfusion.loop import TrainingRun, train
from perfusion.seeding import derive_seed, generator_for

__all__ = ["pretrain_diffusion"]


def pretrain_diffusion(corpus: Corpus, config: DiffusionConfig, out: Path, run: TrainingRun) -> dict[str, float]:
    """Train codec, text encoder and U-Net on captioned pictures and save them in Stable Diffusion's layout.

    Args:
        corpus: captioned pictures; nobody's picks.
        config: sizes and schedules.
        out: folder to write (vae/, text_encoder/, tokenizer/, unet/, scheduler/, model_index.json).
        run: name, seed, state and callbacks; the codec keeps its state beside it under `{name}-codec`.

    Returns:
        The last training metrics and the codec's `psnr` (dB).
    """
    codec, codec_metrics = train_codec(corpus.pixels, config.codec, replace(run, name=f"{run.name}-codec"))
    codec.requires_grad_(False)
    views = [_encode_all(codec, pixels) for pixels in _views(corpus.pixels, config.flip)]
    latents = torch.stack(views, 1)  # (n, views, C, H, W)
    tokenizer = build_tokenizer(
        [phrase for values in corpus.families.values() for phrase in values], config.text.length
    )
    torch.manual_seed(derive_seed(run.seed, run.name, "init"))
    text_encoder = build_text_encoder(tokenizer, config.text)
    unet = build_unet(config, corpus.pixels.shape[-1])
    scheduler = build_scheduler(config)
    averaged = {"unet": copy.deepcopy(unet), "text_encoder": copy.deepcopy(text_encoder)}

    def objective(step: int) -> tuple[Tensor, dict[str, float]]:
        rows = torch.randint(len(latents), (config.batch_images,))
        generator = generator_for(run.seed, run.name, "captions", step)
        captions = _captions(corpus, rows, config, generator)
        context = embed_tokens(text_encoder, tokenise(tokenizer, captions))
        z = latents[rows, torch.randint(latents.shape[1], (len(rows),), generator=generator)]
        noise = torch.randn_like(z)
        t = torch.randint(scheduler.config.num_train_timesteps, (len(z),))
        prediction = unet(scheduler.add_noise(z, noise, t), t, context).sample
        error = denoising_error(prediction_target(scheduler, z, noise, t), prediction)
        return (error_weight(scheduler, t, config.weight_floor) * error).mean(), {"error": error.mean().item()}

    metrics = train(run, {"unet": unet, "text_encoder": text_encoder}, objective, config.optimiser, ema=averaged)
    backbone = DiffusionBackbone(
        codec, averaged["text_encoder"], tokenizer, averaged["unet"], scheduler
    ).freeze()  # fmt: skip
    save_backbone(backbone, config, out)
    return {**metrics, **{f"codec_{name}": value for name, value in codec_metrics.items()}}


def save_backbone(backbone: DiffusionBackbone, config: DiffusionConfig, out: Path) -> None:
    """Write a backbone as a pipeline without a personal part, with its sampling defaults."""
    from perfusion.generation.pipeline import PerFusionPipeline  # the pipeline knows the backbone, not the reverse

    PerFusionPipeline(
        **backbone.components(), num_inference_steps=config.sampling.steps,
        guidance_scale=config.sampling.guidance_scale, eta=config.sampling.eta,
    ).save_pretrained(out)  # fmt: skip


def _captions(corpus: Corpus, rows: Tensor, config: DiffusionConfig, generator: torch.Generator) -> list[str]:
    """A caption a row: some phrases in random order, or nothing."""
    empty = torch.rand(len(rows), generator=generator) < config.caption_dropout
    low, high = max(0.0, 2 * config.caption_keep - 1), min(1.0, 2 * config.caption_keep)
    shares = (low + (high - low) * torch.rand(len(rows), generator=generator)).tolist()  # short and long captions alike
    return [
        "" if blank else corpus.caption(row, generator, share)
        for row, blank, share in zip(rows.tolist(), empty.tolist(), shares, strict=True)
    ]


def _views(pixels: Tensor, flip: bool) -> list[Tensor]:
    """The pictures, and where asked for their mirror images."""
    return [pixels, pixels.flip(-1)] if flip else [pixels]


@torch.no_grad()
def _encode_all(codec: PatchCodec, pixels: Tensor, batch: int = 512) -> Tensor:
    """Latents of every picture, (n, C, H, W)."""
    return torch.cat([codec.encode(to_unit(part)).latent_dist.mode() for part in pixels.split(batch)])
