"""The reward model on held-out groups: against the user-blind baseline, its controls and the planted world's ceiling.

Shapes: G groups, N candidates, B groups of a batch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from perfusion.checkpoint import atomic_write
from perfusion.config import GatesConfig
from perfusion.data import GroupTable, load_tables, read_users
from perfusion.errors import DataError
from perfusion.evaluation.controls import random_scores, wrong_users
from perfusion.evaluation.ranking import group_aucs, group_average_precision, ranking_report
from perfusion.progress import Progress
from perfusion.reward import PerFusionRM, TwoTowers, load_backbone
from perfusion.scorers import ClipScore, PersonalScore, PickScore, Scorer
from perfusion.scorers.cosine import CosineScore
from perfusion.scorers.match import MatchScore
from perfusion.scorers.tables import RowScorer, row_scorer
from perfusion.statistics import cluster_statistic, paired_difference
from perfusion.world import load_truth
from perfusion.world.references import reference_scores

__all__ = [
    "CONTESTANTS",
    "RewardScorers",
    "blind_scorer",
    "calibration",
    "candidate_scores",
    "evaluate_reward",
    "feature_slices",
    "group_rows",
    "reward_metrics",
    "score_groups",
    "score_table",
]

#: Splits that are scored: held-out groups of known users, users held out entirely, users under the record filter.
SPLITS = ("test", "cold", "few")
#: Whose scores are compared; "wrong_user" is PerFusionRM told another user's features.
CONTESTANTS = ("perfusion_rm", "user_blind", "wrong_user", "clip", "random")
_BATCH = 64


@dataclass(frozen=True)
class RewardScorers:
    """The contestants.

    Attributes:
        personal: PerFusionRM.
        blind: PickScore tuned on the same picks.
        clip: the backbone before any pick was seen.
    """

    personal: Scorer
    blind: Scorer
    clip: Scorer


def evaluate_reward(
    data_dir: Path, split_dir: Path, clip_dir: Path, pickscore_dir: Path, reward_dir: Path, out_dir: Path, *,
    image_size: int, twin: bool, gates: GatesConfig, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """Score every held-out group by every contestant.

    Writes to `out_dir`: groups.parquet (one row a group, what the reward gate reads), scores.parquet (PerFusionRM's
    score of every candidate, what the load gate reproduces), slices.parquet (gain per value of each user feature),
    calibration.csv and metrics.json.

    Args:
        data_dir: the dataset; when it is the planted world, its reference scorers are computed too.
        split_dir: users.parquet and groups.parquet with a column `split`.
        clip_dir, pickscore_dir, reward_dir: folders of the earlier stages.
        image_size: side in pixels at which pictures are read.
        twin: whether the backbone is the tiny twin.
        gates: `confidence`, `resamples` and `min_users`, so that figures and gates agree.
        seed: of controls and bootstrap.

    Returns:
        See `reward_metrics`.

    Raises:
        DataError: no held-out group of known users.
        WeightsError: a model is absent.
    """
    model = PerFusionRM.from_pretrained(reward_dir)
    truth = load_truth(data_dir)
    tables = load_tables(data_dir, split_dir, image_size, encoder=model.encoder, splits=SPLITS)
    scorers = RewardScorers(
        PersonalScore(model), blind_scorer(PickScore, pickscore_dir, twin), blind_scorer(ClipScore, clip_dir, twin)
    )
    scores = {split: score_groups(tables[split], scorers, split, seed) for split in SPLITS}
    references = {}
    if truth is not None:  # which looks at picks alone
        learnt = load_tables(data_dir, split_dir, image_size, model.encoder, ("train", "valid"), pictures=False)
        references = {"test": reference_scores(truth, {**tables, **learnt})}
    rows = group_rows(tables, scores, references)
    options = gates.interval_options(seed)
    metrics = reward_metrics(tables, scores, rows, references.get("test", {}), options)
    out_dir.mkdir(parents=True, exist_ok=True)
    rows.to_parquet(out_dir / "groups.parquet", index=False)
    candidate_scores(tables, scores, "perfusion_rm").to_parquet(out_dir / "scores.parquet", index=False)
    slices = feature_slices(rows, read_users(split_dir / "users.parquet"), options)
    slices.to_parquet(out_dir / "slices.parquet", index=False)
    calibration(tables["test"], scores["test"]["perfusion_rm"]).to_csv(out_dir / "calibration.csv", index=False)
    atomic_write(out_dir / "metrics.json", json.dumps(metrics, indent=1, allow_nan=False).encode())
    return metrics


def blind_scorer(family: type[CosineScore], folder: Path, twin: bool) -> Scorer:
    """The backbone in `folder` as a user-blind scorer: a cosine, or of one encoder its own score."""
    backbone = load_backbone(folder)
    if isinstance(backbone, TwoTowers):
        return family(backbone, twin)
    return MatchScore(backbone, twin, backbone.kind)


def score_groups(table: GroupTable, scorers: RewardScorers, split: str, seed: int) -> dict[str, Tensor]:
    """Scores of every contestant: name -> (G, N) float32, anything on padding.

    With a single user in the split nobody can lend him other features: then there is no "wrong_user".
    """
    askers = {"perfusion_rm": table.user_index}
    if len(torch.unique(table.user_index)) > 1:
        askers["wrong_user"] = wrong_users(table.user_index, seed)
    scores = {"random": random_scores((len(table), table.valid.shape[1]), seed)}
    personal = row_scorer(scorers.personal, table, passes=len(askers))
    for name, users in askers.items():
        scores[name] = _scored(table, personal, table.users[users], f"{name} {split}")
    for name, scorer in (("user_blind", scorers.blind), ("clip", scorers.clip)):
        scores[name] = _scored(table, row_scorer(scorer, table), None, f"{name} {split}")
    return scores


def score_table(table: GroupTable, scorer: Scorer, note: str) -> Tensor:
    """(G, N) scores of any scorer, told the features of each group's own user if it has an encoder; 0 at padding."""
    users = None if scorer.encoder is None else table.users[table.user_index]
    return _scored(table, row_scorer(scorer, table), users, f"{scorer.name} {note}")


