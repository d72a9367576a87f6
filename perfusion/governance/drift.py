"""Drift: how far new data lies from the last accepted data, variable by variable. Pure; profiles are plain JSON values.

A variable is one column of users' features, or one derived from the groups (candidates, picks, phrases of the prompts).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

__all__ = [
    "compare",
    "population_stability_index",
    "profile",
    "psi_by_chance",
    "schema_changes",
    "unseen_categories",
    "variables",
]

# A profile stays a small file whatever the data's size.
MAX_CATEGORIES = 2000
MAX_SAMPLE = 1001
# Categories beyond the most common ones share a bin: rare ones carry noise, not drift.
COMPARED_CATEGORIES = 50
CHANCE = 0.001


def variables(users: pd.DataFrame, groups: pd.DataFrame) -> dict[str, pd.Series]:
    """What is compared: each feature of users by its own name, then facts of the groups in names with a space.

    Args:
        users: user_id and feature columns; numbers are compared as numbers, everything else as categories.
        groups: prompt (str), image_ids and picked (lists of equal length).
    """
    features = {str(name): users[name] for name in users.columns if name != "user_id"}
    phrases = groups["prompt"].str.split(",").explode().str.strip().reset_index(drop=True)
    return features | {
        "candidates per group": groups["image_ids"].map(len).astype("int64"),
        "picks per group": groups["picked"].map(sum).astype("int64"),
        "prompt phrases": phrases[phrases != ""],
    }


def profile(users: pd.DataFrame, groups: pd.DataFrame) -> dict[str, Any]:
    """The profile that later data is compared with: counts of categories, deciles and a sample of numbers."""
    named = variables(users, groups)
    return {
        "users": len(users),
        "groups": len(groups),
        "features": [str(name) for name in users.columns if name != "user_id"],
        "variables": {name: _summary(values.dropna()) for name, values in named.items()},
    }


def compare(accepted: Mapping[str, Any], users: pd.DataFrame, groups: pd.DataFrame) -> list[dict[str, Any]]:
    """Every variable of the accepted profile against the new data.

    Returns:
        One record a variable: name, kind, psi (>= 0; None where either side has no value), psi_by_chance (what equal
        populations of these sizes exceed once in a thousand), p_value (of Kolmogorov and Smirnov's test, or for
        categories of chi-square; right where rows are independent, as users are), and for numbers ks (in [0, 1]).
    """
    named = variables(users, groups)
    rows = []
    for name, summary in accepted["variables"].items():
        if name in named and _kind(named[name]) == summary["kind"]:
            rows.append({"name": name, "kind": summary["kind"], **_distance(summary, named[name].dropna())})
    return rows


def unseen_categories(accepted: Mapping[str, Any], users: pd.DataFrame, examples: int = 10) -> dict[str, Any]:
    """Categories of users' features that the accepted data did not have: count, share of users, first examples."""
    found = {}
    for name in accepted["features"]:
        summary = accepted["variables"][name]
        if name not in users or summary["kind"] != "category" or summary["truncated"]:
            continue
        values = users[name].dropna().astype(str)
        new = values[~values.isin(list(summary["counts"]))]
        if len(new):
            names = sorted(new.unique())
            share = len(new) / len(values)
            found[name] = {"categories": len(names), "share": share, "examples": names[:examples]}
    return found


def schema_changes(accepted: Mapping[str, Any], users: pd.DataFrame) -> dict[str, list[str]]:
    """Features that went missing, changed their type or are new since the accepted data."""
    now = [str(name) for name in users.columns if name != "user_id"]
    before = list(accepted["features"])
    kinds = {name: accepted["variables"][name]["kind"] for name in before}
    empty = {name for name in now if users[name].notna().sum() == 0}
    return {
        "missing": [name for name in before if name not in now],
        "retyped": [n for n in before if n in now and n not in empty and _kind(users[n]) != kinds[n]],
        "new": [name for name in now if name not in before],
    }


def population_stability_index(before: np.ndarray, after: np.ndarray) -> float:
    """PSI = sum (p - q) ln(p / q) >= 0 over bins of counts (K,); 1/2 is added to each, so none is infinite."""
    p = (before + 0.5) / (before + 0.5).sum()
    q = (after + 0.5) / (after + 0.5).sum()
    return float(np.sum((p - q) * np.log(p / q)))


