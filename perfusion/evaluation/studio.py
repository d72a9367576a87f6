"""Held-out items in shards: what a worker needs to draw and judge some of them, and how the shards become one table.

Shapes: I items (user, prompt, seed), D width of an embedding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from perfusion.config import EvaluateConfig
from perfusion.data import read_groups, read_users
from perfusion.evaluation.arms import Arm, load_arms
from perfusion.evaluation.drawn import Drawn, draw, peak_mib, score_pictures
from perfusion.evaluation.ratings import training_ratings
from perfusion.fanout import stamp
from perfusion.progress import Progress
from perfusion.reward import TwoTowers, load_clip
from perfusion.scorers import Scorer, ScorerSources, build_scorers
from perfusion.scorers.embedding import picture_embeddings
from perfusion.scorers.true_utility import TrueUtility
from perfusion.world import load_truth

__all__ = ["Judged", "Shard", "Studio", "merge", "shards_of"]


@dataclass(frozen=True)
class Shard:
    """Some items that follow one another: of `with_slices`, and the number of the first."""

    first: int
    items: pd.DataFrame


@dataclass(frozen=True)
class Judged:
    """Items drawn with every arm, and judged.

    Attributes:
        rows: of `score_pictures`.
        drawn: by arm.
        embeddings: by arm, (I, D) of length 1, of the backbone.
        memory: largest of a process that drew, MiB.
    """

    rows: pd.DataFrame
    drawn: dict[str, Drawn]
    embeddings: dict[str, Tensor]
    memory: float


@dataclass(frozen=True, eq=False)
class Studio:
    """What draws and judges. It is a list of places: models are read where a shard is computed, once for all of them.

    Attributes:
        folders: of `data`, `split`, `clip`, `pickscore`, `reward`, `diffusion`, `sft`, `dpo` and `generator`.
        image_size: side in pixels at which training pictures are read.
        twin: whether the CLIP backbone is the tiny twin.
        config: sampling, scorers.
        seed: of what the heads of twins are fitted to.
    """

    folders: Mapping[str, Path]
    image_size: int
    twin: bool
    config: EvaluateConfig
    seed: int
    key: str = field(init=False)

    def __post_init__(self) -> None:
        models = [folder for name, folder in self.folders.items() if name != "data"]
        parts = (sorted(self.folders.items()), self.image_size, self.twin, self.config, self.seed, stamp(*models))
        object.__setattr__(self, "key", repr(parts))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Studio) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def arms(self) -> dict[str, Arm]:
        """base, sft, dpo and perfusion; read once for all shards of a process."""
        return _arms(self)

    def judge(self, shard: Shard) -> Judged:
        """Draw a shard's items with every arm, and judge them."""
        tools = _tools(self)
        drawn = draw(self.arms(), shard.items, tools.users, self.config.batch_pictures, told=False)
        rows = score_pictures(drawn, shard.items, tools.users, tools.scorers, tools.judge, shard.first, told=False)
        embeddings = {name: picture_embeddings(tools.backbone, arm.pixels) for name, arm in drawn.items()}
        return Judged(rows, drawn, embeddings, peak_mib())


@dataclass(frozen=True)
class _Tools:
    users: pd.DataFrame
    scorers: dict[str, Scorer]
    judge: TrueUtility | None
    backbone: TwoTowers


@lru_cache(maxsize=1)
def _arms(studio: Studio) -> dict[str, Arm]:
    at = studio.folders
    return load_arms(at["diffusion"], at["sft"], at["dpo"], at["generator"], studio.config.steps)


@lru_cache(maxsize=1)
def _tools(studio: Studio) -> _Tools:
    at = studio.folders
    groups = read_groups(at["split"] / "groups.parquet", extra=("split",))
    pictures, ratings = training_ratings(at["data"], groups, studio.image_size, studio.seed)
    sources = ScorerSources(at["clip"], at["pickscore"], at["reward"], studio.twin, pictures, ratings)
    truth = load_truth(at["data"])
    return _Tools(
        read_users(at["split"] / "users.parquet"), build_scorers(studio.config, sources),
        None if truth is None else TrueUtility(truth), load_clip(at["clip"]),
    )  # fmt: skip


def shards_of(items: pd.DataFrame, size: int) -> Iterator[Shard]:
    """Items in their order, `size` at a time, however many workers there are."""
    for first in range(0, len(items), size):
        yield Shard(first, items.iloc[first : first + size].reset_index(drop=True))


def merge(shards: Iterable[Judged], progress: Progress) -> Judged:
    """Shards in their order as one: rows by arm and then by item, as `score_pictures` gives them of all items.

    Args:
        progress: shown after each, in items.
    """
    parts: list[Judged] = []
    done = 0
    for part in shards:
        parts.append(part)
        done += len(next(iter(part.drawn.values())).pixels)
        progress.show(done, {})
    arms = list(parts[0].drawn)
    tables = [part.rows[part.rows["arm"] == arm] for arm in arms for part in parts]
    drawn, embeddings = {}, {}
    for arm in arms:
        pixels = torch.cat([part.drawn[arm].pixels for part in parts])
        seconds = sum(part.drawn[arm].seconds * len(part.drawn[arm].pixels) for part in parts) / len(pixels)
        drawn[arm] = Drawn(pixels, seconds)
        embeddings[arm] = torch.cat([part.embeddings[arm] for part in parts])
    return Judged(pd.concat(tables, ignore_index=True), drawn, embeddings, max(part.memory for part in parts))