def _scored(table: GroupTable, score: RowScorer, users: Tensor | None, note: str) -> Tensor:
    progress = Progress(f"evaluate-reward {note}", len(table))
    parts = [torch.zeros(0, table.valid.shape[1])]
    for start in range(0, len(table), _BATCH):
        rows = torch.arange(start, min(start + _BATCH, len(table)))
        parts.append(score(rows, None if users is None else users[rows]))
        progress.show(int(rows[-1]) + 1, {})
    return torch.cat(parts)


def group_rows(
    tables: Mapping[str, GroupTable], scores: Mapping[str, Mapping[str, Tensor]],
    references: Mapping[str, Mapping[str, np.ndarray]],
) -> pd.DataFrame:  # fmt: skip
    """One row for each group that can be ranked: names, sizes, and the `ap_*` and `auc_*` of each contestant.

    Args:
        tables: by split.
        scores: split -> contestant -> (G, N).
        references: split -> scorer of the planted world -> (G, N).
    """
    parts = []
    for split, contestants in scores.items():
        table = tables[split]
        picked, valid = table.picked.numpy(), table.valid.numpy()
        rows = pd.DataFrame({
            "record_id": table.record_ids, "user_id": _users(table), "split": split,
            "candidates": valid.sum(1), "picked": (picked & valid).sum(1),
        })  # fmt: skip
        for name, values in {**references.get(split, {}), **contestants}.items():
            numbers = np.asarray(values, dtype=np.float64)
            rows[f"ap_{name}"] = group_average_precision(numbers, picked, valid)
            rows[f"auc_{name}"] = group_aucs(numbers, picked, valid)
        parts.append(rows[(rows["picked"] > 0) & (rows["picked"] < rows["candidates"])])
    return pd.concat(parts, ignore_index=True)


