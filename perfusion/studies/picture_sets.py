"""One generator on the frozen items, picture by picture: the raw material of every table of generators."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from perfusion.checkpoint import atomic_write
from perfusion.config import EvaluateConfig
from perfusion.data import read_groups, read_users
from perfusion.evaluation.arms import Arm
from perfusion.evaluation.drawn import draw, score_pictures
from perfusion.evaluation.images import to_png
from perfusion.evaluation.items import choose_items, with_slices
from perfusion.evaluation.ratings import training_ratings
from perfusion.scorers import ScorerSources, build_scorers
from perfusion.scorers.true_utility import TrueUtility
from perfusion.world import load_truth

__all__ = ["picture_set"]


def picture_set(
    name: str, arm: Arm, data_dir: Path, split_dir: Path, clip_dir: Path, pickscore_dir: Path, reward_dir: Path,
    out_dir: Path, *, image_size: int, twin: bool, config: EvaluateConfig, seed: int,
) -> dict[str, float]:  # fmt: skip
    """Draw the same held-out items as `perfusion.evaluation.generator.evaluate_generator`, with one arm, and judge.

    Writes to `out_dir`: pictures.parquet (one row a picture, as the evaluation's) and the pictures of the contact
    sheet's items.

    Args:
        name: of the arm.
        arm: the generator.
        data_dir, split_dir, clip_dir, pickscore_dir, reward_dir, image_size, twin, config, seed: as there.

    Returns:
        `seconds_per_picture`, and the mean of every score.
    """
    users = read_users(split_dir / "users.parquet")
    groups = read_groups(split_dir / "groups.parquet", extra=("split",))
    items = with_slices(choose_items(groups[groups["split"] == "test"], config.pairs, config.pictures, seed), users)
    pictures, ratings = training_ratings(data_dir, groups, image_size, seed)
    scorers = build_scorers(config, ScorerSources(clip_dir, pickscore_dir, reward_dir, twin, pictures, ratings))
    truth = load_truth(data_dir)
    drawn = {name: draw({"": arm}, items, users, config.batch_pictures)[""]}
    rows = score_pictures(drawn, items, users, scorers, None if truth is None else TrueUtility(truth))
    out_dir.mkdir(parents=True, exist_ok=True)
    rows.to_parquet(out_dir / "pictures.parquet", index=False)
    for row in rows.drop_duplicates("user_id").head(config.sheet_users).itertuples():
        atomic_write(out_dir / str(row.file), to_png(drawn[name].pixels[int(str(row.item))]))
    return {"seconds_per_picture": drawn[name].seconds, **_means(rows)}


def _means(rows: pd.DataFrame) -> dict[str, float]:
    numbers = rows.select_dtypes("number").drop(columns=["item", "seed"])
    return {str(column): float(value) for column, value in numbers.mean().items()}
