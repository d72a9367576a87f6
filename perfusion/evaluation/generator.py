"""The generator on held-out users and prompts: every arm from the same noise, every scorer on every picture.

Shapes: I items (user, prompt, seed), A arms.
"""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from perfusion.checkpoint import atomic_write
from perfusion.config import EvaluateConfig, GatesConfig
from perfusion.data import read_groups, read_users
from perfusion.evaluation.arms import Arm, load_arms
from perfusion.evaluation.images import to_png
from perfusion.evaluation.items import choose_items, with_slices
from perfusion.evaluation.picture_metrics import diversity, generator_metrics
from perfusion.evaluation.ratings import training_ratings
from perfusion.evaluation.sheets import merchants_sheet, users_sheet
from perfusion.progress import Progress
from perfusion.reward import load_clip
from perfusion.scorers import Scorer, ScorerSources, build_scorers
from perfusion.scorers.embedding import picture_embeddings
from perfusion.scorers.true_utility import TrueUtility
from perfusion.seeding import derive_seed
from perfusion.world import load_truth

__all__ = [
    "Drawn",
    "costs",
    "draw",
    "evaluate_generator",
    "judge_pictures",
    "score_column",
    "score_pictures",
]

_SCORE_BATCH = 64


@dataclass(frozen=True)
class Drawn:
    """One arm's pictures.

    Attributes:
        pixels: (I, 3, S, S) uint8.
        seconds: for one picture.
    """

    pixels: Tensor
    seconds: float


