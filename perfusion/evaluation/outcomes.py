"""What became of the items in shops (Table 7, Sec. 6.3): relative improvements within stores, averaged over stores.

Events are counts: one row for a store and an arm, or many (days, items), which are summed. For each store the treated
arm's rate is divided by the control's, and the mean over stores is reported, each store counting the same, as in the
paper. The paper does not define its rates; here

    search CTR          search_clicks / search_impressions
    recommendation CTR  recommendation_clicks / recommendation_impressions
    conversion rate     orders / (search_clicks + recommendation_clicks)
    return rate         returns / orders

A rate of few events divides by chance: a store with too few impressions in either arm is listed and left out, and so is
one whose control rate is 0, of which no relative improvement exists. Leaving the latter out favours the treated arm
where counts are small; the report says how many stores that were.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from perfusion.errors import DataError
from perfusion.evaluation.records import numbers, read_records, set_aside
from perfusion.statistics import cluster_bootstrap

__all__ = ["COUNTS", "METRICS", "PAPER_TABLE_7", "REASONS", "RULES", "Metric", "evaluate_outcomes"]

COUNTS = (
    "search_impressions", "search_clicks", "recommendation_impressions", "recommendation_clicks", "orders", "returns",
)  # fmt: skip
SEARCH, RECOMMENDED = ("search_impressions",), ("recommendation_impressions",)


@dataclass(frozen=True)
class Metric:
    """A rate of a store's arm.

    Attributes:
        above, below: the counts summed in numerator and denominator.
        seen: impressions that must be enough for the rate to be used.
        lower_is_better: as for returns.
    """

    above: tuple[str, ...]
    below: tuple[str, ...]
    seen: tuple[str, ...]
    lower_is_better: bool = False


METRICS = {
    "search_ctr": Metric(("search_clicks",), SEARCH, SEARCH),
    "recommendation_ctr": Metric(("recommendation_clicks",), RECOMMENDED, RECOMMENDED),
    "conversion_rate": Metric(("orders",), ("search_clicks", "recommendation_clicks"), SEARCH + RECOMMENDED),
    "return_rate": Metric(("returns",), ("orders",), SEARCH + RECOMMENDED, lower_is_better=True),
}
#: As printed; "ctr" is the mean of the two click-through rates' improvements that Sec. 6.3 states.
PAPER_TABLE_7 = {
    "search_ctr": 0.1781, "recommendation_ctr": 0.1335, "ctr": 0.1558, "conversion_rate": 0.1727, "return_rate": -0.079,
}  # fmt: skip
#: What holds of a row that is used; a row counts under the first rule that it breaks.
RULES = {
    "store": "the store is named",
    "arm": "the arm is the treated or the control one",
    "count": "every count is a whole number, 0 or more",
    "clicks": "there are no more clicks than impressions",
}
#: Why a store is not averaged, in the order in which they are looked at.
REASONS = {
    "one_arm": "the store has no row of one of the arms",
    "few_impressions": "an arm has fewer impressions than the limit",
    "no_denominator": "an arm has nothing to divide by: no clicks to convert, no orders to return",
    "more_than_all": "an arm has more returns than orders: not all orders were counted",
    "control_zero": "the control's rate is 0: nothing is a multiple of it",
}


def evaluate_outcomes(
    path: Path | str, treated: str, control: str, *, min_impressions: int = 1000, confidence: float = 0.95,
    resamples: int = 2000, seed: int = 0, min_stores: int = 20,
) -> tuple[dict[str, Any], pd.DataFrame, pd.DataFrame]:  # fmt: skip
    """Table 7 of a file of events: the mean over stores of the relative improvement of each rate, with intervals.

    Args:
        path: .csv or .parquet with the columns store, arm and `COUNTS`.
        treated: the arm of AI-generated items.
        control: the arm it is compared with in the same store.
        min_impressions: impressions that each arm of a store needs: of the rate's own scenario for a click-through
            rate, of both together for conversion and returns.
        confidence: two-sided, in (0, 1).
        resamples: bootstrap resamples of stores.
        seed: of the resampling.
        min_stores: fewer stores than this give no bounds.

    Returns:
        A report for JSON: rows = used + set_aside by rule, stores, metrics {name: {improvement: interval, median,
        better: share of stores that improved, stores, left_out {reason: stores}, lower_is_better}}, where "ctr" is the
        mean of the two click-through rates in stores that have both, and stores = used + left out; a row for each
        store and metric (improvement, or the reason why there is none); and the rows set aside.

    Raises:
        DataError: the file cannot be read, no row is left, or the arms' names are the same.
    """
    if treated == control:
        raise DataError(f"treated and control arm are both {treated!r}; name two arms")
    if min_impressions < 1:
        raise DataError(f"min_impressions is {min_impressions}, want 1 or more: a rate needs something to divide by")
    events, bad = _set_aside_events(read_records(path, ("store", "arm", *COUNTS)), (treated, control))
    if events.empty:
        raise DataError(f"{path}: no row is left of {len(bad)}; set aside: {bad['rule'].value_counts().to_dict()}")
    totals = events.groupby(["arm", "store"])[list(COUNTS)].sum()
    stores = pd.Index(sorted(events["store"].unique()), name="store")
    sums = {
        arm: totals[totals.index.get_level_values("arm") == arm].droplevel("arm").reindex(stores)
        for arm in (treated, control)
    }
    tables = {name: _improvements(metric, sums[treated], sums[control], min_impressions)
              for name, metric in METRICS.items()}  # fmt: skip
    tables["ctr"] = _mean_of_both(tables["search_ctr"], tables["recommendation_ctr"])
    options = {"confidence": confidence, "resamples": resamples, "seed": seed, "min_clusters": min_stores}
    report = {
        "rows": len(events) + len(bad),
        "used": len(events),
        "set_aside": {rule: int((bad["rule"] == rule).sum()) for rule in RULES},
        "stores": len(stores),
        "treated": treated,
        "control": control,
        "min_impressions": min_impressions,
        "metrics": {name: _summary(name, table, options) for name, table in tables.items()},
    }
    return report, pd.concat(tables, names=["metric"]).reset_index(), bad


def _set_aside_events(found: pd.DataFrame, arms: tuple[str, str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    counts = found[list(COUNTS)].apply(numbers)
    whole = ((counts >= 0) & (counts == counts.round())).all(axis=1)
    over = (counts["search_clicks"] > counts["search_impressions"]) | (
        counts["recommendation_clicks"] > counts["recommendation_impressions"]
    )
    broken = {"store": found["store"] == "", "arm": ~found["arm"].isin(arms), "count": ~whole, "clicks": over}
    shown = found[list(COUNTS)].agg(", ".join, axis=1)
    values = {"store": found["arm"], "arm": found["arm"], "count": shown, "clicks": shown}
    return set_aside(pd.concat([found[["store", "arm"]], counts], axis=1), broken, values)


def _improvements(metric: Metric, treated: pd.DataFrame, control: pd.DataFrame, least: int) -> pd.DataFrame:
    """By store: improvement (treated rate / control rate - 1), or NaN and the reason."""
    sums = [(arm[list(metric.above)].sum(axis=1), arm[list(metric.below)].sum(axis=1)) for arm in (treated, control)]
    (above, below), (above_control, below_control) = sums
    seen = [arm[list(metric.seen)].sum(axis=1) for arm in (treated, control)]
    subset = metric.lower_is_better  # returns are part of the orders; orders need not come from counted clicks
    broken = {
        "one_arm": treated.isna().any(axis=1) | control.isna().any(axis=1),
        "few_impressions": (seen[0] < least) | (seen[1] < least),
        "no_denominator": (below == 0) | (below_control == 0),
        "more_than_all": ((above > below) | (above_control > below_control)) & subset,
        "control_zero": above_control == 0,
    }
    reason = pd.Series("", index=treated.index, dtype=object)
    for name, where in broken.items():
        reason[where & (reason == "")] = name
    used = reason == ""
    improvement = pd.Series(np.nan, index=treated.index)
    improvement[used] = (above[used] / below[used]) / (above_control[used] / below_control[used]) - 1
    return pd.DataFrame({"improvement": improvement, "reason": reason})


def _mean_of_both(search: pd.DataFrame, recommendation: pd.DataFrame) -> pd.DataFrame:
    improvement = (search["improvement"] + recommendation["improvement"]) / 2
    return pd.DataFrame(
        {"improvement": improvement, "reason": search["reason"].where(search["reason"] != "", recommendation["reason"])}
    )


def _summary(name: str, table: pd.DataFrame, options: dict[str, Any]) -> dict[str, Any]:
    values = table.loc[table["reason"] == "", "improvement"]
    lower = name in METRICS and METRICS[name].lower_is_better
    better = values < 0 if lower else values > 0
    return {
        "improvement": cluster_bootstrap(values.to_numpy(), values.index.to_numpy(), **options).to_dict(),
        "median": float(values.median()) if len(values) else None,
        "better": float(better.mean()) if len(values) else None,
        "stores": len(values),
        "left_out": {reason: int((table["reason"] == reason).sum()) for reason in REASONS},
        "lower_is_better": lower,
    }
