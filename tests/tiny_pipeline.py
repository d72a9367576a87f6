"""A pipeline of random weights, a few thousand of them, and how tests draw with it."""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch

from perfusion.config import CodecConfig, DiffusionConfig, TextConfig, UNetConfig
from perfusion.data import FeatureEncoder
from perfusion.generation.backbone import build_scheduler, build_unet
from perfusion.generation.codec import PatchCodec
from perfusion.generation.pan import PersonalAdaptiveNetwork
from perfusion.generation.pipeline import PerFusionPipeline
from perfusion.generation.text import build_text_encoder, build_tokenizer

__all__ = ["A", "B", "build", "draw", "seeds"]

SMALL = DiffusionConfig(
    codec=CodecConfig(latent_channels=4, width=8, layers=1), text=TextConfig(width=16, layers=1, heads=2, length=8),
    unet=UNetConfig(channels=(8, 16), heads=2, groups=4),
)  # fmt: skip


def build(trained: bool) -> PerFusionPipeline:
    """A pipeline of random weights; `trained` makes the adaptive network speak."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer(["dress", "coat", "v-neck", "long sleeves"], SMALL.text.length)
    unet = build_unet(SMALL, 16)
    encoder = FeatureEncoder.fit(pd.DataFrame({"user_id": ["a", "b"], "style": ["x", "y"]}))
    codec, text_encoder = PatchCodec(4, 4, 8, 1), build_text_encoder(tokenizer, SMALL.text)
    pan = PersonalAdaptiveNetwork.from_unet(
        unet, encoder.cardinalities, embedding_dim=4, embedding_std=1.0, min_timestep=300
    )  # untrained users, well apart
    if trained:
        for conv in (pan.enter, pan.leave_mid, *pan.leave):
            torch.nn.init.normal_(conv.weight, std=0.5)
    return PerFusionPipeline(
        codec, text_encoder, tokenizer, unet, build_scheduler(SMALL), pan, encoder,
        num_inference_steps=4, guidance_scale=2.0, user_scale=2.0, eta=0.5,
    )  # fmt: skip


def seeds(*numbers: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(number) for number in numbers]


def draw(
    pipe: PerFusionPipeline, prompt: Any, user: Any = None, numbers: tuple[int, ...] = (1, 2), **options: Any
) -> torch.Tensor:
    return pipe(prompt, user, generator=seeds(*numbers), output_type="pt", num_images_per_prompt=2, **options).images


A, B = torch.tensor([1, 1]), torch.tensor([2, 2])
