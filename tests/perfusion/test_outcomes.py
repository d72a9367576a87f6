"""Outcomes in shops (Table 7): within-store improvements, and the stores that cannot be averaged."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from perfusion.errors import DataError
from perfusion.evaluation.outcomes import COUNTS, PAPER_TABLE_7, REASONS, RULES, evaluate_outcomes

RATES = ("search_ctr", "recommendation_ctr", "conversion_rate", "return_rate")


def shops(seed: int, stores: int = 120) -> pd.DataFrame:
    """Stores with rates of their own; the treated arm's are the paper's improvements above them."""
    random = np.random.default_rng(seed)
    rows = []
    for store in range(stores):
        search, recommended, bought, returned = random.uniform([0.03, 0.05, 0.1, 0.2], [0.06, 0.1, 0.2, 0.4])
        for arm in ("ai", "human"):
            up = [1 + PAPER_TABLE_7[name] * (arm == "ai") for name in RATES]
            seen = random.integers(20_000, 60_000, 2)
            clicks = [random.binomial(seen[0], search * up[0]), random.binomial(seen[1], recommended * up[1])]
            orders = random.binomial(sum(clicks), bought * up[2])
            rows.append(
                (f"s{store}", arm, seen[0], clicks[0], seen[1], clicks[1], orders,
                 random.binomial(orders, returned * up[3]))
            )  # fmt: skip
    return pd.DataFrame(rows, columns=["store", "arm", *COUNTS])


def exact(store: str, arm: str, **changes: int) -> dict[str, object]:
    """A store whose rates are 10 %, 20 %, 10 % and 25 %, unless changed."""
    counts = dict(zip(COUNTS, (10_000, 1_000, 10_000, 2_000, 300, 75), strict=True)) | changes
    return {"store": store, "arm": arm, **counts}


def saved(frame: pd.DataFrame, path):
    frame.to_csv(path, index=False)
    return path


def test_planted_improvements_lie_in_their_intervals(tmp_path):
    report, by_store, bad = evaluate_outcomes(saved(shops(1), tmp_path / "events.csv"), "ai", "human")
    assert bad.empty
    for name, figures in report["metrics"].items():
        interval = figures["improvement"]
        assert interval["low"] < PAPER_TABLE_7[name] < interval["high"], name
        assert interval["high"] - interval["low"] < 0.06
        assert interval["clusters"] == figures["stores"] == report["stores"] == 120
        assert figures["better"] > 0.75
    assert report["metrics"]["return_rate"]["lower_is_better"]
    assert len(by_store) == 5 * 120
    json.dumps(report, allow_nan=False)


def test_the_papers_averages_follow_from_its_rows(tmp_path):
    """Every store improves by what Table 7 prints; 15.58 % is the mean of the two click-through rates."""
    base = {"search_impressions": 10**8, "search_clicks": 10**7, "recommendation_impressions": 10**8,
            "recommendation_clicks": 10**7, "orders": 2 * 10**6, "returns": 5 * 10**5}  # fmt: skip
    treated = base | {"search_clicks": 11_781_000, "recommendation_clicks": 11_335_000}
    treated["orders"] = round(2 * 10**6 / (2 * 10**7) * 1.1727 * (11_781_000 + 11_335_000))
    treated["returns"] = round(0.25 * (1 - 0.079) * treated["orders"])
    rows = [{"store": f"s{n}", "arm": arm, **counts} for n in range(20)
            for arm, counts in (("ai", treated), ("human", base))]  # fmt: skip
    report, _, _ = evaluate_outcomes(saved(pd.DataFrame(rows), tmp_path / "events.csv"), "ai", "human")
    for name, printed in PAPER_TABLE_7.items():
        assert report["metrics"][name]["improvement"]["mean"] == pytest.approx(printed, abs=1e-6)
    both = (PAPER_TABLE_7["search_ctr"] + PAPER_TABLE_7["recommendation_ctr"]) / 2
    assert both == pytest.approx(PAPER_TABLE_7["ctr"], abs=5e-5)


def test_each_store_counts_the_same_whatever_its_size(tmp_path):
    """A large store with no change and a small one that doubles: the mean is 50 %, the pooled rate would show 1 %."""
    rows = [exact("large", arm, search_impressions=10**6, search_clicks=10**5) for arm in ("ai", "human")]
    rows += [exact("small", "ai", search_clicks=2_000), exact("small", "human")]
    report, _, _ = evaluate_outcomes(saved(pd.DataFrame(rows), tmp_path / "e.csv"), "ai", "human")
    assert report["metrics"]["search_ctr"]["improvement"]["mean"] == pytest.approx(0.5)
    assert report["metrics"]["search_ctr"]["improvement"]["low"] is None  # two stores give no bounds


def test_rows_of_a_store_are_summed(tmp_path):
    whole = shops(2, stores=25)
    parts = []
    for row in whole.to_dict("records"):
        day = {name: row[name] // 3 for name in COUNTS}
        parts += [row | day, row | {name: row[name] - day[name] for name in COUNTS}]
    one, _, _ = evaluate_outcomes(saved(whole, tmp_path / "one.csv"), "ai", "human")
    two, _, _ = evaluate_outcomes(saved(pd.DataFrame(parts[::-1]), tmp_path / "two.csv"), "ai", "human")
    assert one["metrics"] == two["metrics"]
    whole.to_parquet(tmp_path / "one.parquet")
    assert evaluate_outcomes(tmp_path / "one.parquet", "ai", "human")[0] == one


def test_stores_that_cannot_be_averaged_are_listed_with_the_reason(tmp_path):
    rows = [
        *(exact("good", arm) for arm in ("ai", "human")),
        exact("alone", "ai"),
        exact("few", "ai", search_impressions=900, search_clicks=90), exact("few", "human"),
        exact("unclicked", "ai", search_clicks=0, recommendation_clicks=0, orders=0, returns=0),
        exact("unclicked", "human"),
        exact("unsold", "ai", orders=0, returns=0), exact("unsold", "human"),
        exact("late", "ai", orders=10, returns=20), exact("late", "human"),
        exact("kept", "ai"), exact("kept", "human", returns=0),
        exact("ignored", "ai"), exact("ignored", "human", search_clicks=0),
    ]  # fmt: skip
    report, by_store, _ = evaluate_outcomes(saved(pd.DataFrame(rows), tmp_path / "e.csv"), "ai", "human")
    reason = by_store.set_index(["metric", "store"])["reason"]
    assert reason["search_ctr"].to_dict() == {
        "alone": "one_arm", "few": "few_impressions", "good": "", "ignored": "control_zero", "kept": "", "late": "",
        "unclicked": "", "unsold": "",
    }  # fmt: skip
    assert reason["conversion_rate", "unclicked"] == "no_denominator"
    assert reason["conversion_rate", "few"] == ""  # both scenarios together are enough
    assert reason["return_rate", "unsold"] == "no_denominator"
    assert reason["return_rate", "late"] == "more_than_all"
    assert reason["return_rate", "kept"] == "control_zero"
    assert reason["ctr", "few"] == "few_impressions"
    for name, figures in report["metrics"].items():
        assert figures["stores"] + sum(figures["left_out"].values()) == report["stores"] == 8, name
        assert set(figures["left_out"]) == set(REASONS)
    assert np.isfinite(by_store.loc[by_store["reason"] == "", "improvement"]).all()
    json.dumps(report, allow_nan=False)


def test_each_defect_costs_its_own_row_and_the_counts_add_up(tmp_path):
    good = [exact(f"s{n}", arm) for n in range(20) for arm in ("ai", "human")]
    dirt = [
        ("store", exact("", "ai")),
        ("arm", exact("s1", "robot")),
        ("arm", exact("s1", "")),
        ("count", exact("s1", "ai", orders=-1)),
        ("count", exact("s1", "ai") | {"returns": ""}),
        ("count", exact("s1", "ai") | {"orders": "1.5"}),
        ("count", exact("s1", "ai") | {"orders": "many"}),
        ("clicks", exact("s1", "ai", search_clicks=10_001)),
        ("clicks", exact("s1", "ai", recommendation_clicks=10_001)),
    ]
    frame = pd.DataFrame([*good, *(row for _, row in dirt)])
    report, _, bad = evaluate_outcomes(saved(frame, tmp_path / "e.csv"), "ai", "human")
    assert report["set_aside"] == {rule: sum(name == rule for name, _ in dirt) for rule in RULES}
    assert report["rows"] == len(frame) == report["used"] + sum(report["set_aside"].values())
    assert bad["rule"].tolist() == [name for name, _ in dirt]
    assert bad["value"].iloc[1] == "robot"
    assert report["metrics"]["return_rate"]["improvement"]["mean"] == 0.0


def test_what_cannot_be_evaluated_is_named(tmp_path):
    path = saved(pd.DataFrame([exact("s", "ai")]), tmp_path / "e.csv")
    with pytest.raises(DataError, match="both 'ai'"):
        evaluate_outcomes(path, "ai", "ai")
    with pytest.raises(DataError, match=r"no row is left of 1; set aside: \{'arm': 1\}"):
        evaluate_outcomes(path, "x", "y")
    with pytest.raises(DataError, match="min_impressions is 0"):
        evaluate_outcomes(path, "ai", "human", min_impressions=0)
    report, _, _ = evaluate_outcomes(path, "ai", "human")
    assert report["metrics"]["ctr"]["improvement"]["mean"] is None
    assert report["metrics"]["ctr"]["left_out"]["one_arm"] == 1
