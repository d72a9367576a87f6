"""Challenger and champion on the same frozen items and groups, by both reward models: the promotion gate's evidence."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from perfusion.config import EvaluateConfig
from perfusion.data import load_tables, read_groups, read_users
from perfusion.errors import DataError
from perfusion.evaluation.arms import Arm, PipelineArm
from perfusion.evaluation.drawn import draw, score_column, score_pictures
from perfusion.evaluation.items import COLD_SPLITS, choose_items, with_slices
from perfusion.evaluation.ratings import training_ratings
from perfusion.evaluation.reward import SPLITS, group_rows, score_table
from perfusion.generation import PerFusionPipeline
from perfusion.reward import PerFusionRM
from perfusion.scorers import PersonalScore, Scorer, ScorerSources, build_scorers
from perfusion.scorers.true_utility import TrueUtility
from perfusion.world import load_truth

__all__ = ["ChampionEvidence", "champion_evidence", "cold_start", "rescore"]


@dataclass(frozen=True)
class ChampionEvidence:
    """What `perfusion.governance.promotion_gate` takes.

    Attributes:
        challenger: the challenger's pictures, now with `champion_rm` where the arm is `perfusion`.
        champion: the champion's pictures of the same items, arm `perfusion`.
        challenger_cold, champion_cold: the two's pictures, arm `perfusion`, for users nothing was learnt of; None where
            there are fewer than two such users.
        challenger_reward: held-out groups, cold start included, by the challenger's reward model.
        champion_reward: the same groups by the champion's.
    """

    challenger: pd.DataFrame
    champion: pd.DataFrame
    challenger_cold: pd.DataFrame | None
    champion_cold: pd.DataFrame | None
    challenger_reward: pd.DataFrame
    champion_reward: pd.DataFrame


def champion_evidence(
    data_dir: Path, split_dir: Path, clip_dir: Path, pickscore_dir: Path, reward_dir: Path, reward_evaluation: Path,
    generator_dir: Path, generator_evaluation: Path, champion_reward_dir: Path, champion_generator_dir: Path, *,
    image_size: int, twin: bool, config: EvaluateConfig, seed: int,
) -> ChampionEvidence:  # fmt: skip
    """Draw the challenger's items with the champion, and cold-start items with both; both reward models judge all.

    Args:
        data_dir, split_dir, clip_dir, pickscore_dir, reward_dir: as in `evaluate_generator`; the challenger's.
        reward_evaluation: folder of the challenger's groups.parquet.
        generator_dir: the challenger's pipeline.
        generator_evaluation: folder of the challenger's pictures.parquet and pictures/*.png.
        champion_reward_dir, champion_generator_dir: the champion's artifacts.
        image_size, twin, config, seed: as the challenger was evaluated.

    Raises:
        DataError: the challenger's evaluation is incomplete.
        WeightsError: one of the champion's artifacts does not load.
    """
    users = read_users(split_dir / "users.parquet")
    groups = read_groups(split_dir / "groups.parquet", extra=("split",))
    rated = training_ratings(data_dir, groups, image_size, seed)
    scorers = build_scorers(config, ScorerSources(clip_dir, pickscore_dir, reward_dir, twin, *rated))
    old_reward = PerFusionRM.from_pretrained(champion_reward_dir)
    champion_rm = PersonalScore(old_reward, "champion_rm")
    arms = {"challenger": _arm(generator_dir, config), "champion": _arm(champion_generator_dir, config)}
    truth = load_truth(data_dir)
    judge = None if truth is None else TrueUtility(truth)
    pictures = pd.read_parquet(generator_evaluation / "pictures.parquet")
    challenger, champion = rescore(
        pictures, generator_evaluation, arms["champion"], users, scorers, champion_rm, judge, config.batch_pictures
    )
    cold = groups[groups["split"].isin(COLD_SPLITS)]
    drawn = cold_start(arms, cold, users, {**scorers, "champion_rm": champion_rm}, judge, config, seed)
    table = load_tables(data_dir, split_dir, image_size, encoder=old_reward.encoder, splits=SPLITS)
    scores = {split: {"perfusion_rm": score_table(table[split], PersonalScore(old_reward), split)} for split in SPLITS}
    return ChampionEvidence(
        challenger, champion, drawn.get("challenger"), drawn.get("champion"),
        pd.read_parquet(reward_evaluation / "groups.parquet"), group_rows(table, scores, {}),
    )  # fmt: skip


def _arm(generator_dir: Path, config: EvaluateConfig) -> PipelineArm:
    pipe = PerFusionPipeline.from_pretrained(generator_dir)
    return PipelineArm(pipe, personal=pipe.pan is not None, steps=config.steps)


def cold_start(
    arms: Mapping[str, Arm], groups: pd.DataFrame, users: pd.DataFrame, scorers: Mapping[str, Scorer],
    judge: TrueUtility | None, config: EvaluateConfig, seed: int,
) -> dict[str, pd.DataFrame]:  # fmt: skip
    """Every arm's pictures, called `perfusion`, for users nothing was learnt of, by every scorer, from the same noise.

    Args:
        arms: by name, none of them called `perfusion`.
        groups: of these users.
        users: users.parquet.
        scorers: by name.
        judge: the truth, where there is one.
        config: `cold_pairs` and `batch_pictures`.
        seed: of the items.

    Returns:
        By the arms' names; {} with fewer than two such users, of whom nothing could be told.
    """
    if groups["user_id"].nunique() < 2:
        return {}
    items = with_slices(choose_items(groups, config.cold_pairs, 1, seed), users)
    rows = score_pictures(draw(arms, items, users, config.batch_pictures), items, users, scorers, judge)
    return {name: rows[rows["arm"] == name].assign(arm="perfusion") for name in arms}


def rescore(
    pictures: pd.DataFrame, folder: Path, champion: Arm, users: pd.DataFrame, scorers: Mapping[str, Scorer],
    champion_rm: Scorer, judge: TrueUtility | None, batch: int,
) -> tuple[pd.DataFrame, pd.DataFrame]:  # fmt: skip
    """Challenger's and champion's picture tables, both with every scorer and `champion_rm`.

    Args:
        pictures: the challenger's pictures.parquet.
        folder: its folder, for the pictures themselves.
        champion: draws the items anew.
        users: users.parquet.
        scorers: the challenger's, its reward model among them.
        champion_rm: the champion's reward model.
        judge: the truth, where there is one.
        batch: pictures drawn at a time.
    """
    own = pictures[pictures["arm"] == "perfusion"].sort_values("item")
    named = ["record_id", "user_id", "prompt", "seed", "wrong_user_id"]
    items = own[[*named, *(name for name in own if name.startswith("slice_"))]].reset_index(drop=True)
    drawn = draw({"champion": champion}, items, users, batch)
    table = score_pictures(drawn, items, users, {**scorers, "champion_rm": champion_rm}, judge)
    challenger = pictures.copy()
    seen = score_column(champion_rm, items, _pixels(own["file"].tolist(), folder), users)
    challenger.loc[own.index, "champion_rm"] = seen.numpy()
    return challenger, table.assign(arm="perfusion")


def _pixels(files: list[str], folder: Path) -> Tensor:
    """(n, 3, S, S) uint8 of stored pictures."""
    absent = [file for file in files if not (folder / file).is_file()]
    if absent:
        raise DataError(f"{folder / absent[0]}: absent, with {len(absent) - 1} more; run evaluate-generator again")
    pictures = [np.asarray(Image.open(io.BytesIO((folder / file).read_bytes())).convert("RGB")) for file in files]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
