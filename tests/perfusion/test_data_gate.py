"""The data gate and the measures of drift, by arithmetic and by planted shifts."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from perfusion.config import DataConfig
from perfusion.governance.data_gate import data_gate
from perfusion.governance.drift import (
    compare,
    population_stability_index,
    profile,
    psi_by_chance,
    schema_changes,
    unseen_categories,
)


def report(**changes: Any) -> dict[str, Any]:
    sound: dict[str, Any] = {
        "groups_in": 1000, "quarantined": 50, "valid": 950, "rules": [], "coverage": {"style": 0.9},
        "accepted": {"users": 100, "groups": 900}, "schema_changes": {"missing": [], "retyped": [], "new": []},
        "drift": [{"name": "style", "psi": 0.1, "psi_by_chance": 0.05}],
    }  # fmt: skip
    return sound | changes


def test_a_sound_report_passes_with_every_number_on_record() -> None:
    decision = data_gate(report(), DataConfig())
    assert decision.verdict == "pass"
    assert decision.statistics["bad_share"] == 0.05
    assert decision.statistics["drift"] == {"style": 0.1}
    assert decision.thresholds == {"min_groups": 100, "max_bad_share": 0.1, "min_coverage": 0.5, "max_drift": 0.25}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"valid": 99}, "valid group records 99, needs at least 100"),
        ({"quarantined": 101}, "quarantined share of group records 0.101, may be at most 0.1"),
        ({"coverage": {"style": 0.49}}, "coverage of feature 'style' 0.49, needs at least 0.5"),
        ({"drift": [{"name": "style", "psi": 0.26, "psi_by_chance": 0.05}]}, "of 'style' 0.26, may be at most 0.25"),
        ({"schema_changes": {"missing": ["age"], "retyped": [], "new": []}}, "'age' of the accepted data is missing"),
    ],
)
def test_each_limit_closes_the_gate_with_value_and_bound(changes: dict[str, Any], told: str) -> None:
    decision = data_gate(report(**changes), DataConfig())
    assert decision.verdict == "fail"
    assert told in decision.reasons[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"valid": None},
        {"quarantined": None},
        {"groups_in": 0},
        {"coverage": None},
        {"drift": None},
        {"schema_changes": None},
        {"drift": [{"name": "style", "psi": None, "psi_by_chance": None}]},
        {"drift": [{"name": "style", "psi": math.nan, "psi_by_chance": 0.0}]},
    ],
)
def test_a_missing_number_is_inconclusive(changes: dict[str, Any]) -> None:
    assert data_gate(report(**changes), DataConfig()).verdict == "inconclusive"


def test_few_rows_raise_the_limit_of_drift_to_what_chance_gives() -> None:
    drift = [{"name": "style", "psi": 0.6, "psi_by_chance": 0.7}]
    decision = data_gate(report(drift=drift), DataConfig())
    assert decision.passed
    assert any("0.6, may be at most 0.7" in reason for reason in decision.reasons)


def test_psi_by_arithmetic() -> None:
    # shares .75/.25 against .25/.75 after 1/2 is added to each count: 2 x .5 x ln 3
    found = population_stability_index(np.array([7.0, 2.0]), np.array([2.0, 7.0]))
    assert found == pytest.approx(math.log(3.0))
    assert population_stability_index(np.array([5.0, 5.0]), np.array([500.0, 500.0])) == pytest.approx(0.0)


def test_psi_by_chance_is_exceeded_once_in_a_thousand() -> None:
    random = np.random.default_rng(0)
    shares = np.full(8, 1 / 8)
    before, after = random.multinomial(300, shares, 4000), random.multinomial(500, shares, 4000)
    found = np.array([population_stability_index(p, q) for p, q in zip(before, after, strict=True)])
    exceeded = (found > psi_by_chance(8, 300, 500)).mean()
    assert exceeded < 0.004
    assert np.quantile(found, 0.95) > 0.4 * psi_by_chance(8, 300, 500)


def tables(seed: int, users: int = 400, shift: float = 0.0, bold: float = 0.3) -> tuple[pd.DataFrame, pd.DataFrame]:
    random = np.random.default_rng(seed)
    people = pd.DataFrame(
        {
            "user_id": [f"u{user}" for user in range(users)],
            "style": np.where(random.random(users) < bold, "bold", "plain"),
            "followers": random.normal(shift, 1.0, users),
            "level": random.integers(0, 3, users).astype(float),
        }
    )
    picked = [[True, False, False]] * users
    groups = pd.DataFrame({"prompt": random.choice(["dress, red", "top"], users), "picked": picked})
    return people, groups.assign(image_ids=[["a", "b", "c"]] * users)


def by_name(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in rows}


def test_another_sample_of_the_same_population_does_not_drift() -> None:
    accepted = json.loads(json.dumps(profile(*tables(0))))
    for row in compare(accepted, *tables(1)):
        assert row["psi"] <= max(0.25, row["psi_by_chance"])
        assert row.get("p_value", 1.0) > 0.001


def test_shifts_are_found_where_they_are_and_only_there() -> None:
    rows = by_name(compare(profile(*tables(0)), *tables(1, shift=1.0, bold=0.8)))
    assert rows["followers"]["psi"] > 0.25
    assert rows["followers"]["p_value"] < 1e-6
    assert rows["style"]["psi"] > 0.25
    assert rows["level"]["psi"] < 0.25
    assert rows["candidates per group"]["psi"] == pytest.approx(0.0)


def test_a_constant_number_that_moves_is_found_on_both_sides() -> None:
    users, groups = tables(0)
    accepted = profile(users.assign(level=1.0), groups)
    for moved in (0.0, 2.0):
        assert by_name(compare(accepted, users.assign(level=moved), groups))["level"]["psi"] > 5


def test_groups_drift_too() -> None:
    users, groups = tables(0)
    accepted = profile(users, groups)
    more = groups.assign(
        prompt="coat, blue", image_ids=[["a"] * 6] * len(groups), picked=[[True, True] + [False] * 4] * len(groups)
    )
    rows = by_name(compare(accepted, users, more))
    assert all(rows[name]["psi"] > 1 for name in ("candidates per group", "picks per group", "prompt phrases"))


def test_unseen_categories_and_schema_changes() -> None:
    users, groups = tables(0)
    accepted = profile(users, groups)
    now = users.drop(columns="level").assign(followers="many", region="north")
    now.loc[:3, "style"] = "steampunk"
    assert unseen_categories(accepted, now) == {"style": {"categories": 1, "share": 0.01, "examples": ["steampunk"]}}
    assert schema_changes(accepted, now) == {"missing": ["level"], "retyped": ["followers"], "new": ["region"]}


def test_a_feature_without_values_is_not_compared_and_does_not_stop_others() -> None:
    users, groups = tables(0)
    empty = users.assign(followers=np.nan, style=None)
    rows = by_name(compare(profile(users, groups), empty, groups))
    assert rows["followers"]["psi"] is None
    assert rows["level"]["psi"] == pytest.approx(0.0)
    assert schema_changes(profile(users, groups), empty)["retyped"] == []
    again = by_name(compare(profile(empty, groups), users, groups))
    assert again["level"]["psi"] == pytest.approx(0.0)


def test_a_profile_stays_small_and_says_when_it_left_categories_out() -> None:
    users, groups = tables(0, users=5000)
    named = users.assign(style=[f"style {user}" for user in range(5000)])
    accepted = profile(named, groups)
    assert len(json.dumps(accepted)) < 200_000
    assert accepted["variables"]["style"]["truncated"]
    assert "style" not in unseen_categories(accepted, named.assign(style="new"))
