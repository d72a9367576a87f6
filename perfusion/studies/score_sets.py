"""One scorer on the held-out groups, group by group: the raw material of every table of rankers.

Shapes: G groups, N candidates.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from perfusion.config import EvaluateConfig, ScorerName
from perfusion.data import GroupTable, load_tables, read_groups
from perfusion.evaluation.controls import random_scores
from perfusion.evaluation.ranking import group_aucs, group_average_precision
from perfusion.evaluation.ratings import training_ratings
from perfusion.evaluation.reward import SPLITS, score_table
from perfusion.scorers import Scorer, ScorerSources, build_scorers

__all__ = ["RANDOM", "build_scorer", "score_rows", "score_set"]

#: The name of the scorer that knows nothing.
RANDOM = "random"
_RATED = ("perfusion_rm", "pickscore")  # families that no ratings are fitted to


def score_set(
    family: str, config: EvaluateConfig, data_dir: Path, split_dir: Path, clip_dir: Path, model_dir: Path, *,
    image_size: int, twin: bool, seed: int,
) -> pd.DataFrame:  # fmt: skip
    """Score every held-out group with one scorer.

    Args:
        family: a name of `perfusion.scorers.registry.SCORERS`, or `RANDOM`.
        config: where real weights are.
        data_dir: the dataset.
        split_dir: users.parquet and groups.parquet with a column `split`.
        clip_dir: the backbone before any pick was seen.
        model_dir: the tuned model, for the families that are tuned.
        image_size: side in pixels at which pictures are read.
        twin: whether the backbone is the tiny twin.
        seed: of random scores.

    Returns:
        See `score_rows`; the column `scorer` holds the name under which the numbers may be reported.
    """
    if family == RANDOM:
        tables = load_tables(data_dir, split_dir, image_size, splits=SPLITS, pictures=False)
        shapes = {split: (len(table), table.valid.shape[1]) for split, table in tables.items()}
        scores = {split: random_scores(shape, seed) for split, shape in shapes.items()}
        return score_rows(tables, scores).assign(scorer=RANDOM)
    scorer = build_scorer(family, config, data_dir, split_dir, clip_dir, model_dir, image_size, twin, seed)
    tables = load_tables(data_dir, split_dir, image_size, encoder=scorer.encoder, splits=SPLITS)
    found = {split: score_table(table, scorer, split) for split, table in tables.items()}
    return score_rows(tables, found).assign(scorer=scorer.name)


def build_scorer(
    family: str, config: EvaluateConfig, data_dir: Path, split_dir: Path, clip_dir: Path, model_dir: Path,
    image_size: int, twin: bool, seed: int,
) -> Scorer:  # fmt: skip
    """One scorer of the registry; training pictures are read only for families that may be fitted to them."""
    name: ScorerName = family  # type: ignore[assignment]  # checked by the registry's own config
    pictures, ratings = torch.zeros(0, 3, image_size, image_size, dtype=torch.uint8), torch.zeros(0)
    if family not in _RATED:
        groups = read_groups(split_dir / "groups.parquet", extra=("split",))
        pictures, ratings = training_ratings(data_dir, groups, image_size, seed)
    sources = ScorerSources(clip_dir, model_dir, model_dir, twin, pictures, ratings)
    (scorer,) = build_scorers(config.model_copy(update={"scorers": (name,)}), sources).values()
    return scorer


def score_rows(tables: dict[str, GroupTable], scores: dict[str, Tensor]) -> pd.DataFrame:
    """One row for each group that can be ranked.

    Args:
        tables: by split.
        scores: by split, (G, N).

    Returns:
        `unit` (the record's id), `user_id`, `split`, `candidates`, `ap`, `auc`, `floor` (the average precision of a
        random order), and the lists `scores` and `picked` of the candidates.
    """
    parts = []
    for split, table in tables.items():
        valid, picked = table.valid.numpy(), (table.picked & table.valid).numpy()
        values = scores[split].double().numpy()
        rows = pd.DataFrame({
            "unit": table.record_ids, "user_id": [table.user_ids[row] for row in table.user_index.tolist()],
            "split": split, "candidates": valid.sum(1), "ap": group_average_precision(values, picked, valid),
            "auc": group_aucs(values, picked, valid),
            "floor": group_average_precision(np.zeros_like(values), picked, valid),
            "scores": [row[real].tolist() for row, real in zip(values, valid, strict=True)],
            "picked": [row[real].tolist() for row, real in zip(picked, valid, strict=True)],
        })  # fmt: skip
        parts.append(rows[rows["auc"].notna()])
    return pd.concat(parts, ignore_index=True)
