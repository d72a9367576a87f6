"""Checks that gates share: superiority and non-inferiority of an interval, equality of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from perfusion.errors import GateError
from perfusion.governance.decision import Check, Rule, Verdict, at_most
from perfusion.statistics import Interval

__all__ = ["above", "need_columns", "not_below", "same_numbers", "same_pictures"]


def above(name: str, interval: Interval, bound: float = 0.0) -> Check:
    """Superiority: pass above the bound, fail at or under it, inconclusive when the interval straddles it."""
    if not interval.conclusive:
        return _check(name, "inconclusive", _unknown(name, interval), interval, bound, "surely above")
    reason = f"{name} is {interval}, needs a lower bound above {bound:g}"
    verdict: Verdict = "pass" if interval.low > bound else "fail" if interval.high <= bound else "inconclusive"
    return _check(name, verdict, reason, interval, bound, "surely above")


def not_below(name: str, interval: Interval, margin: float) -> Check:
    """Non-inferiority: pass when the lower bound is above -margin, fail when the whole interval is below it."""
    if not interval.conclusive:
        return _check(name, "inconclusive", _unknown(name, interval), interval, -margin, "surely not below")
    reason = f"{name} is {interval}, may be {margin:g} worse at most"
    verdict: Verdict = "pass" if interval.low >= -margin else "fail" if interval.high < -margin else "inconclusive"
    return _check(name, verdict, reason, interval, -margin, "surely not below")


def same_numbers(name: str, expected: ArrayLike, found: ArrayLike, tolerance: float) -> tuple[Check, float]:
    """Equal shape, finite, and equal within the tolerance relative to max(1, |expected|)."""
    left, right = np.asarray(expected, dtype=np.float64), np.asarray(found, dtype=np.float64)
    if left.shape != right.shape:
        return Check(
            name, "fail", f"{name}: shape {right.shape} after reloading, {left.shape} when evaluated"
        ), math.nan
    if left.size == 0 or not np.isfinite(left).all() or not np.isfinite(right).all():
        return Check(name, "inconclusive", f"{name}: empty or not finite, nothing to compare"), math.nan
    difference = float((np.abs(left - right) / np.maximum(1.0, np.abs(left))).max())
    return at_most(f"{name}: relative difference after reloading", difference, tolerance), difference


def same_pictures(name: str, expected: ArrayLike, found: ArrayLike, tolerance: float) -> tuple[Check, float]:
    """Equal shape, and no picture that differs by more than the tolerance on the mean over its pixels.

    Pixels are whole numbers of grey levels, so that a difference in the last bit of a network's arithmetic now and then
    moves one by a level. A picture drawn for somebody else, or by another model, differs everywhere.

    Args:
        expected, found: (n, H, W, 3) in [0, 1].
        tolerance: mean absolute difference in [0, 1]; a grey level is 1/255.
    """
    left, right = np.asarray(expected, dtype=np.float64), np.asarray(found, dtype=np.float64)
    if left.shape != right.shape:
        return Check(name, "fail", f"{name}: shape {right.shape} after reloading, {left.shape} evaluated"), math.nan
    if left.size == 0:
        return Check(name, "inconclusive", f"{name}: no picture to compare"), math.nan
    difference = float(np.abs(left - right).mean(axis=(1, 2, 3)).max())
    return at_most(f"{name}: mean difference of a picture drawn again", difference, tolerance), difference


def need_columns(table: pd.DataFrame, columns: Sequence[str], where: str) -> None:
    missing = [name for name in columns if name not in table]
    if missing:
        raise GateError(f"{where}: the table has no column {', '.join(missing)}; it has {', '.join(map(str, table))}")


def _check(name: str, verdict: Verdict, reason: str, interval: Interval, bound: float, rule: Rule) -> Check:
    """The check with the numbers of its interval; users without bounds are told too."""
    return Check(
        name, verdict, reason, interval.mean, interval.low, interval.high, bound, rule, users=interval.clusters
    )


def _unknown(name: str, interval: Interval) -> str:
    cause = "a score is missing or NaN" if math.isnan(interval.mean) else "too few users for an interval"
    return f"{name}: {cause} ({interval.clusters} users, {interval.records} records)"