def evaluate_generator(
    data_dir: Path, split_dir: Path, clip_dir: Path, pickscore_dir: Path, reward_dir: Path, diffusion_dir: Path,
    sft_dir: Path, dpo_dir: Path, generator_dir: Path, out_dir: Path, *, image_size: int, twin: bool,
    config: EvaluateConfig, gates: GatesConfig, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """Draw the same held-out items with every arm, judge them, and compare.

    Writes to `out_dir`: pictures.parquet (one row a picture: item, arm, every score, `file`), pictures/*.png,
    contact_sheet.png (rows users; base, DPO, PerFusion), merchants_sheet.png (one prompt, several users) and
    metrics.json.

    Args:
        data_dir: the dataset; when it is the planted world, true utility judges too.
        split_dir: users.parquet and groups.parquet with a column `split`; items come from split `test`.
        clip_dir, pickscore_dir, reward_dir, diffusion_dir, sft_dir, dpo_dir, generator_dir: earlier stages' folders.
        out_dir: folder of the results.
        image_size: side in pixels at which training pictures are read.
        twin: whether the CLIP backbone is the tiny twin.
        config: items, sampling, scorers.
        gates: `confidence`, `resamples` and `min_users`, so that figures and gates agree.
        seed: of the items and the bootstrap.

    Returns:
        See `perfusion.evaluation.picture_metrics.generator_metrics`.

    Raises:
        DataError: fewer than two users in the test split.
        WeightsError: a model is absent.
    """
    users = read_users(split_dir / "users.parquet")
    groups = read_groups(split_dir / "groups.parquet", extra=("split",))
    items = with_slices(choose_items(groups[groups["split"] == "test"], config.pairs, config.pictures, seed), users)
    pictures, ratings = training_ratings(data_dir, groups, image_size, seed)
    scorers = build_scorers(config, ScorerSources(clip_dir, pickscore_dir, reward_dir, twin, pictures, ratings))
    truth = load_truth(data_dir)
    judge = None if truth is None else TrueUtility(truth)
    arms = load_arms(diffusion_dir, sft_dir, dpo_dir, generator_dir, config.steps)
    drawn = draw(arms, items, users, config.batch_pictures)
    rows = score_pictures(drawn, items, users, scorers, judge)
    backbone = load_clip(clip_dir)
    spread = {name: diversity(picture_embeddings(backbone, arm.pixels)) for name, arm in drawn.items()}
    metrics = generator_metrics(rows, gates.interval_options(seed), costs(drawn), spread)
    _write(out_dir, rows, drawn, metrics)
    sheet = users_sheet(rows, {name: arm.pixels for name, arm in drawn.items()}, config.sheet_users)
    atomic_write(out_dir / "contact_sheet.png", to_png(sheet))
    sheet = merchants_sheet(arms, items, users, config.sheet_users, derive_seed(seed, "merchants-sheet"))
    atomic_write(out_dir / "merchants_sheet.png", to_png(sheet))
    return metrics


def draw(arms: Mapping[str, Arm], items: pd.DataFrame, users: pd.DataFrame, batch: int) -> dict[str, Drawn]:
    """Draw every item with every arm, and with the `perfusion` arm once more for another user: "wrong_user".

    Args:
        arms: by name.
        items: of `choose_items`.
        users: users.parquet.
        batch: pictures at a time; a picture does not depend on its batch, because every picture has its own noise.
    """
    plan = {name: (arm, "user_id") for name, arm in arms.items()}
    if "perfusion" in arms:
        plan["wrong_user"] = (arms["perfusion"], "wrong_user_id")
    progress = Progress("evaluate-generator draw", len(plan) * len(items))
    known = users.set_index("user_id", drop=False)
    drawn = {}
    for number, (name, (arm, column)) in enumerate(plan.items()):
        began, parts = time.perf_counter(), []
        for start in range(0, len(items), batch):
            part = items.iloc[start : start + batch]
            rows = known.loc[part[column]].reset_index(drop=True)
            parts.append(arm(part["prompt"].tolist(), rows, part["seed"].tolist()))
            progress.show(number * len(items) + start + len(part), {})
        drawn[name] = Drawn(torch.cat(parts), (time.perf_counter() - began) / len(items))
    return drawn


def score_pictures(
    drawn: Mapping[str, Drawn], items: pd.DataFrame, users: pd.DataFrame, scorers: Mapping[str, Scorer],
    judge: TrueUtility | None,
) -> pd.DataFrame:  # fmt: skip
    """Every scorer on every picture, always for the item's own user, whoever it was drawn for.

    Returns:
        A rows for each item: the item's columns, `item`, `arm`, `file`, one column a scorer, and the judge's columns.
    """
    names = list(drawn)
    pixels = torch.stack([drawn[name].pixels for name in names], dim=1)  # (I, A, 3, S, S)
    scores = {name: _scored(scorer, items, pixels, users) for name, scorer in scorers.items()}
    tables = []
    for place, arm in enumerate(names):
        table = items.reset_index(drop=True).assign(item=range(len(items)), arm=arm)
        table["file"] = [f"pictures/{number:05d}-{arm}.png" for number in table["item"]]
        for name, values in scores.items():
            table[name] = values[:, place].numpy()
        if judge is not None:
            table = table.join(judge_pictures(judge, table, pixels[:, place]))
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def judge_pictures(judge: TrueUtility, table: pd.DataFrame, pixels: Tensor) -> pd.DataFrame:
    """The planted truth's columns for one arm's pictures, (I, 3, S, S)."""
    return judge.judge(table["user_id"].tolist(), table["prompt"].tolist(), pixels)


def costs(drawn: Mapping[str, Drawn]) -> dict[str, float]:
    """What drawing took: seconds a picture of each arm, and this process's largest memory so far in MiB."""
    seconds = {f"seconds_per_picture_{name}": arm.seconds for name, arm in drawn.items()}
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds_per_picture": drawn["perfusion"].seconds, "memory_mib": memory, **seconds}


def score_column(scorer: Scorer, items: pd.DataFrame, pixels: Tensor, users: pd.DataFrame) -> Tensor:
    """One scorer's (I,) numbers for one picture of each item, (I, 3, S, S)."""
    return _scored(scorer, items, pixels[:, None], users)[:, 0]


def _scored(scorer: Scorer, items: pd.DataFrame, pixels: Tensor, users: pd.DataFrame) -> Tensor:
    """(I, A) scores of (I, A, 3, S, S); a personal scorer encodes the items' users by its own features."""
    prompts = items["prompt"].tolist()
    codes = None
    if scorer.encoder is not None:
        codes = scorer.encoder.transform(users.set_index("user_id", drop=False).loc[items["user_id"]])
    progress = Progress(f"evaluate-generator {scorer.name}", len(pixels))
    parts = []
    for start in range(0, len(pixels), _SCORE_BATCH):
        rows = slice(start, start + _SCORE_BATCH)
        parts.append(scorer.score(prompts[rows], pixels[rows], None if codes is None else codes[rows]))
        progress.show(min(start + _SCORE_BATCH, len(pixels)), {})
    return torch.cat(parts)


def _write(out_dir: Path, rows: pd.DataFrame, drawn: Mapping[str, Drawn], metrics: Mapping[str, Any]) -> None:
    (out_dir / "pictures").mkdir(parents=True, exist_ok=True)
    for row in rows[["item", "arm", "file"]].itertuples():
        (out_dir / str(row.file)).write_bytes(to_png(drawn[str(row.arm)].pixels[int(row.item)]))
    rows.to_parquet(out_dir / "pictures.parquet", index=False)
    atomic_write(out_dir / "metrics.json", json.dumps(metrics, indent=1, allow_nan=False).encode())
