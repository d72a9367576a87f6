"""Ratings of pictures by what was picked, for scorers whose twins are fitted to some."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from perfusion.data import ImageStore
from perfusion.seeding import derive_seed

__all__ = ["training_ratings"]

_RATED_GROUPS = 800  # training groups whose picks rate pictures for the aesthetic twin


def training_ratings(data_dir: Path, groups: pd.DataFrame, image_size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Training pictures (n, 3, S, S) and ratings (n,): 1 + 9 x the share of the groups showing it that picked it."""
    train = groups[groups["split"] == "train"]
    turn = pd.Series([derive_seed(seed, "rated", record) for record in train["record_id"]], index=train.index)
    chosen = train.loc[turn.sort_values().index[:_RATED_GROUPS]]
    shown = pd.DataFrame({
        "image": [image for images in chosen["image_ids"] for image in images],
        "picked": [float(pick) for picks in chosen["picked"] for pick in picks],
    })  # fmt: skip
    share = shown.groupby("image")["picked"].mean()
    pixels = ImageStore(data_dir / "images").pixels(share.index.tolist(), image_size)
    return pixels, torch.tensor(1 + 9 * share.to_numpy(), dtype=torch.float32)
