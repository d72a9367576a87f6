"""From a table of scored pictures to the generator's figures: means, paired differences, swaps, agreement of judges."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import kendalltau, spearmanr
from torch import Tensor

from perfusion.statistics import Interval, cluster_bootstrap, cluster_statistic, paired_difference, share_positive

__all__ = ["PAIRS", "diversity", "generator_metrics", "headline_judge", "rank_agreement"]

#: (left, right): differences that are reported, left minus right, where both arms were drawn.
PAIRS = (
    ("perfusion", "base"),
    ("dpo", "base"),
    ("sft", "base"),
    ("perfusion", "dpo"),
    ("perfusion", "wrong_user"),
    ("wrong_user", "base"),
)
_NAMES = {"item", "seed"}  # numeric columns that measure nothing


def generator_metrics(
    rows: pd.DataFrame, options: Mapping[str, Any], costs: Mapping[str, float], spread: Mapping[str, float]
) -> dict[str, Any]:
    """The figures of an evaluation.

    Args:
        rows: one row a picture: `item`, `user_id`, `arm` and numeric columns of scores.
        options: of `perfusion.statistics.cluster_bootstrap`.
        costs: kept as they are.
        spread: `diversity` of each arm.

    Returns:
        `arms`: arm -> metric and `metric_ci`; `paired`: "left - right" -> the same for the paired difference, with
        `wins`, the share of users for whom left is better by the headline judge; `user_swap_win_rate`: the share of
        users for whom their own picture is better than the one drawn for another user; `swap_share_of_gain`: how much
        of the gain over the base is lost with another user's features; `rank_agreement` of PerFusionRM and the truth.
    """
    judge = headline_judge(rows)
    tables = {str(arm): part.set_index("item").sort_index() for arm, part in rows.groupby("arm", sort=False)}
    metrics = [name for name in rows.select_dtypes("number") if name not in _NAMES]
    arms = {
        arm: _flat({name: cluster_bootstrap(table[name], table["user_id"], **options) for name in metrics})
        for arm, table in tables.items()
    }
    for arm, value in spread.items():
        arms[arm]["diversity"] = value
    paired = {
        f"{left} - {right}": _differences(tables[left], tables[right], metrics, judge, options)
        for left, right in PAIRS
        if left in tables and right in tables
    }
    swap = paired.get("perfusion - wrong_user", {})
    return {
        "judge": judge,
        "items": int(rows["item"].nunique()),
        "users": int(rows["user_id"].nunique()),
        "pictures": len(rows),
        "arms": arms,
        "paired": paired,
        "user_swap_win_rate": swap.get("wins"),
        "user_swap_win_rate_ci": swap.get("wins_ci"),
        **_swap_share(tables, judge, options),
        "rank_agreement": rank_agreement(rows, options) if "true_utility" in rows else None,
        "costs": dict(costs),
    }


def headline_judge(rows: pd.DataFrame) -> str:
    """The truth where there is one, else our own reward model."""
    return "true_utility" if "true_utility" in rows else "perfusion_rm"


def rank_agreement(rows: pd.DataFrame, options: Mapping[str, Any]) -> dict[str, Any]:
    """Do PerFusionRM and the truth rank the arms of an item alike?

    Returns:
        `kendall` (tau-b per item, averaged, interval over users; items that either judge sees as all alike are left out
        and counted in `items_alike`) and `spearman` (over all pictures, each item's mean removed).
    """
    taus, users, alike = [], [], 0
    for _, part in rows.groupby("item", sort=True):
        if part["perfusion_rm"].nunique() < 2 or part["true_utility"].nunique() < 2:
            alike += 1
            continue
        taus.append(float(kendalltau(part["perfusion_rm"], part["true_utility"]).statistic))
        users.append(part["user_id"].iloc[0])
    centred = rows[["perfusion_rm", "true_utility"]] - rows.groupby("item")[["perfusion_rm", "true_utility"]].transform(
        "mean"
    )
    pooled = float("nan")
    if (centred.nunique() > 1).all():
        pooled = float(spearmanr(centred["perfusion_rm"], centred["true_utility"]).statistic)
    return {
        **_flat({"kendall": cluster_bootstrap(taus, users, **options)}),
        "spearman": pooled if np.isfinite(pooled) else None,
        "items_alike": alike,
    }


def diversity(embeddings: Tensor) -> float:
    """The mean of 1 - cosine over all pairs of pictures, in [0, 2]; 0 when an arm always draws the same.

    Args:
        embeddings: (n, D) of length 1, n >= 2.
    """
    count = len(embeddings)
    total = embeddings.double().sum(0).square().sum().item()  # sum of all cosines, each picture with itself included
    return 1.0 - (total - count) / (count * (count - 1))


def _differences(
    left: pd.DataFrame, right: pd.DataFrame, metrics: list[str], judge: str, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Paired differences of every metric, and the share of users who win by the judge."""
    users = left["user_id"]
    found = {name: paired_difference(left[name], right[name], users, **options) for name in metrics}
    wins = share_positive(
        left[judge] - right[judge], users, confidence=options["confidence"], min_clusters=options["min_clusters"]
    )
    return _flat({**found, "wins": wins})


def _swap_share(tables: Mapping[str, pd.DataFrame], judge: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """(right user - wrong user) / (right user - base): the part of the gain that is personal."""
    if not {"perfusion", "wrong_user", "base"} <= set(tables):
        return {"swap_share_of_gain": None, "swap_share_of_gain_ci": None}
    columns = np.stack([tables[arm][judge].to_numpy(np.float64) for arm in ("perfusion", "wrong_user", "base")], axis=1)

    def share(means: np.ndarray) -> np.ndarray:
        gain = means[..., 0] - means[..., 2]
        return (means[..., 0] - means[..., 1]) / np.where(gain == 0, np.nan, gain)

    interval = cluster_statistic(columns, tables["perfusion"]["user_id"], share, **options)
    return _flat({"swap_share_of_gain": interval})


def _flat(intervals: Mapping[str, Interval]) -> dict[str, Any]:
    """name -> mean and name_ci -> [low, high], None for what is not finite."""
    flat: dict[str, Any] = {}
    for name, interval in intervals.items():
        record = interval.to_dict()
        flat[name], flat[f"{name}_ci"] = record["mean"], [record["low"], record["high"]]
    return flat
