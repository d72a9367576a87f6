"""Drift: what was planted is found and named, and where nothing moved there is hardly ever an alarm."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from perfusion.config import GatesConfig, MonitorConfig
from perfusion.errors import DataError
from perfusion.governance.monitor import calibration_error, monitor_gate, outcomes_gate
from perfusion.governance.shift import shifts
from perfusion.governance.snapshot import Snapshot, take_snapshot
from perfusion.statistics import Interval

CONFIG, GATES = MonitorConfig(), GatesConfig(resamples=200)
KINDS = ("dress", "coat", "skirt", "blouse", "jumper", "gown", "vest")
NECKS = ("v-neck", "round-neck", "boat-neck", "halter")


def shop(seed: int, users: int = 120, records: int = 12, **moved: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Merchants with habits of their own (records of one resemble each other), and their records.

    Args:
        moved: what to plant: "bold" (more bold merchants), "age" (years older), "long" (share of prompts with two
            phrases more), "slang" (share with an unheard-of word), "picks" (chance of a second pick), "kind" (share of
            prompts about one kind).
    """
    rng = np.random.default_rng(seed)
    names = [f"m{seed}-{number}" for number in range(users)]
    style = np.where(rng.random(users) < 0.3 + moved.get("bold", 0.0), "bold", rng.choice(["plain", "soft"], users))
    people = pd.DataFrame({"user_id": names, "style": style, "age": rng.normal(40 + moved.get("age", 0.0), 9, users)})
    rows = []
    for name in names:
        habit = rng.dirichlet([0.5] * len(KINDS))
        for number in range(rng.integers(2, records)):
            kind = KINDS[0] if rng.random() < moved.get("kind", 0.0) else rng.choice(KINDS, p=habit)
            phrases = [kind, rng.choice(NECKS)]
            phrases += ["long sleeves", "slim-fit"] if rng.random() < moved.get("long", 0.0) else []
            phrases += ["zorgle"] if rng.random() < moved.get("slang", 0.0) else []
            size = int(rng.integers(3, 6))
            picked = [False] * size
            for place in rng.choice(size, 1 + (rng.random() < moved.get("picks", 0.1)), replace=False):
                picked[place] = True
            ids = [f"{name}-{number}-{place}" for place in range(size)]
            rows.append((f"{name}-{number}", name, pd.Timestamp(2026, 1, 1), ", ".join(phrases), ids, picked))
    columns = ["record_id", "user_id", "created_at", "prompt", "image_ids", "picked"]
    return people, pd.DataFrame(rows, columns=columns)


def moved_names(snapshot: Snapshot, fresh: tuple[pd.DataFrame, pd.DataFrame]) -> set[str]:
    return {row.variable for row in shifts(snapshot, *fresh, CONFIG) if row.shifted}


@pytest.fixture(scope="module")
def snapshot() -> Snapshot:
    return take_snapshot(*shop(0, users=300))


@pytest.mark.parametrize(
    ("planted", "found"),
    [
        ({"bold": 0.5}, "style"), ({"age": 12.0}, "age"), ({"long": 0.5}, "phrases a prompt"),
        ({"long": 0.5}, "prompt characters"), ({"slang": 0.3}, "unseen words"), ({"picks": 0.8}, "pick share"),
        ({"kind": 0.7}, "prompt phrases"),
    ],
)  # fmt: skip
def test_planted_drift_is_found_by_its_name(snapshot: Snapshot, planted: dict[str, float], found: str) -> None:
    names = moved_names(snapshot, shop(1, **planted))
    assert found in names
    assert not names & ({"style", "age"} - {found}), "features that nobody touched"


def test_false_alarms_are_rare() -> None:
    """Thirty pairs of shops with equal habits, fresh records of few merchants; alarms of any of eight variables."""
    alarms = sum(bool(moved_names(take_snapshot(*shop(seed)), shop(1000 + seed, users=50))) for seed in range(30))
    assert alarms <= 1


def test_significance_alone_is_calibrated_over_users() -> None:
    """A p-value that took records for independent would be under .05 far more often than in one of twenty."""
    values = []
    for seed in range(40):
        rows = shifts(take_snapshot(*shop(seed, users=60)), *shop(500 + seed, users=40), CONFIG)
        values += [row.p_value for row in rows if row.variable in ("prompt characters", "pick share")]
    assert np.mean(np.array(values) < 0.05) < 0.12


