"""Which features of a user carry the gain: each one shuffled alone, and the smallest set that keeps the gain.

Shuffling a feature at test time asks what the trained model makes of it; leaving it out of training (a view of the
split) asks what could be learnt without it. The two differ where features say the same thing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from perfusion.data import GroupTable, load_tables
from perfusion.reward import PerFusionRM
from perfusion.scorers import PersonalScore
from perfusion.scorers.tables import row_scorer
from perfusion.seeding import generator_for
from perfusion.statistics import paired_difference
from perfusion.studies.score_sets import score_rows

__all__ = ["minimum_set", "permutation_study", "permuted"]

_BATCH = 64
#: Row of the shuffled scores in which nothing is shuffled, and the one in which everything is.
NOTHING, EVERYTHING = "nothing", "everything"


def permutation_study(
    data_dir: Path, split_dir: Path, reward_dir: Path, blind: pd.DataFrame, *, image_size: int, seed: int,
    options: Mapping[str, Any],
) -> tuple[pd.DataFrame, dict[str, Any]]:  # fmt: skip
    """GAUC on test groups with each feature shuffled over users, alone, and the minimum set by greedy removal.

    Args:
        data_dir: the dataset.
        split_dir: users.parquet and groups.parquet with a column `split`.
        reward_dir: PerFusionRM.
        blind: rows of the user-blind baseline (see `perfusion.studies.score_sets.score_rows`).
        image_size: side in pixels at which pictures are read.
        seed: of the shuffling.
        options: of `perfusion.statistics.cluster_bootstrap`.

    Returns:
        One row a group and shuffled feature (`shuffled`, `unit`, `user_id`, `auc`), and what `minimum_set` says.
    """
    model = PerFusionRM.from_pretrained(reward_dir)
    encoder = model.encoder
    assert encoder is not None, "a model that the retraining saved knows its features"
    table = load_tables(data_dir, split_dir, image_size, encoder=encoder, splits=("test",))["test"]
    names = list(encoder.names)
    score = row_scorer(PersonalScore(model), table, passes=10)
    known: dict[frozenset[str], pd.DataFrame] = {}

    def without(features: frozenset[str]) -> pd.DataFrame:
        if features not in known:
            users = permuted(table.users, [names.index(name) for name in features], table.user_index, seed)
            rows = score_rows({"test": table}, {"test": _scored(table, score, users)})
            known[features] = rows[["unit", "user_id", "auc"]]
        return known[features]

    singles = {NOTHING: frozenset[str](), **{name: frozenset({name}) for name in names}, EVERYTHING: frozenset(names)}
    rows = pd.concat([without(features).assign(shuffled=name) for name, features in singles.items()], ignore_index=True)
    base = blind[blind["split"] == "test"].set_index("unit")["auc"]

    def aucs(features: frozenset[str]) -> pd.DataFrame:
        found = without(features).set_index("unit")
        return found.assign(blind=base.reindex(found.index))

    return rows, minimum_set(names, aucs, options)


def permuted(users: Tensor, columns: Sequence[int], asked: Tensor, seed: int) -> Tensor:
    """Feature codes (U, F) with some columns shuffled, each by itself, over the users who are asked about.

    Args:
        columns: which.
        asked: (G,) rows of `users`; only these trade values, so that every value stays as frequent as it was.
    """
    shuffled, people = users.clone(), torch.unique(asked)
    for column in columns:
        order = torch.randperm(len(people), generator=generator_for(seed, "permutation", column))
        shuffled[people, column] = users[people[order], column]
    return shuffled


def minimum_set(
    names: Sequence[str], aucs: Callable[[frozenset[str]], pd.DataFrame], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Take features away one by one, each time the one that costs least, while the gain stays in the full one's range.

    Args:
        names: all features.
        aucs: features taken away -> one row a group: `user_id`, `auc`, `blind`.
        options: of `perfusion.statistics.cluster_bootstrap`.

    Returns:
        `gain` and `gain_ci` of all features; `steps`: the features in the order in which they go, with the gain that
        is left; `features`: the smallest set whose gain is not below the lower bound of the full gain.
    """

    def gain(gone: frozenset[str]) -> Any:
        rows = aucs(gone)
        return paired_difference(rows["auc"], rows["blind"], rows["user_id"], **options)

    full = gain(frozenset())
    gone: frozenset[str] = frozenset()
    enough, steps = list(names), []
    while len(gone) < len(names):
        left = {name: gain(gone | {name}) for name in names if name not in gone}
        name = max(left, key=lambda feature: left[feature].mean)
        gone |= {name}
        steps.append({"feature": name, "gain": left[name].mean, "low": left[name].low, "high": left[name].high})
        if not left[name].mean >= full.low:
            break
        enough = [feature for feature in names if feature not in gone]
    return {"gain": full.mean, "gain_ci": [full.low, full.high], "steps": steps, "features": enough}


def _scored(table: GroupTable, score: Any, users: Tensor) -> Tensor:
    own = users[table.user_index]
    parts = [score(rows, own[rows]) for rows in torch.arange(len(table)).split(_BATCH)]
    return torch.cat(parts)
