"""Ratings of pictures by human experts (Table 6, Sec. 6.1): ratios of arm means, and how far the raters agree.

A rating is one row: rater, item, arm, aspect, score. Scores are 0 (poor), 1 (average) or 2 (good). Overall is a rating
of its own that raters give, and not the mean of the six aspects: in the paper that mean would be 1.652 against 1.798, a
ratio of 91.9 %, where Overall stands at 94.30 %.

Items are resampled for the intervals, with all their ratings, so that an interval speaks about other items rated by
the same raters. An item of the same name in two arms is a pair and is drawn as one.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from perfusion.errors import DataError
from perfusion.evaluation.records import numbers, read_records, set_aside
from perfusion.statistics import Floats, Interval, cluster_statistic

__all__ = ["ASPECTS", "OVERALL", "PAPER_TABLE_6", "RULES", "evaluate_experts", "mean_ratio", "write_template"]

ASPECTS = (
    "material quality", "model realism", "craft design", "pattern appropriateness", "design aesthetics",
    "color coordination",
)  # fmt: skip
OVERALL = "overall"
SCORES = (0.0, 1.0, 2.0)
COLUMNS = ("rater", "item", "arm", "aspect", "score")
#: aspect -> mean of AI-generated items, mean of human-designed items, their ratio, as printed.
PAPER_TABLE_6: dict[str, tuple[float, float, float]] = {
    "material quality": (1.5168, 1.6260, 0.9328),
    "model realism": (1.7020, 1.8888, 0.9011),
    "craft design": (1.4520, 1.7648, 0.8228),
    "pattern appropriateness": (1.6972, 1.8464, 0.9192),
    "design aesthetics": (1.7932, 1.8708, 0.9585),
    "color coordination": (1.7532, 1.7932, 0.9777),
    OVERALL: (1.6720, 1.7730, 0.9430),
}
#: What holds of a rating that is used; a row counts under the first rule that it breaks.
RULES = {
    "unnamed": "rater, item and arm are given",
    "aspect": f"the aspect is one of the six, or {OVERALL}",
    "blank": "the rater gave a score",
    "score": "the score is 0, 1 or 2",
    "contradictory": "a rater scores an aspect of an item in one way only",
    "repeated": "the rating comes for the first time",
}


def mean_ratio(means: Floats) -> Floats:
    """Ratio of two arms' mean scores, from the means over all rows (Table 6's last column).

    Args:
        means: (..., 4) means over rows of: the treated arm's scores (0 elsewhere), the baseline's, and the shares of
            rows that each has.

    Returns:
        (...) ratios; NaN where an arm has no row or the baseline's mean is 0.
    """
    treated, baseline, rows_treated, rows_baseline = np.moveaxis(np.asarray(means, dtype=np.float64), -1, 0)
    defined = (rows_treated > 0) & (baseline > 0)
    below = np.where(defined, baseline * rows_treated, 1.0)
    return np.where(defined, treated * rows_baseline / below, np.nan)


def evaluate_experts(
    path: Path | str, baseline: str, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0,
    min_items: int = 20,
) -> tuple[dict[str, Any], pd.DataFrame]:  # fmt: skip
    """Table 6 of a file of ratings: each arm's means and ratios to the baseline by aspect, with intervals.

    Args:
        path: .csv or .parquet with the columns rater, item, arm, aspect, score.
        baseline: the arm that the others are divided by, e.g. the human-designed items.
        confidence: two-sided, in (0, 1).
        resamples: bootstrap resamples of items.
        seed: of the resampling.
        min_items: fewer items than this give no bounds.

    Returns:
        A report for JSON: rows = used + set_aside by rule, raters, items, arms, baseline, aspects [{aspect, means
        {arm: mean}, ratios {arm: interval}, ratings, alpha, alpha_missing: why alpha is null}], mean_of_aspects
        {arm: mean of the six aspects' means}; and the rows set aside (index `row`; rule, value).

    Raises:
        DataError: the file cannot be read, no rating is left, the baseline is not among the arms, or alone.
    """
    ratings, bad = set_aside_ratings(read_records(path, COLUMNS))
    arms = sorted(ratings["arm"].unique())
    if ratings.empty:
        raise DataError(f"{path}: no rating is left of {len(bad)}; set aside: {bad['rule'].value_counts().to_dict()}")
    if baseline not in arms or len(arms) < 2:
        raise DataError(f"{path}: arms {', '.join(arms)}; a ratio needs the baseline {baseline!r} and another arm")
    options = {"confidence": confidence, "resamples": resamples, "seed": seed, "min_clusters": min_items}
    present = [aspect for aspect in (*ASPECTS, OVERALL) if (ratings["aspect"] == aspect).any()]
    aspects = [_aspect(ratings[ratings["aspect"] == aspect], aspect, arms, baseline, options) for aspect in present]
    six = [row["means"] for row in aspects if row["aspect"] != OVERALL]
    report = {
        "rows": len(ratings) + len(bad),
        "used": len(ratings),
        "set_aside": {rule: int((bad["rule"] == rule).sum()) for rule in RULES},
        "raters": int(ratings["rater"].nunique()),
        "items": int(ratings["item"].nunique()),
        "arms": arms,
        "baseline": baseline,
        "aspects": aspects,
        "aspects_missing": [aspect for aspect in (*ASPECTS, OVERALL) if aspect not in present],
        "mean_of_aspects": {arm: _mean([row[arm] for row in six]) for arm in arms},
    }
    return report, bad


def set_aside_ratings(found: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Part ratings by `RULES`; scores become numbers and aspects get the spelling of `ASPECTS`."""
    spelled = found["aspect"].str.lower().str.replace(r"[\s_\-]+", " ", regex=True).str.replace("colour", "color")
    score = numbers(found["score"])
    frame = found.assign(aspect=spelled, score=score)
    key = ["rater", "item", "arm", "aspect"]
    sound = (frame[key[:3]] != "").all(axis=1) & frame["aspect"].isin([*ASPECTS, OVERALL]) & frame["score"].isin(SCORES)
    among = frame[sound]
    differ = among.groupby(key)["score"].transform("nunique") > 1
    broken = {
        "unnamed": (frame[key[:3]] == "").any(axis=1),
        "aspect": ~frame["aspect"].isin([*ASPECTS, OVERALL]),
        "blank": found["score"] == "",
        "score": ~frame["score"].isin(SCORES),
        "contradictory": differ.reindex(frame.index, fill_value=False),
        "repeated": among.duplicated(key).reindex(frame.index, fill_value=False),
    }
    name = found["rater"] + " / " + found["item"] + " / " + found["arm"]
    rating = name + " / " + found["aspect"] + " / " + found["score"]
    values = {"unnamed": name, "aspect": found["aspect"], "blank": name, "score": found["score"]}
    return set_aside(frame, broken, {**values, "contradictory": rating, "repeated": rating})


def _aspect(
    rows: pd.DataFrame, aspect: str, arms: Sequence[str], baseline: str, options: dict[str, Any]
) -> dict[str, Any]:
    alpha, missing = agreement(rows)
    means = {arm: _mean(rows.loc[rows["arm"] == arm, "score"]) for arm in arms}
    ratios = {arm: _ratio(rows, arm, baseline, options).to_dict() for arm in arms if arm != baseline}
    return {
        "aspect": aspect, "means": means, "ratios": ratios, "ratings": len(rows), "alpha": alpha,
        "alpha_missing": missing,
    }  # fmt: skip


def _ratio(rows: pd.DataFrame, arm: str, baseline: str, options: dict[str, Any]) -> Interval:
    both = rows[rows["arm"].isin([arm, baseline])]
    treated, control = (both["arm"] == name for name in (arm, baseline))
    columns = np.stack([both["score"] * treated, both["score"] * control, treated, control], axis=1).astype(float)
    return cluster_statistic(columns, both["item"].to_numpy(), mean_ratio, **options)


def agreement(rows: pd.DataFrame) -> tuple[float | None, str]:
    """Krippendorff's alpha of one aspect for ordered scores, over (item, arm) units; or None and why there is none."""
    import krippendorff

    table = rows.pivot(index="rater", columns=["item", "arm"], values="score")
    if not (table.notna().sum() > 1).any():
        return None, "no item was scored by two raters"
    shared = table.loc[:, table.notna().sum() > 1]
    if np.unique(shared.to_numpy()[shared.notna().to_numpy()]).size < 2:
        return None, "all scores are the same, so that there is nothing to agree about"
    return float(krippendorff.alpha(reliability_data=table.to_numpy(), level_of_measurement="ordinal")), ""


def write_template(path: Path | str, items: Path | str, raters: Sequence[str]) -> int:
    """Write an empty sheet for raters to fill in: a row for each rater, item and aspect, and Overall last.

    Args:
        path: the .csv file to create.
        items: .csv or .parquet with the columns item and arm.
        raters: names of raters.

    Returns:
        The number of rows.

    Raises:
        DataError: an item or arm has no name, an item comes twice, there is no rater, or `path` is there already.
    """
    path, listed = Path(path), read_records(items, ("item", "arm"))
    if path.exists():
        raise DataError(f"{path}: is there already, and may hold ratings; name another file")
    if not raters or len(set(raters)) < len(raters) or not all(rater.strip() for rater in raters):
        raise DataError(f"raters {list(raters)}: each needs a name of its own, and there must be one at least")
    faulty = (listed == "").any(axis=1) | listed.duplicated()
    if faulty.any():
        row = int(faulty.idxmax())
        raise DataError(f"{items}: row {row} is unnamed or repeated ({', '.join(listed.loc[row])}); mend or drop it")
    sheet = itertools.product(raters, listed.itertuples(index=False, name=None), (*ASPECTS, OVERALL))
    rows = [(rater, item, arm, aspect, "") for rater, (item, arm), aspect in sheet]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    return len(rows)


def _mean(values: Sequence[float] | pd.Series) -> float | None:
    given = [value for value in values if value is not None]
    return float(np.mean(given)) if given else None
