"""Two arms' pictures of the same frozen items, side by side, and the difference of a score between them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from perfusion.evaluation.items import ITEM
from perfusion.governance.decision import Check
from perfusion.statistics import Interval, cluster_bootstrap, paired_difference

__all__ = ["arm", "columns", "difference", "pair", "same_items", "standardised"]

#: A table of `pair`, or some of its rows as arrays by name.
Columns: TypeAlias = pd.DataFrame | Mapping[str, np.ndarray]


def arm(pictures: pd.DataFrame, arm: str) -> pd.DataFrame:
    """One arm's pictures, averaged per item where an item has several."""
    rows = pictures[pictures["arm"] == arm]
    labels = [name for name in rows if name.startswith("slice_")]
    numbers = rows.select_dtypes("number").columns.difference([*ITEM, *labels], sort=False)
    if not rows.duplicated([*ITEM]).any():
        return rows[[*ITEM, *labels, *numbers]].sort_values([*ITEM], ignore_index=True)
    items = rows.groupby([*ITEM], sort=True)
    return items[labels].first().join(items[[*numbers]].mean(skipna=False)).reset_index()


def pair(left: pd.DataFrame, right: pd.DataFrame) -> pd.DataFrame:
    """Items of two arms side by side, the second with the suffix `_other`; an item of one arm only has NaN scores."""
    return left.merge(right, on=list(ITEM), how="outer", suffixes=("", "_other"), indicator="found_in")


def same_items(name: str, paired: pd.DataFrame) -> Check:
    """Both arms hold exactly the same frozen items, and at least one."""
    lonely = int((paired["found_in"] != "both").sum())
    if lonely or paired.empty:
        reason = (
            f"{name}: {lonely} of {len(paired)} (user, prompt, seed) items are in one table only; generate both anew"
        )
        return Check(name, "inconclusive", reason)
    return Check(name, "pass", f"{name} share the same {len(paired)} (user, prompt, seed) items")


def difference(paired: Columns, scorer: str, options: dict[str, Any]) -> Interval:
    """Paired difference of a scorer, in its own unit; NaN when a table lacks it."""
    if scorer not in paired or f"{scorer}_other" not in paired:
        return cluster_bootstrap(np.full(len(paired["user_id"]), np.nan), paired["user_id"], **options)
    return paired_difference(paired[scorer], paired[f"{scorer}_other"], paired["user_id"], **options)


def standardised(paired: Columns, scorer: str, options: dict[str, Any]) -> Interval:
    """Paired difference in standard deviations of the other arm's scores, so that one margin serves every scorer."""
    gain = difference(paired, scorer, options)
    spread = (
        float(np.std(np.asarray(paired[f"{scorer}_other"], dtype=np.float64)))
        if f"{scorer}_other" in paired
        else math.nan
    )
    if not spread > 0:  # a constant scorer: any difference at all is large
        spread = 1.0 if gain.mean == 0 else math.nan
    return Interval(
        gain.mean / spread, gain.low / spread, gain.high / spread, gain.confidence, gain.clusters, gain.records
    )


def columns(table: pd.DataFrame, names: Sequence[str]) -> list[str]:
    return [name for name in names if name in table]
