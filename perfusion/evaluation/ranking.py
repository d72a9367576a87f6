"""MAP and GAUC of groups of candidates, with ties settled in closed form (Sec. 5.1.3).

Tied scores say nothing about the order of the tied pictures, so a tie counts as the mean over all its orders. A
constant scorer then gets exactly the random floor, whatever the order of the rows; with two candidates
MAP = (1 + GAUC) / 2.

Shapes: G groups, N candidates (padded; `valid` marks the real ones).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from perfusion.statistics import Interval, cluster_bootstrap

__all__ = [
    "TIE_POLICY",
    "RankingReport",
    "average_precision",
    "group_auc",
    "group_aucs",
    "group_average_precision",
    "random_average_precision",
    "ranking_report",
]

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

TIE_POLICY = "mean over all orders of tied candidates"


def average_precision(scores: ArrayLike, picked: ArrayLike) -> float:
    """The average precision of one group: the mean, over its picked candidates, of the precision at their rank.

    Args:
        scores: (N,) higher is better; lists, arrays or tensors.
        picked: (N,) 0/1 or bool.

    Returns:
        In (0, 1]; NaN when nothing was picked (no precision to average).

    Raises:
        ValueError: the shapes differ, a score is NaN, or `picked` holds anything but 0 and 1.
    """
    return float(group_average_precision(*_one_group(scores, picked))[0])


def group_auc(scores: ArrayLike, picked: ArrayLike) -> float:
    """The area under the ROC curve of one group: the share of (picked, not picked) pairs in the right order, ties 1/2.

    Args:
        scores: (N,) higher is better; lists, arrays or tensors.
        picked: (N,) 0/1 or bool.

    Returns:
        In [0, 1]; NaN when all or none were picked (no pair to compare).

    Raises:
        ValueError: the shapes differ, a score is NaN, or `picked` holds anything but 0 and 1.
    """
    return float(group_aucs(*_one_group(scores, picked))[0])


def group_average_precision(scores: Floats, picked: Bools, valid: Bools) -> Floats:
    """`average_precision` of each group, (G, N) three times -> (G,).

    A block of n tied candidates, r of them picked, after n0 better ones with r0 picked, adds, averaged over its orders,
    sum_j (r/n) (r0 + (j-1)(r-1)/(n-1) + 1) / (n0 + j) for j = 1..n. Each candidate of the block carries 1/n of it.
    """
    _refuse_nan(scores, valid)
    picked = picked & valid
    both = valid[:, :, None] & valid[:, None, :]
    above = both & (scores[:, None, :] > scores[:, :, None])  # (G, i, j): j is better than i
    tied = both & (scores[:, None, :] == scores[:, :, None])
    n0, r0 = _counts(above, picked)
    n, r = _counts(tied, picked)
    j = np.arange(1, scores.shape[1] + 1)
    picked_before = r0 + (j - 1) * (r - 1) / np.maximum(n - 1, 1)
    terms = (r / np.maximum(n, 1)) * (picked_before + 1) / (n0 + j)
    block = np.where(j <= n, terms, 0.0).sum(2)  # (G, N)
    total = np.where(valid, block / np.maximum(n[:, :, 0], 1), 0.0).sum(1)
    return _over(total, picked.sum(1))


def group_aucs(scores: Floats, picked: Bools, valid: Bools) -> Floats:
    """`group_auc` of each group, (G, N) three times -> (G,)."""
    _refuse_nan(scores, valid)
    pairs = (picked & valid)[:, :, None] & (~picked & valid)[:, None, :]  # (G, picked, not picked)
    better = scores[:, :, None] > scores[:, None, :]
    equal = scores[:, :, None] == scores[:, None, :]
    return _over((pairs * (better + 0.5 * equal)).sum((1, 2)), pairs.sum((1, 2)))


def random_average_precision(candidates: int, picked: int) -> float:
    """The expected average precision of a random order: .75 for (2, 1), .4567 for (5, 1); NaN for none picked."""
    return average_precision(np.zeros(candidates), np.arange(candidates) < picked)


@dataclass(frozen=True)
class RankingReport:
    """MAP and GAUC of a scorer on one split, with all that a reader needs to compare them with others.

    Attributes:
        split: "test", "cold", ...
        map: mean average precision over the used groups, interval over users.
        gauc: unweighted mean of the groups' AUC, interval over users.
        floor_map: what a random (or constant) scorer gets on the same groups; GAUC's floor is 1/2.
        groups_used: groups with at least one picked and one not picked candidate.
        groups_dropped: the others, by reason.
        tie_policy: how equal scores count.
    """

    split: str
    map: Interval
    gauc: Interval
    floor_map: float
    groups_used: int
    groups_dropped: dict[str, int]
    tie_policy: str = TIE_POLICY

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, intervals as [low, high]; None for a number that does not exist."""
        mean_ap, gauc = self.map.to_dict(), self.gauc.to_dict()
        return {
            "split": self.split,
            "map": mean_ap["mean"],
            "map_ci": [mean_ap["low"], mean_ap["high"]],
            "gauc": gauc["mean"],
            "gauc_ci": [gauc["low"], gauc["high"]],
            "floor_map": self.floor_map if self.groups_used else None,
            "confidence": self.map.confidence,
            "users": self.map.clusters,
            "groups_used": self.groups_used,
            "groups_dropped": dict(self.groups_dropped),
            "tie_policy": self.tie_policy,
        }


