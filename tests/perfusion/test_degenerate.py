"""Datasets at the edge, through validate, split, pickscore, reward, evaluate-reward: each runs or is refused by name.

Never a NaN, never a traceback: an error that a stage means to raise is a PerFusionError.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from perfusion.config import ClipConfig, DataConfig, GatesConfig, OptimiserConfig, PickScoreConfig, RewardConfig
from perfusion.data import encode_png, load_tables, split_dataset, write_dataset
from perfusion.errors import DataError
from perfusion.evaluation.reward import evaluate_reward
from perfusion.governance import reward_gate
from perfusion.loop import TrainingRun
from perfusion.reward import train_pickscore, train_reward, twin
from tasks.validation import validate

SIDE, PICTURES = 16, 12
OPTIMISER = OptimiserConfig(steps=3, lr=3e-3, warmup=1, log_every=1)
PROMPTS = ["dress, red", "coat", "long sleeves, blue"]
Frames = tuple[pd.DataFrame, pd.DataFrame]


def users_of(count: int) -> pd.DataFrame:
    styles = [("plain", "bold")[row % 2] for row in range(count)]
    return pd.DataFrame({"user_id": [f"u{row:03}" for row in range(count)], "style": styles})


def groups_of(users: int, each: int, size: int, picked: Callable[[int], list[bool]]) -> pd.DataFrame:
    """`each` records of every user, of `size` candidates; `picked` of a record's number says which are picked."""
    generator = np.random.default_rng(0)
    rows = range(users * each)
    return pd.DataFrame(
        {
            "record_id": [f"r{row:05}" for row in rows],
            "user_id": [f"u{row // each:03}" for row in rows],
            "created_at": [datetime(2026, 1, 1) + timedelta(hours=row) for row in rows],
            "prompt": [PROMPTS[row % len(PROMPTS)] for row in rows],
            "image_ids": [[f"i{i}" for i in generator.permutation(PICTURES)[:size]] for _ in rows],
            "picked": [picked(row) for row in rows],
        }
    )


def one_of(size: int) -> Callable[[int], list[bool]]:
    """Another candidate each time."""
    return lambda row: [place == row % size for place in range(size)]


@dataclass(frozen=True)
class Outcome:
    """What the stages said, one after the other."""

    validate: dict[str, Any]
    split: dict[str, Any]
    pickscore: dict[str, Any]
    reward: dict[str, Any]
    evaluation: dict[str, Any]
    folder: Path


def stages(folder: Path, frames: Frames, **data: Any) -> Outcome:
    """Run the reward half of a retraining at the smallest sizes, as its stages do."""
    users, groups = frames
    generator = np.random.default_rng(1)
    pictures = generator.integers(0, 256, (PICTURES, SIDE, SIDE, 3), dtype=np.uint8)
    write_dataset(folder / "data", users, groups, [(f"i{row}", encode_png(p)) for row, p in enumerate(pictures)])
    config = DataConfig(image_size=SIDE, **data)
    now = datetime(2026, 6, 1)
    report = validate(folder / "data", config, None, folder / "valid", folder / "quarantine", now=now)
    (folder / "split").mkdir()
    counts = split_dataset(folder / "valid", config, folder / "split")
    tables = load_tables(folder / "data", folder / "split", SIDE, splits=("train", "valid"))
    torch.manual_seed(0)
    twin(PROMPTS, SIDE, ClipConfig(width=16, layers=1, heads=2, patch=8, projection=8)).save(folder / "clip")
    blind = PickScoreConfig(optimiser=OPTIMISER, batch_groups=8, evaluate_every=2)
    told = RewardConfig(optimiser=OPTIMISER, batch_groups=8, evaluate_every=2, embedding_dim=4, adaptive_hidden=8)
    pickscore = train_pickscore(tables, folder / "clip", blind, folder / "pickscore", TrainingRun("pickscore", 0))
    reward = train_reward(tables, folder / "pickscore", told, folder / "reward", TrainingRun("reward", 0))
    gates = GatesConfig(resamples=50, min_users=2)
    evaluation = evaluate_reward(
        folder / "data", folder / "split", folder / "clip", folder / "pickscore", folder / "reward",
        folder / "evaluation", image_size=SIDE, twin=True, gates=gates, seed=0,
    )  # fmt: skip
    outcome = Outcome(report, counts, pickscore, reward, evaluation, folder)
    for part in (report, counts, pickscore, reward, evaluation):
        json.dumps(part, allow_nan=False)
    decision = reward_gate(pd.read_parquet(folder / "evaluation" / "groups.parquet"), gates)
    assert decision.verdict in ("pass", "fail", "inconclusive")
    return outcome


