"""Confidence intervals by bootstrap over users.

Records of one user are correlated, so users are resampled, not records. A resample is a vector of user counts; one
matrix product with per-user sums gives the statistic for every resample, and several columns at once share the same
resamples, which makes differences and ratios of them paired.

Percentile intervals: the statistics here are means and smooth functions of means over tens to hundreds of users, where
they are near symmetric; percentile bounds stay defined on constant data (a tie is [0, 0]), where BCa is not. Their
undercoverage with few users (a nominal 95 % covers about 92 % at 20 users and 90 % at 10) is met by `min_clusters`:
below it the bounds are NaN, and every check that reads them is inconclusive.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Interval", "cluster_bootstrap", "cluster_statistic", "paired_difference", "share_positive"]

Floats = NDArray[np.float64]

_KEPT_CELLS = 1 << 20  # resamplings of up to so many cells are kept for the next interval of as many users: 4 MiB each


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval.

    Attributes:
        mean: the estimate on the data itself.
        low: lower bound; NaN when there are too few clusters, or when a value was NaN.
        high: upper bound, as `low`.
        confidence: two-sided, in (0, 1).
        clusters: users.
        records: records behind the estimate.
    """

    mean: float
    low: float
    high: float
    confidence: float
    clusters: int
    records: int

    @property
    def conclusive(self) -> bool:
        """Whether mean and bounds are numbers."""
        return math.isfinite(self.mean) and math.isfinite(self.low) and math.isfinite(self.high)

    def to_dict(self) -> dict[str, float | int | None]:
        """Plain JSON values; None for a number that is not finite."""
        return {key: value if math.isfinite(value) else None for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Self:
        """The interval written by `to_dict`."""
        values: dict[str, Any] = {key: math.nan if value is None else value for key, value in record.items()}
        return cls(**values)

    def __str__(self) -> str:
        bounds = f"[{self.low:.4f}, {self.high:.4f}]" if self.conclusive else "[too few users for bounds]"
        return f"{self.mean:.4f} {bounds} ({100 * self.confidence:.0f} %, {self.clusters} users)"


def cluster_bootstrap(
    values: ArrayLike, clusters: Sequence[Any] | NDArray[Any], *,
    confidence: float = 0.95, resamples: int = 2000, seed: int = 0, min_clusters: int = 20,
) -> Interval:  # fmt: skip
    """The mean over records with an interval over users.

    Args:
        values: (R,) one number per record; a NaN makes the whole interval NaN.
        clusters: (R,) user id per record, any hashable.
        confidence: two-sided, in (0, 1).
        resamples: bootstrap resamples.
        seed: of the resampling; the same data and seed give the same bytes.
        min_clusters: fewer users than this give NaN bounds.
    """
    return cluster_statistic(
        np.asarray(values, dtype=np.float64)[:, None], clusters, lambda means: means[..., 0],
        confidence=confidence, resamples=resamples, seed=seed, min_clusters=min_clusters,
    )  # fmt: skip


def paired_difference(
    values: ArrayLike, baseline: ArrayLike, clusters: Sequence[Any] | NDArray[Any], **options: Any
) -> Interval:
    """The mean of `values - baseline` over the same records, with an interval over users.

    Args:
        values: (R,) one number per record.
        baseline: (R,) the same records under the baseline.
        clusters: (R,) user id per record.
        options: as in `cluster_bootstrap`.
    """
    return cluster_bootstrap(
        np.asarray(values, dtype=np.float64) - np.asarray(baseline, dtype=np.float64), clusters, **options
    )


def cluster_statistic(
    columns: ArrayLike, clusters: Sequence[Any] | NDArray[Any], statistic: Callable[[Floats], Floats], *,
    confidence: float = 0.95, resamples: int = 2000, seed: int = 0, min_clusters: int = 20,
) -> Interval:  # fmt: skip
    """A function of several record means, e.g. a ratio of differences, with an interval over users.

    Args:
        columns: (R, K) K numbers per record.
        clusters: (R,) user id per record.
        statistic: (..., K) means -> (...) values, vectorised.
        confidence, resamples, seed, min_clusters: as in `cluster_bootstrap`.

    Raises:
        ValueError: the lengths differ or an option is out of range.
    """
    columns = np.asarray(columns, dtype=np.float64)
    if columns.ndim != 2 or len(columns) != len(clusters):
        raise ValueError(f"{columns.shape} values for {len(clusters)} cluster ids; need (R, K) and R")
    if not 0 < confidence < 1 or resamples < 1:
        raise ValueError(f"confidence {confidence} must be in (0, 1) and resamples {resamples} at least 1")
    sums, counts = _cluster_sums(columns, clusters)
    users, records = len(counts), len(columns)
    mean = float(statistic(columns.mean(0))) if records else math.nan
    if users < max(2, min_clusters) or not math.isfinite(mean):
        return Interval(mean, math.nan, math.nan, confidence, users, records)
    weights = _resample(users, resamples, seed)
    replicates = statistic((weights @ sums) / (weights @ counts)[:, None])
    tail = (1 - confidence) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return Interval(mean, float(low), float(high), confidence, users, records)


def share_positive(
    values: ArrayLike, clusters: Sequence[Any] | NDArray[Any], *, confidence: float = 0.95, min_clusters: int = 20
) -> Interval:
    """The share of users whose mean value is above 0, with Wilson's interval; exactly 0 does not count as positive."""
    sums, counts = _cluster_sums(np.asarray(values, dtype=np.float64)[:, None], clusters)
    users, records = len(counts), int(counts.sum())
    if users == 0 or not np.isfinite(sums).all():
        return Interval(math.nan, math.nan, math.nan, confidence, users, records)
    positive = int((sums[:, 0] > 0).sum())
    if users < max(2, min_clusters):
        return Interval(positive / users, math.nan, math.nan, confidence, users, records)
    from scipy.stats import binomtest  # here: it takes half a second to import, and few callers come to this line

    bounds = binomtest(positive, users).proportion_ci(confidence, method="wilson")
    return Interval(positive / users, float(bounds.low), float(bounds.high), confidence, users, records)


def _cluster_sums(columns: Floats, clusters: Sequence[Any] | NDArray[Any]) -> tuple[Floats, Floats]:
    """Per-user sums (U, K) and record counts (U,); users in sorted order, so that row order changes nothing."""
    _, index = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    users = int(index.max()) + 1 if len(index) else 0
    sums = np.zeros((users, columns.shape[1]))
    np.add.at(sums, index, columns)
    return sums, np.bincount(index, minlength=users).astype(np.float64)


def _resample(users: int, resamples: int, seed: int) -> Floats:
    """How often each user was drawn in each resample, (resamples, U); each row sums to U."""
    if users * resamples > _KEPT_CELLS:
        return _draw(users, resamples, seed).astype(np.float64)
    return _kept(users, resamples, seed).astype(np.float64)


def _draw(users: int, resamples: int, seed: int) -> NDArray[np.intp]:
    drawn = np.random.default_rng(seed).integers(users, size=(resamples, users))
    cell = drawn + users * np.arange(resamples)[:, None]
    return np.bincount(cell.ravel(), minlength=users * resamples).reshape(resamples, users)


@lru_cache(maxsize=64)
def _kept(users: int, resamples: int, seed: int) -> NDArray[np.uint32]:
    """The same, kept: a gate resamples the same users for each of its many intervals."""
    return _draw(users, resamples, seed).astype(np.uint32)
