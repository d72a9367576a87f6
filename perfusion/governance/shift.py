"""Fresh picks against a snapshot of the training data: what moved, by how much, and whether that could be chance.

Two things make a shift: it is too large to be chance, and large enough to matter. Chance alone moves something among
many variables, so p-values are adjusted (Benjamini and Hochberg); a million records make any difference certain, so the
size of it has a limit of its own. Users' features are compared user by user. What is told of records is compared by
means whose variance counts users, because one user's records resemble each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from perfusion.config import MonitorConfig
from perfusion.governance import drift
from perfusion.governance.snapshot import FACTS, Snapshot, facts_of_users

__all__ = ["Shift", "shifts"]


@dataclass(frozen=True)
class Shift:
    """One variable, then and now.

    Attributes:
        variable: a feature, a fact of records, or "prompt phrases".
        measure: "psi" (population stability index) or "sd" (difference of means in standard deviations of records).
        size: of the difference by that measure; None where a side has no value.
        limit: the largest size that does not matter.
        before, after: means, for facts of records.
        p_value: of no difference at all.
        adjusted: the p-value adjusted for the number of variables.
        shifted: adjusted p-value under `alpha`, and size over the limit.
    """

    variable: str
    measure: str
    size: float | None
    limit: float
    p_value: float
    adjusted: float = math.nan
    shifted: bool = False
    before: float | None = None
    after: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a table."""
        return asdict(self)


def shifts(snapshot: Snapshot, users: pd.DataFrame, groups: pd.DataFrame, config: MonitorConfig) -> list[Shift]:
    """Every variable of the snapshot against fresh records.

    Args:
        snapshot: of the training data.
        users: user_id and features; those without a fresh record are left out.
        groups: the fresh records.
        config: `alpha`, `max_psi`, `max_shift`.
    """
    active = users[users["user_id"].isin(groups["user_id"])]
    found = {row["name"]: row for row in drift.compare(snapshot.profile, active, groups)}
    rows = [
        Shift(name, "psi", found[name]["psi"], _psi_limit(found[name], config), found[name].get("p_value", 1.0))
        for name in snapshot.profile["features"]
        if name in found
    ]
    now = facts_of_users(groups, snapshot.words, snapshot.watched)
    rows += [_fact(name, snapshot.facts, now, config.max_shift) for name in FACTS]
    phrases = [_fact(name, snapshot.facts, now, config.max_shift).p_value for name in snapshot.watched]
    row = found["prompt phrases"]
    once = min(1.0, len(phrases) * min(phrases, default=1.0))  # Bonferroni: one phrase among those watched
    rows.append(Shift("prompt phrases", "psi", row["psi"], _psi_limit(row, config), once))
    return _adjusted(rows, config.alpha)


def _psi_limit(row: dict[str, Any], config: MonitorConfig) -> float:
    """With few rows chance alone exceeds the customary limit; then the limit is what chance gives."""
    return max(config.max_psi, row["psi_by_chance"] or 0.0)


def _fact(name: str, before: pd.DataFrame, after: pd.DataFrame, limit: float) -> Shift:
    """Difference of two means over records, in standard deviations of the records before."""
    (old, old_variance, spread), (new, new_variance, _) = (_mean(name, table) for table in (before, after))
    if not (math.isfinite(old) and math.isfinite(new)):
        return Shift(name, "sd", None, limit, 1.0)
    difference, error = new - old, math.sqrt(old_variance + new_variance)
    size = abs(difference) / spread if spread > 0 else (0.0 if difference == 0 else math.inf)
    return Shift(name, "sd", size, limit, _p_value(difference, error), before=old, after=new)


def _mean(name: str, table: pd.DataFrame) -> tuple[float, float, float]:
    """Mean over records, the variance of that mean when users are drawn, standard deviation of a record.

    The mean is a ratio of sums over users, whose variance is that of its linearisation.
    """
    n, total, squares = (table[f"{name} {part}"].to_numpy(float) for part in ("n", "sum", "squares"))
    users, records = int((n > 0).sum()), n.sum()
    if users < 2:
        return math.nan, math.nan, math.nan
    mean = total.sum() / records
    variance = users / (users - 1) * float(((total - mean * n) ** 2).sum()) / records**2
    return float(mean), variance, math.sqrt(max(0.0, squares.sum() / records - mean**2))


def _p_value(difference: float, error: float) -> float:
    from scipy.stats import norm  # here: it takes half a second to import

    if error == 0:
        return 1.0 if difference == 0 else 0.0
    return float(2 * norm.sf(abs(difference) / error))


def _adjusted(rows: Sequence[Shift], alpha: float) -> list[Shift]:
    from scipy.stats import false_discovery_control

    adjusted = false_discovery_control(np.array([row.p_value for row in rows]), method="bh")
    return [
        Shift(**(row.to_dict() | {"adjusted": float(p), "shifted": bool(p <= alpha and (row.size or 0) > row.limit)}))
        for row, p in zip(rows, adjusted, strict=True)
    ]
