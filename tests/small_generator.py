"""The generator's trainings on a few 16-pixel pictures: networks of a few thousand weights, pretrained in a second."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch

from perfusion.config import (
    CodecConfig,
    DiffusionConfig,
    EncodeConfig,
    GeneratorConfig,
    OptimiserConfig,
    PreferenceConfig,
    SamplingConfig,
    TextConfig,
    UNetConfig,
)
from perfusion.data import Corpus, FeatureEncoder, GroupTable
from perfusion.generation.encoding import encode
from perfusion.generation.pretrain import pretrain_diffusion
from perfusion.generation.train import train_dpo
from perfusion.loop import TrainingRun

__all__ = ["ONE", "SIZE", "TWIN", "generator", "group_table", "make_home", "pictures", "preferences"]

SIZE = 16
ONE = OptimiserConfig(steps=1, lr=1e-3)
TWIN = DiffusionConfig(
    optimiser=OptimiserConfig(steps=3, lr=1e-3), batch_images=4,
    codec=CodecConfig(
        optimiser=OptimiserConfig(steps=3, lr=1e-3), batch_images=4, latent_channels=8, width=8, layers=1
    ),
    text=TextConfig(width=16, layers=1, heads=2, length=8), unet=UNetConfig(channels=(8, 16), heads=2, groups=4),
    sampling=SamplingConfig(steps=2),
)  # fmt: skip


def preferences(**changes) -> PreferenceConfig:
    return PreferenceConfig(**{"optimiser": ONE, "batch_groups": 4, "beta": 5.0, "scale_lr": False, **changes})


def generator(**changes) -> GeneratorConfig:
    return GeneratorConfig(**{"optimiser": ONE, "batch_groups": 4, "beta": 5.0, "scale_lr": False, **changes})


def pictures(count: int) -> torch.Tensor:
    return torch.randint(256, (count, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def group_table(groups: int = 12) -> GroupTable:
    """Groups of 3 to 5 candidates; the last two hold no comparison (nothing picked, everything picked)."""
    sizes = [3 + i % 3 for i in range(groups)]
    valid = torch.arange(5)[None] < torch.tensor(sizes)[:, None]
    picked = torch.zeros_like(valid)
    picked[:, 1] = True
    picked[3, 2] = True
    picked[-2] = False
    picked[-1] = valid[-1]
    index = torch.zeros(groups, 5, dtype=torch.long)
    index[valid] = torch.arange(sum(sizes))
    users = pd.DataFrame({"user_id": ["a", "b", "c", "d"], "style": ["x", "y", "x", "z"]})
    encoder = FeatureEncoder.fit(users)
    prompts = [("dress, long sleeves", "coat", "coat, v-neck")[i % 3] for i in range(groups)]
    return GroupTable(
        pictures(sum(sizes)), index, valid, picked, torch.arange(groups) % 4, encoder.transform(users), prompts,
        [f"r{i}" for i in range(groups)], list("abcd"), encoder, [f"i{i}" for i in range(sum(sizes))],
    )  # fmt: skip


def make_home(home: Path) -> Path:
    """A pretrained twin in `diffusion`, its encoded pictures in `encode`, a DPO arm in `dpo`."""
    families = {"kind": ["dress", "coat"], "neck": ["v-neck", "round-neck"], "sleeves": ["long sleeves"]}
    labels = torch.stack([torch.arange(20) % 2, torch.arange(20) % 3 - 1, torch.zeros(20, dtype=torch.long)], 1)
    pretrain_diffusion(Corpus(pictures(20), families, labels), TWIN, home / "diffusion", TrainingRun("diffusion", 0))
    tables = {"train": group_table()}
    encode(tables, home / "diffusion", EncodeConfig(batch_images=7, orders=2), home / "encode")
    train_dpo(tables, home / "encode", home / "diffusion", preferences(), home / "dpo", TrainingRun("dpo", 0))
    return home