def ranking_report(
    scores: ArrayLike, picked: ArrayLike, valid: ArrayLike, user_ids: Sequence[Any], *, split: str, **bootstrap: Any
) -> RankingReport:
    """Score a split.

    Args:
        scores: (G, N) higher is better; padding may hold anything.
        picked: (G, N) bool.
        valid: (G, N) bool, False on padding.
        user_ids: (G,) the clusters of the bootstrap.
        split: name of the split, kept in the report.
        bootstrap: options of `perfusion.statistics.cluster_bootstrap`.

    Raises:
        ValueError: the shapes differ or a valid score is NaN.
    """
    values, marks, real = _array(scores, np.float64), _array(picked, np.bool_), _array(valid, np.bool_)
    if not values.shape == marks.shape == real.shape or len(values) != len(user_ids):
        raise ValueError(f"scores {values.shape}, picked {marks.shape}, valid {real.shape}, {len(user_ids)} user ids")
    any_picked, any_other = (marks & real).any(1), (~marks & real).any(1)
    used = any_picked & any_other
    dropped = {"nothing picked": int((~any_picked).sum()), "all picked": int((any_picked & ~any_other).sum())}
    values, marks, real = values[used], marks[used], real[used]
    users = np.asarray(user_ids, dtype=str)[used]
    floor = group_average_precision(np.zeros_like(values), marks, real)
    return RankingReport(
        split=split,
        map=cluster_bootstrap(group_average_precision(values, marks, real), users, **bootstrap),
        gauc=cluster_bootstrap(group_aucs(values, marks, real), users, **bootstrap),
        floor_map=float(floor.mean()) if len(floor) else float("nan"),
        groups_used=int(used.sum()),
        groups_dropped=dropped,
    )


def _counts(relation: Bools, picked: Bools) -> tuple[Floats, Floats]:
    """How many candidates, and how many picked ones, stand in a relation to each; both (G, N, 1)."""
    all_of = relation.sum(2, dtype=np.float64)
    picked_of = (relation & picked[:, None, :]).sum(2, dtype=np.float64)
    return all_of[:, :, None], picked_of[:, :, None]


def _over(total: Floats, count: NDArray[np.int_]) -> Floats:
    """total / count, NaN where there is nothing to average."""
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _refuse_nan(scores: Floats, valid: Bools) -> None:
    bad = np.isnan(scores) & valid
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise ValueError(f"score of candidate {column} in group {row} is NaN ({bad.sum()} in all); nothing can rank it")


def _one_group(scores: ArrayLike, picked: ArrayLike) -> tuple[Floats, Bools, Bools]:
    values, marks = _array(scores, np.float64), _array(picked, np.float64)
    if values.ndim != 1 or values.shape != marks.shape:
        raise ValueError(f"scores {values.shape} and picked {marks.shape}: need one group, (N,) and (N,)")
    if not np.isin(marks, (0, 1)).all():
        raise ValueError(f"picked holds {marks.tolist()}; need 0 and 1 only")
    return values[None], marks[None] == 1, np.ones((1, len(values)), dtype=bool)


def _array(values: Any, dtype: Any) -> Any:
    """A numpy array of a list, an array or a tensor on any device."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = (values.double() if values.is_floating_point() else values).numpy()
    return np.asarray(values, dtype=dtype)
