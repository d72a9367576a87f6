"""Figures of studies: systems trained from several seeds and measured on the same units, with intervals over users.

Measurements are long tables with the columns `system`, `seed`, `unit` (a group record, or an item that is drawn),
`user_id` and one column a metric. A system's value on a unit is its mean over seeds; users are resampled. The spread
over seeds is told beside the interval, not mixed into it: three seeds are too few to resample.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from perfusion.statistics import Interval, cluster_bootstrap, paired_difference

__all__ = [
    "Contrast",
    "Estimate",
    "Verdict",
    "boundary",
    "contrast",
    "estimate",
    "history_curve",
    "over_seeds",
]

Verdict = Literal["holds", "does not hold", "inconclusive"]


@dataclass(frozen=True)
class Estimate:
    """A system's figure.

    Attributes:
        interval: mean over seeds and units, bounds over users.
        seeds: the mean of each seed.
    """

    interval: Interval
    seeds: tuple[float, ...]

    @property
    def spread(self) -> float:
        """Largest minus smallest seed; NaN for a single one."""
        return max(self.seeds) - min(self.seeds) if len(self.seeds) > 1 else math.nan


@dataclass(frozen=True)
class Contrast:
    """One ordering, judged.

    Attributes:
        left, right: names of systems.
        metric: higher is better.
        strict: the claim is left > right; otherwise left >= right.
        interval: of left minus right, paired by unit.
    """

    left: str
    right: str
    metric: str
    strict: bool
    interval: Interval

    @property
    def verdict(self) -> Verdict:
        """Whether the claim holds: by the whole interval, else inconclusive; a sure tie is no proof of "greater"."""
        low, high = self.interval.low, self.interval.high
        if not self.interval.conclusive:
            return "inconclusive"
        if low > 0 or (low == 0 and not self.strict):
            return "holds"
        return "does not hold" if high < 0 or (high == 0 and self.strict) else "inconclusive"

    def __str__(self) -> str:
        sign = ">" if self.strict else ">="
        return f"{self.left} {sign} {self.right} in {self.metric}: {self.verdict}; difference {self.interval}"


def over_seeds(rows: pd.DataFrame, system: str, metric: str) -> pd.DataFrame:
    """A system's value on each unit, its mean over seeds: index `unit`, columns `user_id` and `value`.

    Raises:
        ValueError: the seeds were not measured on the same units.
    """
    own = rows.loc[(rows["system"] == system) & rows[metric].notna()]
    counts = own.groupby("unit")["seed"].nunique()
    seeds = own["seed"].nunique()
    if len(counts) and (counts != seeds).any():
        raise ValueError(f"{system}: unit {counts.index[counts != seeds][0]!r} lacks a seed of {seeds}")
    return own.groupby("unit").agg(user_id=("user_id", "first"), value=(metric, "mean"))


def estimate(rows: pd.DataFrame, system: str, metric: str, options: Mapping[str, Any]) -> Estimate | None:
    """A system's figure with its interval; None where it was not measured.

    Args:
        options: of `perfusion.statistics.cluster_bootstrap`.
    """
    if metric not in rows or not ((rows["system"] == system) & rows[metric].notna()).any():
        return None
    values = over_seeds(rows, system, metric)
    seeds = rows[rows["system"] == system].groupby("seed")[metric].mean()
    return Estimate(cluster_bootstrap(values["value"], values["user_id"], **options), tuple(map(float, seeds)))


def contrast(
    rows: pd.DataFrame, left: str, right: str, metric: str, options: Mapping[str, Any], strict: bool = True
) -> Contrast | None:
    """Judge the claim that `left` is above `right`, on the units that both were measured on; None where one was not."""
    if metric not in rows or not {left, right} <= set(rows.loc[rows[metric].notna(), "system"]):
        return None
    pair = over_seeds(rows, left, metric).join(
        over_seeds(rows, right, metric)["value"].rename("value_other"), how="inner"
    )
    interval = paired_difference(pair["value"], pair["value_other"], pair["user_id"], **options)
    return Contrast(left, right, metric, strict, interval)


def history_curve(
    rows: pd.DataFrame, learnt: Mapping[str, int], system: str, blind: str, edges: Sequence[int],
    options: Mapping[str, Any],
) -> pd.DataFrame:  # fmt: skip
    """GAUC against the number of records of a user that the model has learnt from.

    Args:
        rows: measurements with a column `auc`.
        learnt: user -> training records; users who are absent have none.
        system, blind: the personal system and the user-blind one.
        edges: ascending lower edges of the bins, the last bin is open.
        options: of `perfusion.statistics.cluster_bootstrap`.

    Returns:
        One row for each bin with users: `low`, `high` (None when open), `users`, `groups`, and mean and bounds of
        `gauc`, `blind` and their paired `gain` (`gauc`, `gauc_low`, `gauc_high`, ...).
    """
    pair = over_seeds(rows, system, "auc").join(
        over_seeds(rows, blind, "auc")["value"].rename("value_blind"), how="inner"
    )
    records = pair["user_id"].map(lambda user: learnt.get(user, 0))
    place = np.searchsorted(np.asarray(edges), records.to_numpy(), side="right") - 1
    result = []
    for number, low in enumerate(edges):
        part = pair[place == number]
        if part.empty:
            continue
        users = part["user_id"]
        found = {
            "gauc": cluster_bootstrap(part["value"], users, **options),
            "blind": cluster_bootstrap(part["value_blind"], users, **options),
            "gain": paired_difference(part["value"], part["value_blind"], users, **options),
        }
        bounds = {
            f"{name}{end}": value
            for name, interval in found.items()
            for end, value in (("", interval.mean), ("_low", interval.low), ("_high", interval.high))
        }
        high = edges[number + 1] - 1 if number + 1 < len(edges) else None
        result.append({"low": low, "high": high, "users": found["gain"].clusters, "groups": len(part), **bounds})
    return pd.DataFrame(result)


def boundary(curve: pd.DataFrame) -> int | None:
    """The smallest number of records from which on the gain is surely above 0, in its own bin and in all later ones.

    Bins with too few users for bounds break the chain: nothing is claimed of them.
    """
    sure: int | None = None
    for row in curve.iloc[::-1].itertuples():
        if not row.gain_low > 0:
            break
        sure = int(row.low)
    return sure
