"""Captioned garments drawn at random, for pretraining."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from perfusion.data import dataset_corpus, read_dataset
from perfusion.data.corpus import Corpus
from perfusion.seeding import derive_seed
from perfusion.world.garments import CODES, FAMILIES, SIZE, render

__all__ = ["captioned_pictures", "corpus"]


def captioned_pictures(data_dir: Path, tables_dir: Path, count: int, seed: int, size: int) -> Corpus:
    """Captioned pictures for twins: `count` rendered anew for the sample world, the dataset's own otherwise.

    Args:
        data_dir: the dataset.
        tables_dir: its clean tables.
        count: pictures to render.
        seed: of the rendering.
        size: side in pixels.
    """
    if (data_dir / "world.json").exists():
        return corpus(count, seed, size)
    return dataset_corpus(read_dataset(data_dir, tables_dir), size)


def corpus(n: int, seed: int, size: int = SIZE) -> Corpus:
    """`n` garments with independent uniform attributes, all known; pictures are resized to `size` when it is not 48."""
    random = np.random.default_rng(derive_seed(seed, "world", "corpus"))
    codes = np.stack([random.integers(count, size=n) for count in CODES], axis=1)
    pixels = torch.from_numpy(render(codes)).permute(0, 3, 1, 2).contiguous()
    if size != SIZE:
        resized = functional.interpolate(pixels.float(), size=(size, size), mode="bilinear", antialias=True)
        pixels = resized.round().clamp(0, 255).to(torch.uint8)
    return Corpus(pixels, {name: list(values) for name, values in FAMILIES.items()}, torch.from_numpy(codes))
