"""Studies: seeds are averaged before users are resampled, orderings are judged by intervals, views leave the rest."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from perfusion.data import write_table
from perfusion.errors import DataError
from perfusion.statistics import Interval
from perfusion.studies.costs import ratios
from perfusion.studies.coverage import minimum_set, permuted
from perfusion.studies.figures import Contrast, boundary, contrast, estimate, history_curve, over_seeds
from perfusion.studies.views import CAPS, pair_groups, thin_records, write_view

OPTIONS = {"confidence": 0.95, "resamples": 400, "seed": 0, "min_clusters": 5}


def measured(system: str, seed: int, values: dict[str, float]) -> pd.DataFrame:
    """One unit for each user."""
    return pd.DataFrame(
        {"system": system, "seed": seed, "unit": list(values), "user_id": list(values), "auc": list(values.values())}
    )


def test_a_unit_counts_once_however_many_seeds_saw_it() -> None:
    rows = pd.concat([measured("a", seed, {f"u{i}": float(seed) for i in range(8)}) for seed in (0, 1, 2)])
    assert over_seeds(rows, "a", "auc")["value"].tolist() == [1.0] * 8
    found = estimate(rows, "a", "auc", OPTIONS)
    assert found is not None
    assert (found.interval.mean, found.interval.low, found.interval.high) == (1.0, 1.0, 1.0)
    assert (found.interval.clusters, found.interval.records) == (8, 8)
    assert found.seeds == (0.0, 1.0, 2.0)
    assert found.spread == 2.0


def test_seeds_measured_on_other_units_are_refused() -> None:
    rows = pd.concat([measured("a", 0, {"u": 1.0, "v": 1.0}), measured("a", 1, {"u": 1.0})])
    with pytest.raises(ValueError, match="'v' lacks a seed"):
        over_seeds(rows, "a", "auc")


def test_what_was_not_measured_has_no_figure() -> None:
    rows = measured("a", 0, {"u": 1.0})
    assert estimate(rows, "b", "auc", OPTIONS) is None
    assert contrast(rows, "a", "b", "auc", OPTIONS) is None
    assert estimate(rows, "a", "true_utility", OPTIONS) is None


@pytest.mark.parametrize(
    ("low", "high", "strict", "verdict"),
    [
        (0.1, 0.2, True, "holds"),
        (-0.1, 0.2, True, "inconclusive"),
        (-0.2, -0.1, True, "does not hold"),
        (0.0, 0.0, True, "does not hold"),
        (0.0, 0.0, False, "holds"),
        (-0.1, 0.0, False, "inconclusive"),
        (-0.2, -0.1, False, "does not hold"),
        (math.nan, math.nan, True, "inconclusive"),
    ],
)
def test_verdicts(low: float, high: float, strict: bool, verdict: str) -> None:
    middle = 0.0 if math.isnan(low) else (low + high) / 2
    claim = Contrast("a", "b", "auc", strict, Interval(middle, low, high, 0.95, 30, 30))
    assert claim.verdict == verdict
    assert str(claim).startswith(f"a {'>' if strict else '>='} b in auc: {verdict}")


def test_a_contrast_is_paired_by_unit() -> None:
    noise = dict(zip(map(str, range(30)), np.random.default_rng(0).normal(size=30), strict=True))
    rows = pd.concat([measured("a", 0, {u: v + 0.01 for u, v in noise.items()}), measured("b", 0, noise)])
    found = contrast(rows, "a", "b", "auc", OPTIONS)
    assert found is not None
    assert found.verdict == "holds"
    assert found.interval.mean == pytest.approx(0.01)


def curve_of(gains: dict[int, float]) -> pd.DataFrame:
    """A curve in which users with n records gain gains[n]; eight users each."""
    learnt = {f"{n}-{i}": n for n in gains for i in range(8)}
    mine = measured("mine", 0, {user: 0.5 + gains[n] for user, n in learnt.items()})
    blind = measured("blind", 0, dict.fromkeys(learnt, 0.5))
    known = {user: n for user, n in learnt.items() if n}  # who has none is absent
    return history_curve(pd.concat([mine, blind]), known, "mine", "blind", sorted(gains), OPTIONS)


def test_the_curve_puts_users_in_the_bin_of_their_records() -> None:
    curve = curve_of({0: 0.0, 2: 0.1, 5: 0.2})
    assert curve["low"].tolist() == [0, 2, 5]
    assert curve["high"].tolist()[:2] == [1, 4]
    assert pd.isna(curve["high"].iloc[2])
    assert curve["users"].tolist() == [8, 8, 8]
    assert curve["gain"].tolist() == pytest.approx([0.0, 0.1, 0.2])
    assert curve["gauc"].tolist() == pytest.approx([0.5, 0.6, 0.7])


@pytest.mark.parametrize(
    ("gains", "expected"),
    [({0: 0.1, 3: 0.1}, 0), ({0: 0.0, 3: 0.1, 6: 0.2}, 3), ({0: 0.1, 3: 0.0, 6: 0.2}, 6), ({0: 0.1, 3: -0.1}, None)],
)
def test_the_boundary_is_where_the_gain_is_sure_from_there_on(gains: dict[int, float], expected: int | None) -> None:
    assert boundary(curve_of(gains)) == expected


def groups(count: int = 40, users: int = 8) -> pd.DataFrame:
    return pd.DataFrame({
        "record_id": [f"r{i}" for i in range(count)], "user_id": [f"u{i % users}" for i in range(count)],
        "created_at": pd.Timestamp("2026-01-01"), "prompt": "dress",
        "image_ids": [[f"{i}-{k}" for k in range(5)] for i in range(count)],
        "picked": [[k == i % 5 for k in range(5)] for i in range(count)],
        "split": ["train" if i % 4 else "test" for i in range(count)],
    })  # fmt: skip


def test_pairs_keep_the_records_and_one_of_each_kind() -> None:
    whole, pairs = groups(), pair_groups(groups(), 0)
    assert pairs["record_id"].tolist() == whole["record_id"].tolist()
    assert all(sorted(picks) == [False, True] for picks in pairs["picked"])
    for before, after in zip(whole.itertuples(), pairs.itertuples(), strict=True):
        chosen = dict(zip(before.image_ids, before.picked, strict=True))
        assert [chosen[image] for image in after.image_ids] == after.picked
    unpicked = {
        images[picks.index(False)][-1] for images, picks in zip(pairs["image_ids"], pairs["picked"], strict=True)
    }
    assert len(unpicked) > 2, "drawn at random"
    nothing = whole.assign(picked=[[False] * 5] * len(whole))
    assert pair_groups(nothing, 0)["image_ids"].tolist() == nothing["image_ids"].tolist()


def test_thinning_takes_training_records_alone_and_by_the_users_name_alone() -> None:
    whole = groups(600, 60)
    thin = thin_records(whole, 0)
    assert (thin["split"] == "test").sum() == (whole["split"] == "test").sum()
    left = thin[thin["split"] == "train"].groupby("user_id").size().reindex(whole["user_id"].unique(), fill_value=0)
    most = whole[whole["split"] == "train"].groupby("user_id").size()
    assert all(count in CAPS or count == most[user] for user, count in left.items())
    assert set(left) > {0, 1, 2, 4}
    assert thin_records(whole.iloc[::-1], 0).sort_index().equals(thin)


def test_a_view_drops_what_it_says(tmp_path: Path) -> None:
    users = pd.DataFrame({"user_id": [f"u{i}" for i in range(8)], "style": "a", "region": "b", "age": 1.0})
    write_table(tmp_path / "split" / "users.parquet", users)
    write_table(tmp_path / "split" / "groups.parquet", groups())

    def columns(*view: object) -> list[str]:
        write_view(tmp_path / "split", tmp_path / "view", *view, 0)  # type: ignore[arg-type]
        return list(pd.read_parquet(tmp_path / "view" / "users.parquet"))

    assert columns(["without"], ["style"]) == ["user_id", "region", "age"]
    assert columns(["keep"], ["style", "user_id"]) == ["user_id", "style"]
    assert columns(["pairs", "keep"], []) == ["user_id"]
    assert pd.read_parquet(tmp_path / "view" / "groups.parquet")["image_ids"].map(len).tolist() == [2] * 40
    with pytest.raises(DataError, match="'colour'"):
        columns(["without"], ["colour"])


def test_shuffling_trades_values_among_those_who_are_asked_about() -> None:
    users = torch.arange(40).view(20, 2)
    asked = torch.arange(10).repeat(2)
    shuffled = permuted(users, [0], asked, 0)
    assert torch.equal(shuffled[:, 1], users[:, 1])
    assert torch.equal(shuffled[10:], users[10:])
    assert sorted(shuffled[:10, 0].tolist()) == users[:10, 0].tolist()
    assert not torch.equal(shuffled[:10], users[:10])


def test_the_minimum_set_is_what_the_gain_needs() -> None:
    worth = {"style": 0.2, "season": 0.0, "region": 0.0, "price": 0.1}
    luck = np.random.default_rng(0).normal(scale=0.05, size=30)

    def aucs(gone: frozenset[str]) -> pd.DataFrame:
        gain = sum(value for name, value in worth.items() if name not in gone)
        return pd.DataFrame({"user_id": [f"u{i}" for i in range(30)], "auc": 0.5 + gain + luck, "blind": 0.5})

    found = minimum_set(list(worth), aucs, OPTIONS)
    assert found["features"] == ["style", "price"]
    assert [step["feature"] for step in found["steps"]] == ["season", "region", "price"]
    assert found["gain"] == pytest.approx(0.3, abs=0.03)


def test_where_nothing_is_gained_no_feature_is_needed() -> None:
    rows = pd.DataFrame({"user_id": [f"u{i}" for i in range(30)], "auc": 0.5, "blind": 0.5})
    assert minimum_set(["style", "user_id"], lambda gone: rows, OPTIONS)["features"] == []


def test_costs_are_compared_within_a_round() -> None:
    times = {
        0: {"diffusion": 1.0, "dpo": 2.0, "perfusion": 3.0},
        1: {"diffusion": 10.0, "dpo": 20.0, "perfusion": 30.0},
    }
    rows = pd.DataFrame([
        {"round": turn, "system": system, "what": "train", "seconds": seconds}
        for turn, systems in times.items() for system, seconds in systems.items()
    ])  # fmt: skip
    found = ratios(rows).groupby("system")["ratio"].agg(["min", "max"])
    assert found.loc["perfusion"].tolist() == [3.0, 3.0]
    assert found.loc["dpo"].tolist() == [2.0, 2.0]
