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
from perfusion.evaluation.ratings import training_ratings
from perfusion.evaluation.reward import group_rows, score_table
from perfusion.generation import PerFusionPipeline
from perfusion.reward import PerFusionRM
from perfusion.scorers import PersonalScore, Scorer, ScorerSources, build_scorers
from perfusion.scorers.true_utility import TrueUtility
from perfusion.world import load_truth

__all__ = ["ChampionEvidence", "champion_evidence", "rescore"]


@dataclass(frozen=True)
class ChampionEvidence:
    """What `perfusion.governance.promotion_gate` takes.

    Attributes:
        challenger: the challenger's pictures, now with `champion_rm` where the arm is `perfusion`.
        champion: the champion's pictures of the same items, arm `perfusion`.
        challenger_reward: test groups by the challenger's reward model.
        champion_reward: the same groups by the champion's.
    """

    challenger: pd.DataFrame
    champion: pd.DataFrame
    challenger_reward: pd.DataFrame
    champion_reward: pd.DataFrame


def champion_evidence(
    data_dir: Path, split_dir: Path, clip_dir: Path, pickscore_dir: Path, reward_dir: Path, reward_evaluation: Path,
    generator_evaluation: Path, champion_reward_dir: Path, champion_generator_dir: Path, *, image_size: int, twin: bool,
    config: EvaluateConfig, seed: int,
) -> ChampionEvidence:  # fmt: skip
    """Draw the challenger's items with the champion, and let both reward models judge both.

    Args:
        data_dir, split_dir, clip_dir, pickscore_dir, reward_dir: as in `evaluate_generator`; the challenger's.
        reward_evaluation: folder of the challenger's groups.parquet.
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
    old_pipe = PerFusionPipeline.from_pretrained(champion_generator_dir)
    arm = PipelineArm(old_pipe, personal=old_pipe.pan is not None, steps=config.steps)
    truth = load_truth(data_dir)
    pictures = pd.read_parquet(generator_evaluation / "pictures.parquet")
    challenger, champion = rescore(
        pictures, generator_evaluation, arm, users, scorers, PersonalScore(old_reward, "champion_rm"),
        None if truth is None else TrueUtility(truth), config.batch_pictures,
    )  # fmt: skip
    table = load_tables(data_dir, split_dir, image_size, encoder=old_reward.encoder, splits=("test",))
    scores = {"test": {"perfusion_rm": score_table(table["test"], PersonalScore(old_reward), "test")}}
    new = pd.read_parquet(reward_evaluation / "groups.parquet")
    return ChampionEvidence(challenger, champion, new[new["split"] == "test"], group_rows(table, scores, {}))


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
