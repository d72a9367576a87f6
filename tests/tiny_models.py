"""Tiny random models of the real classes, in a store, for tests that serve them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from perfusion.config import ClipConfig, DiffusionConfig, RewardConfig
from perfusion.data import FeatureEncoder, encode_png
from tasks.models.artifact import log_generator, log_reward
from tasks.registry import Registry, open_registry

__all__ = ["PROMPTS", "USERS", "make_store", "picture"]

USERS = pd.DataFrame({"user_id": ["u1", "u2", "u3"], "style": ["plain", "bold", "bold"], "age": [20.0, 30.0, np.nan]})
PROMPTS = ["dress, v-neck", "coat, long sleeves"]


def tiny_reward(folder: Path, encoder: FeatureEncoder) -> None:
    from perfusion.reward import PerFusionRM, twin

    torch.manual_seed(0)
    backbone = twin(PROMPTS, 16, ClipConfig(width=16, layers=1, heads=2, patch=8, projection=8))
    model = PerFusionRM.from_backbone(backbone, encoder.cardinalities, RewardConfig(embedding_dim=4), encoder)
    _disturb(model)
    model.save_pretrained(folder)


def tiny_generator(folder: Path, encoder: FeatureEncoder) -> None:
    from perfusion.generation import PatchCodec, PerFusionPipeline, PersonalAdaptiveNetwork
    from perfusion.generation.backbone import build_scheduler, build_unet
    from perfusion.generation.text import build_text_encoder, build_tokenizer

    torch.manual_seed(0)
    base = DiffusionConfig()
    config = base.model_copy(
        update={
            "codec": base.codec.model_copy(update={"latent_channels": 4, "width": 8, "layers": 1}),
            "text": base.text.model_copy(update={"width": 8, "layers": 1, "heads": 2, "length": 8}),
            "unet": base.unet.model_copy(update={"channels": (8, 16), "heads": 2, "groups": 4}),
        }
    )
    tokenizer = build_tokenizer(PROMPTS, 8)
    unet = build_unet(config, 16)
    pan = PersonalAdaptiveNetwork.from_unet(unet, encoder.cardinalities)
    _disturb(pan)
    codec = PatchCodec(patch=4, latent_channels=4, width=8, layers=1)
    text_encoder = build_text_encoder(tokenizer, config.text)
    PerFusionPipeline(
        vae=codec, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=build_scheduler(config),
        pan=pan, features=encoder, num_inference_steps=2, guidance_scale=2.0, user_scale=2.0, eta=0.5,
    ).save_pretrained(folder)  # fmt: skip


def _disturb(module: torch.nn.Module) -> None:
    """Leave the zero initialisation, at which no user makes a difference."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))


def make_store(root: Path, versions: int = 1) -> Registry:
    """A store in `root` with versions of both models, made from folders that are removed afterwards; no champion."""
    registry = open_registry(f"sqlite:///{root / 'mlflow.db'}", root)
    experiment = registry.client.create_experiment("shop", artifact_location=(root / "artifacts").as_uri())
    run_id = registry.client.create_run(experiment).info.run_id
    encoder = FeatureEncoder.fit(USERS)
    users = root / "users.parquet"
    USERS.to_parquet(users)
    tiny_reward(root / "reward", encoder)
    tiny_generator(root / "generator", encoder)
    for _ in range(versions):
        reward = log_reward(registry, run_id, "shop", root / "reward", users, image_size=16)
        log_generator(registry, run_id, "shop", root / "generator", users, judged_by=reward)
    for folder in ("reward", "generator"):
        shutil.rmtree(root / folder)
    users.unlink()
    return registry


def picture(value: int = 90) -> bytes:
    """A small PNG."""
    pixels = np.full((16, 16, 3), value, np.uint8)
    pixels[4:9, 2:12, 0] = 255
    return encode_png(pixels)