def test_an_ordinary_dataset_of_that_size_runs(tmp_path: Path):
    """What the cases below depart from."""
    found = stages(tmp_path, (users_of(12), groups_of(12, 14, 3, one_of(3))))
    assert found.split["used"] == 12 * 14
    assert 0 < found.evaluation["perfusion_rm"]["map"] <= 1
    assert math.isfinite(found.reward["valid_loss"])


@pytest.mark.parametrize(("picked", "reason"), [(True, "everything picked"), (False, "nothing picked")])
def test_every_group_tied_is_refused_by_the_minimum_of_usable_records(tmp_path: Path, picked: bool, reason: str):
    groups = groups_of(6, 12, 3, lambda row: [picked] * 3)
    with pytest.raises(DataError, match=rf"no user has 10 usable records \(data.min_records\).*'{reason}': 72"):
        stages(tmp_path, (users_of(6), groups))


def test_groups_of_one_are_refused_by_the_minimum_of_usable_records(tmp_path: Path):
    with pytest.raises(DataError, match=r"no user has 10 usable records \(data.min_records\); the most is 0"):
        stages(tmp_path, (users_of(6), groups_of(6, 12, 1, lambda row: [True])))


def test_groups_of_one_among_others_are_dropped_by_reason(tmp_path: Path):
    groups = groups_of(12, 20, 3, one_of(3))
    alone = groups.index % 3 == 0
    groups["image_ids"] = [ids[:1] if one else ids for ids, one in zip(groups["image_ids"], alone, strict=True)]
    groups["picked"] = [[True] if one else picks for picks, one in zip(groups["picked"], alone, strict=True)]
    found = stages(tmp_path, (users_of(12), groups))
    assert (
        found.validate["no_comparison"]["one candidate"] == alone.sum() == found.split["dropped"]["everything picked"]
    )
    assert found.split["in"] == found.split["used"] + found.split["filtered"] + sum(found.split["dropped"].values())


def test_no_user_with_enough_records_is_refused_by_the_minimum(tmp_path: Path):
    with pytest.raises(DataError, match=r"no user has 10 usable records \(data.min_records\); the most is 9, of 54"):
        stages(tmp_path, (users_of(6), groups_of(6, 9, 3, one_of(3))))


def test_one_user_alone_runs_without_a_wrong_user_and_without_bounds(tmp_path: Path):
    found = stages(tmp_path, (users_of(1), groups_of(1, 60, 3, one_of(3))))
    assert found.evaluation.get("wrong_user") is None
    assert found.evaluation["right_minus_wrong_user"] is None
    assert found.evaluation["perfusion_rm"]["map_ci"] == [None, None]  # nobody to resample
    assert 0 < found.evaluation["perfusion_rm"]["map"] <= 1


def test_a_single_user_held_out_for_cold_start_leaves_nothing_to_learn_from(tmp_path: Path):
    with pytest.raises(DataError, match="no training user"):
        stages(tmp_path, (users_of(1), groups_of(1, 30, 3, one_of(3))), cold_users=1.0)


def test_too_few_records_to_have_held_out_ones_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"no valid group has a picked candidate; check the split"):
        stages(tmp_path, (users_of(1), groups_of(1, 10, 3, one_of(3))), ratios=(1, 0, 0))


def test_a_feature_of_a_hundred_thousand_values_runs(tmp_path: Path):
    """Most users have no records: their values are not learnt, and mean "unknown" to the model."""
    users = pd.DataFrame({"user_id": [f"u{row:03}" for row in range(100_000)]})
    users["shop"] = [f"shop {row}" for row in range(100_000)]
    found = stages(tmp_path, (users, groups_of(12, 14, 3, one_of(3))))
    assert math.isfinite(found.reward["valid_loss"])
    codes = json.loads((tmp_path / "reward" / "features.json").read_text())["categories"]["shop"]
    assert len(codes) == found.split["users"]["known"]


def test_features_that_say_nothing_run(tmp_path: Path):
    """One value for all, none at all, numbers that are not finite."""
    users = users_of(12).assign(same="x", none=None, odd=[np.nan, np.inf, -np.inf, 1.0] * 3)
    users["none"] = users["none"].astype("string")
    found = stages(tmp_path, (users, groups_of(12, 14, 3, one_of(3))))
    assert math.isfinite(found.reward["valid_loss"])


def test_a_thousand_features_run(tmp_path: Path):
    """Each a column of categories; Eq. 2 is linear in their number."""
    generator = np.random.default_rng(2)
    columns = {f"f{row:04}": generator.choice(["a", "b", "c"], 12) for row in range(1000)}
    users = pd.concat([users_of(12), pd.DataFrame(columns)], axis=1)
    found = stages(tmp_path, (users, groups_of(12, 14, 3, one_of(3))))
    assert math.isfinite(found.reward["valid_loss"])
    assert len(pd.read_parquet(tmp_path / "evaluation" / "slices.parquet")["feature"].unique()) == 1001