def test_the_same_records_moved_nowhere(snapshot: Snapshot) -> None:
    users, groups = shop(0, users=300)
    rows = shifts(snapshot, users, groups, CONFIG)
    assert max(row.size for row in rows if row.variable != "unseen words") == pytest.approx(0, abs=1e-9)
    assert not any(row.shifted for row in rows)


def test_a_snapshot_comes_back_as_it_was_kept(snapshot: Snapshot, tmp_path: Path) -> None:
    snapshot.save(tmp_path)
    again = Snapshot.load(tmp_path)
    assert (again.profile, again.words, again.latest) == (snapshot.profile, snapshot.words, snapshot.latest)
    pd.testing.assert_frame_equal(again.facts, snapshot.facts)
    (tmp_path / "snapshot.json").write_text("{}")
    with pytest.raises(DataError, match="--reference"):
        Snapshot.load(tmp_path)


def ranked(auc: float, users: int = 60, seed: int = 0) -> pd.DataFrame:
    """Groups of `users` merchants with areas under the curve about `auc`."""
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {"user_id": np.repeat([f"m{seed}-{n}" for n in range(users)], 8), "auc": rng.normal(auc, 0.1, 8 * users)}
    )


def candidates(sharpness: float, users: int = 60) -> pd.DataFrame:
    """Pairs of which the first is picked with probability p; predictions are p ** sharpness over both."""
    rng = np.random.default_rng(1)
    p = rng.uniform(0.05, 0.95, 20 * users)
    first = rng.random(len(p)) < p
    told = p**sharpness / (p**sharpness + (1 - p) ** sharpness)
    name = np.repeat([f"m0-{n}" for n in range(users)], 20)
    both = [pd.DataFrame({"user_id": name, "predicted": told, "picked": first.astype(float)}),
            pd.DataFrame({"user_id": name, "predicted": 1 - told, "picked": 1.0 - first})]  # fmt: skip
    return pd.concat(both, ignore_index=True)


def test_calibration_error_tells_what_is_sure_from_what_is_boasted() -> None:
    options = GATES.interval_options(0)
    assert calibration_error(candidates(1.0), options).mean < 0.04
    assert calibration_error(candidates(4.0), options).low > 0.1


def judged(fresh: tuple[pd.DataFrame, pd.DataFrame], auc: float, sharpness: float = 1.0, then: float = 0.9):
    users, groups = shop(0, users=300)
    snapshot = take_snapshot(users, groups, ranked(then, seed=7))
    moved = shifts(snapshot, *fresh, CONFIG)
    return monitor_gate(snapshot, *fresh, moved, ranked(auc), candidates(sharpness), CONFIG, GATES)


def test_three_verdicts_of_the_monitor() -> None:
    fresh = shop(1)
    assert judged(fresh, 0.9).verdict == "pass"
    worse = judged(fresh, 0.75)
    assert worse.verdict == "fail"
    assert worse.reasons[0].startswith("fail: GAUC of fresh picks minus")
    assert judged(fresh, 0.9, sharpness=4.0).reasons[0].startswith("fail: calibration error")
    users, groups = fresh
    few = judged((users, groups.head(30)), 0.9)
    assert few.verdict == "inconclusive"
    assert any("fresh records 30, at least 100" in reason for reason in few.reasons)


def test_features_that_went_or_are_new_are_named() -> None:
    users, groups = shop(1)
    gone = judged((users.drop(columns="age"), groups), 0.9)
    assert any("feature 'age' of the training data is missing" in reason for reason in gone.reasons)
    strange = users.assign(style=np.where(np.arange(len(users)) % 5 == 0, "neon", users["style"]))
    assert any("'style': 20" in reason and "neon" in reason for reason in judged((strange, groups), 0.9).reasons)


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(0.15, 0.4, "fail"), (0.02, 0.3, "inconclusive"), (-0.2, 0.05, "pass")]
)
def test_returns_count_by_the_lower_bound(low: float, high: float, verdict: str) -> None:
    rise = Interval((low + high) / 2, low, high, 0.95, 30, 30).to_dict()
    report = {"metrics": {"return_rate": {"improvement": rise, "stores": 30, "left_out": {}}}}
    decision = outcomes_gate(report, CONFIG)
    assert decision.verdict == verdict
    assert "relative rise of the return rate" in decision.reasons[0]


def test_too_few_shops_decide_nothing() -> None:
    rise = Interval(0.5, float("nan"), float("nan"), 0.95, 3, 3).to_dict()
    report = {"metrics": {"return_rate": {"improvement": rise, "stores": 3, "left_out": {}}}}
    assert outcomes_gate(report, CONFIG).verdict == "inconclusive"