def psi_by_chance(bins: int, before: int, after: int) -> float:
    """The PSI that two samples of ONE population exceed with probability .001: chi-square over bins - 1, scaled.

    Source: PSI is a symmetrised divergence, about chi2(bins - 1) x (1/n + 1/m) when nothing changed. With few rows this
    lies far above the customary limit of .25, which alone would then raise false alarms.
    """
    from scipy.stats import chi2  # here and below: it takes half a second to import

    return float(chi2.ppf(1.0 - CHANCE, max(1, bins - 1)) * (1.0 / before + 1.0 / after))


def _kind(values: pd.Series) -> str:
    return "number" if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values) else "category"


def _summary(values: pd.Series) -> dict[str, Any]:
    if _kind(values) == "number":
        numbers = values.to_numpy(dtype="float64")
        edges = _edges(numbers)
        sample = numbers
        if len(numbers) > MAX_SAMPLE:
            sample = np.quantile(numbers, np.linspace(0, 1, MAX_SAMPLE))
        return {
            "kind": "number",
            "total": len(numbers),
            "edges": edges.tolist(),
            "counts": _counts(numbers, edges).tolist(),
            "sample": np.sort(sample).tolist(),
        }
    counts = values.astype(str).value_counts()
    counts = counts.sort_index(kind="stable").sort_values(ascending=False, kind="stable")
    kept = counts.iloc[:MAX_CATEGORIES]
    return {
        "kind": "category",
        "total": int(counts.sum()),
        "counts": {str(name): int(count) for name, count in kept.items()},
        "truncated": len(counts) > MAX_CATEGORIES,
    }


def _edges(numbers: np.ndarray) -> np.ndarray:
    """Upper edges of the bins: the values themselves where there are few, else deciles; one bin below the smallest."""
    if len(numbers) == 0:
        return np.zeros(0)
    distinct = np.unique(numbers)
    inner = distinct if len(distinct) <= 20 else np.unique(np.quantile(numbers, np.linspace(0, 1, 11)))[1:]
    return np.concatenate([[np.nextafter(distinct[0], -np.inf)], inner])


def _counts(numbers: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """(len(edges) + 1,) counts; bin i holds edges[i-1] < value <= edges[i]."""
    return np.bincount(np.searchsorted(edges, numbers, side="left"), minlength=len(edges) + 1)


def _distance(summary: Mapping[str, Any], values: pd.Series) -> dict[str, Any]:
    if summary["total"] == 0 or len(values) == 0:
        return {"psi": None, "psi_by_chance": None}
    if summary["kind"] == "number":
        from scipy.stats import ks_2samp

        numbers = values.to_numpy(dtype="float64")
        before = np.asarray(summary["counts"], dtype=float)
        after = _counts(numbers, np.asarray(summary["edges"])).astype(float)
        test = ks_2samp(np.asarray(summary["sample"]), numbers)
        extra = {"ks": float(test.statistic), "p_value": float(test.pvalue)}
    else:
        before, after = _category_counts(summary, values)
        extra = {"p_value": _same_shares(before, after)}
    used = (before > 0) | (after > 0)
    psi = population_stability_index(before[used], after[used])
    return {"psi": psi, "psi_by_chance": psi_by_chance(int(used.sum()), summary["total"], len(values)), **extra}


def _same_shares(before: np.ndarray, after: np.ndarray) -> float:
    """The p-value of equal shares; bins of which fewer than five are expected on a side share one."""
    from scipy.stats import chi2_contingency

    table = np.stack([before, after])
    expected = table.sum(0) * table.sum(1).min() / table.sum()
    table = np.column_stack([table[:, expected >= 5], table[:, expected < 5].sum(1)])
    table = table[:, table.sum(0) > 0]
    return float(chi2_contingency(table, correction=False).pvalue) if table.shape[1] > 1 else 1.0


def _category_counts(summary: Mapping[str, Any], values: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Counts before and after over the most common accepted categories and one bin for all the others."""
    common = list(summary["counts"])[:COMPARED_CATEGORIES]
    now = values.astype(str).value_counts()
    before = [summary["counts"][name] for name in common]
    after = [int(now.get(name, 0)) for name in common]
    before.append(summary["total"] - sum(before))
    after.append(len(values) - sum(after))
    return np.asarray(before, dtype=float), np.asarray(after, dtype=float)