def candidate_scores(
    tables: Mapping[str, GroupTable], scores: Mapping[str, Mapping[str, Tensor]], name: str
) -> pd.DataFrame:
    """One row for each candidate of each group, in the group's order: `record_id`, `split`, `image_id`, `score`.

    Args:
        tables: by split.
        scores: split -> contestant -> (G, N).
        name: of the contestant.
    """
    parts = []
    for split, contestants in scores.items():
        table = tables[split]
        group, place = table.valid.nonzero(as_tuple=True)
        parts.append(pd.DataFrame({
            "record_id": [table.record_ids[row] for row in group.tolist()], "split": split,
            "image_id": [table.image_ids[row] for row in table.image_index[group, place].tolist()],
            "score": contestants[name][group, place].numpy(),
        }))  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def reward_metrics(
    tables: Mapping[str, GroupTable], scores: Mapping[str, Mapping[str, Tensor]], rows: pd.DataFrame,
    references: Mapping[str, np.ndarray], options: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Headline figures on the test split, every contestant's report on every split, paired gains.

    Args:
        tables: by split.
        scores: split -> contestant -> (G, N).
        rows: of `group_rows`.
        references: the planted world's scorers on the test split, name -> (G, N); empty without a truth.
        options: of `perfusion.statistics.cluster_bootstrap`.

    Raises:
        DataError: no group of known users can be ranked.
    """
    test = rows[rows["split"] == "test"]
    if test.empty:
        raise DataError(
            "no test group has both a picked and an unpicked picture; add records or lower data.min_records"
        )
    reports = {
        split: {name: _report(tables[split], values, options, split) for name, values in scores[split].items()}
        for split in scores
    }
    ceilings = {name: _report(tables["test"], values, options, "test") for name, values in references.items()}
    known = reports["test"]
    return {
        "floor_map": known["random"]["floor_map"],
        "user_blind_gauc": known["user_blind"]["gauc"],
        "reachable_gauc": ceilings["reachable"]["gauc"] if ceilings else None,
        **known,
        **_gap_closed(test, options),
        "gain_over_user_blind": _gains(test, "user_blind", options),
        "right_minus_wrong_user": _gains(test, "wrong_user", options),
        "cold_gain_over_user_blind": _gains(rows[rows["split"].isin(("cold", "few"))], "user_blind", options),
        "calibration_error": _calibration_error(calibration(tables["test"], scores["test"]["perfusion_rm"])),
        "cold": reports["cold"],
        "few": reports["few"],
        "references": ceilings,
    }


def calibration(table: GroupTable, scores: Tensor, bins: int = 10) -> pd.DataFrame:
    """Predicted against true shares of a group's picks, over equally filled bins of the predicted share (Eq. 7, 8).

    Returns:
        One row a bin: `predicted` and `picked`, mean shares in [0, 1], and `candidates`.
    """
    predicted = torch.softmax(scores.masked_fill(~table.valid, -math.inf), dim=1)
    true = table.picked / table.picked.sum(1, keepdim=True).clamp(min=1)
    frame = pd.DataFrame({"predicted": predicted[table.valid].numpy(), "picked": true[table.valid].numpy()})
    frame["bin"] = pd.qcut(frame["predicted"].rank(method="first"), min(bins, len(frame)), labels=False)
    means = frame.groupby("bin").agg(
        predicted=("predicted", "mean"), picked=("picked", "mean"), candidates=("picked", "size")
    )
    return means.reset_index(drop=True)


def feature_slices(rows: pd.DataFrame, users: pd.DataFrame, options: Mapping[str, Any]) -> pd.DataFrame:
    """The gain in GAUC over the user-blind baseline on test groups, for every value of every user feature.

    Numbers are cut at their quartiles. Bounds are None for values with too few users.
    """
    test = rows[rows["split"] == "test"].merge(users, on="user_id", how="left")
    gained = test[["user_id", "auc_perfusion_rm", "auc_user_blind"]]
    result = []
    for feature in sorted(name for name in users.columns if name != "user_id"):
        values = test[feature]
        if pd.api.types.is_numeric_dtype(values) and values.nunique() > 8:
            values = pd.qcut(values, 4, duplicates="drop").astype(str)
        for value, part in gained.groupby(
            values.astype(object).where(values.notna(), "not given").astype(str), sort=True
        ):
            gain = paired_difference(part["auc_perfusion_rm"], part["auc_user_blind"], part["user_id"], **options)
            result.append({
                "feature": feature, "value": value, "users": gain.clusters, "groups": gain.records,
                "gauc": part["auc_perfusion_rm"].mean(), "user_blind_gauc": part["auc_user_blind"].mean(),
                "gain": gain.mean, "gain_low": gain.low, "gain_high": gain.high,
            })  # fmt: skip
    return pd.DataFrame(result)


def _calibration_error(bins: pd.DataFrame) -> float:
    """Mean absolute difference of predicted and true share, weighted by candidates."""
    return float(np.average((bins["predicted"] - bins["picked"]).abs(), weights=bins["candidates"]))


def _users(table: GroupTable) -> list[str]:
    """The user of each group, (G,)."""
    return [table.user_ids[row] for row in table.user_index.tolist()]


def _report(table: GroupTable, scores: Any, options: Mapping[str, Any], split: str) -> dict[str, Any]:
    return ranking_report(scores, table.picked, table.valid, _users(table), split=split, **options).to_dict()


def _gains(rows: pd.DataFrame, other: str, options: Mapping[str, Any]) -> dict[str, Any] | None:
    """PerFusionRM minus another contestant, paired; None when the other did not run."""
    if f"ap_{other}" not in rows or rows[f"ap_{other}"].isna().all():
        return None
    gains: dict[str, Any] = {}
    for metric, column in (("map", "ap"), ("gauc", "auc")):
        mine, theirs = rows[f"{column}_perfusion_rm"], rows[f"{column}_{other}"]
        gains[metric] = paired_difference(mine, theirs, rows["user_id"], **options).to_dict()
        level = theirs.mean()  # a GAUC of 0, of few groups, has nothing relative to it
        gains[f"relative_{metric}"] = float(mine.mean() / level - 1) if level > 0 else None
    return gains


def _gap_closed(rows: pd.DataFrame, options: Mapping[str, Any]) -> dict[str, Any]:
    """The share of the GAUC gap from the user-blind baseline to the reachable ceiling that PerFusionRM closes.

    All three are of the same groups and resampled together. None where there is no truth, or no gap that is surely
    above 0: in a world without personal taste the share would be one of nothing.
    """
    none = {"gap_closed": None, "gap_closed_ci": None}
    if "auc_reachable" not in rows:
        return none
    if not paired_difference(rows["auc_reachable"], rows["auc_user_blind"], rows["user_id"], **options).low > 0:
        return none
    columns = rows[["auc_perfusion_rm", "auc_user_blind", "auc_reachable"]].to_numpy(dtype=np.float64)

    def share(means: np.ndarray) -> np.ndarray:
        return (means[..., 0] - means[..., 1]) / (means[..., 2] - means[..., 1])

    interval = cluster_statistic(columns, rows["user_id"], share, **options).to_dict()
    return {"gap_closed": interval["mean"], "gap_closed_ci": [interval["low"], interval["high"]]}
