"""MAP and GAUC: equal to scikit-learn without ties, to enumeration with them, and never flattered by row order."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from perfusion.evaluation import average_precision, group_auc
from perfusion.evaluation.ranking import (
    group_aucs,
    group_average_precision,
    random_average_precision,
    ranking_report,
)


def groups(count, size, levels, seed=0):
    """Random groups with both classes, scores on `levels` levels, some padding."""
    rng = np.random.default_rng(seed)
    valid = rng.random((count, size)) < 0.85
    valid[:, :2] = True
    picked = rng.random((count, size)) < 0.4
    picked[:, 0], picked[:, 1] = True, False
    return rng.integers(levels, size=(count, size)).astype(float), picked, valid


def plain_average_precision(order_picked):
    """Average precision of a strict order, by its definition."""
    hits = np.cumsum(order_picked)
    return np.mean([hits[k] / (k + 1) for k in range(len(order_picked)) if order_picked[k]])


def enumerated_average_precision(scores, picked):
    """The mean over every order that the scores allow."""
    values = [
        plain_average_precision(np.asarray(picked)[list(order)])
        for order in itertools.permutations(range(len(scores)))
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))
    ]
    return np.mean(values)


def test_equal_to_scikit_learn_without_ties():
    rng = np.random.default_rng(0)
    for _ in range(100):
        scores, picked = rng.normal(size=7), rng.permutation([1, 1, 0, 0, 0, 0, rng.integers(2)])
        assert average_precision(scores, picked) == pytest.approx(average_precision_score(picked, scores), abs=1e-12)
        assert group_auc(scores, picked) == pytest.approx(roc_auc_score(picked, scores), abs=1e-12)


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_ties_equal_the_mean_over_all_orders(levels):
    scores, picked, _ = groups(20, 6, levels, seed=levels)
    for s, p in zip(scores, picked, strict=True):
        assert average_precision(s, p) == pytest.approx(enumerated_average_precision(s, p), abs=1e-12)
        assert group_auc(s, p) == pytest.approx(roc_auc_score(p, s), abs=1e-12)


def test_worked_example():
    # Order by score: not picked, then a tie of one picked and one not. Picked lands at rank 2 or 3: (1/2 + 1/3) / 2.
    assert average_precision([0.1, 0.9, 0.1], [1, 0, 0]) == pytest.approx(5 / 12)
    # It beats neither: loses one pair, ties the other.
    assert group_auc([0.1, 0.9, 0.1], [1, 0, 0]) == 0.25


def test_batch_equals_one_group_at_a_time_with_padding():
    scores, picked, valid = groups(200, 8, 4)
    scores[~valid] = np.nan  # padding may hold anything
    precision, area = group_average_precision(scores, picked, valid), group_aucs(scores, picked, valid)
    for k in range(len(scores)):
        s, p = scores[k][valid[k]], picked[k][valid[k]]
        assert precision[k] == pytest.approx(average_precision(s, p), abs=1e-12)
        assert area[k] == pytest.approx(group_auc(s, p), abs=1e-12)


@pytest.mark.parametrize(("size", "positives", "floor"), [
    (2, 1, 0.75), (5, 1, 0.4567), (5, 2, 0.5925), (5, 3, 0.7283), (5, 4, 0.8642),
])  # fmt: skip
def test_random_floor(size, positives, floor):
    assert random_average_precision(size, positives) == pytest.approx(floor, abs=5e-5)
    rng = np.random.default_rng(0)
    picked = np.tile(np.arange(size) < positives, (40_000, 1))
    drawn = group_average_precision(rng.random(picked.shape), picked, np.ones_like(picked))
    assert drawn.mean() == pytest.approx(floor, abs=5e-3)


def test_pairs_obey_map_is_half_of_one_plus_gauc():
    scores, picked, _ = groups(300, 2, 3)
    valid = np.ones_like(picked)
    gauc = group_aucs(scores, picked, valid)
    np.testing.assert_array_equal(group_average_precision(scores, picked, valid), (1 + gauc) / 2)


def test_a_constant_scorer_gets_the_floor_whatever_the_row_order():
    _, picked, valid = groups(100, 6, 2)
    users = np.arange(100)
    first = ranking_report(np.full(picked.shape, 7.0), picked, valid, users, split="test")
    sorted_rows = np.sort(picked, axis=1)[:, ::-1]  # picked first, as a leaking row order would have it
    whole = np.ones_like(valid)
    second = ranking_report(np.full(picked.shape, 7.0), sorted_rows, whole, users, split="test")
    for report in (first, second):
        assert report.map.mean == pytest.approx(report.floor_map, abs=1e-12)
        assert report.gauc.mean == 0.5


def test_order_of_candidates_changes_nothing():
    scores, picked, valid = groups(50, 6, 3)
    order = np.random.default_rng(1).permutation(6)
    np.testing.assert_allclose(
        group_average_precision(scores, picked, valid),
        group_average_precision(scores[:, order], picked[:, order], valid[:, order]),
        atol=1e-12,
    )


def test_lists_arrays_and_tensors_agree():
    scores, picked = [0.3, 0.1, 0.2], [False, True, True]
    expected = average_precision(scores, picked)
    assert average_precision(np.float32(scores), np.array(picked)) == expected
    assert average_precision(torch.tensor(scores, requires_grad=True), torch.tensor(picked)) == expected
    assert group_auc(torch.tensor(scores, dtype=torch.bfloat16), torch.tensor([0, 1, 1])) == group_auc(scores, picked)


def test_what_cannot_be_ranked():
    assert math.isnan(average_precision([1.0, 2.0], [0, 0]))
    assert average_precision([1.0, 2.0], [1, 1]) == 1
    assert math.isnan(group_auc([1.0, 2.0], [1, 1]))
    assert math.isnan(group_auc([], []))
    with pytest.raises(ValueError, match="NaN"):
        average_precision([1.0, math.nan], [0, 1])
    with pytest.raises(ValueError, match="need one group"):
        group_auc([1.0, 2.0], [1])
    with pytest.raises(ValueError, match="0 and 1"):
        group_auc([1.0, 2.0], [0.5, 1])


def test_report_counts_every_group_and_is_strict_json():
    scores, picked, valid = groups(60, 5, 1000)
    picked[0], picked[1], picked[2] = False, False, True
    report = ranking_report(scores, picked, valid, [f"u{k % 30}" for k in range(60)], split="test")
    record = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert record["groups_used"] + sum(record["groups_dropped"].values()) == 60
    assert record["groups_dropped"] == {"nothing picked": 2, "all picked": 1}
    assert record["users"] == 30
    assert record["map_ci"][0] < record["map"] < record["map_ci"][1]
    assert record["split"] == "test"
    assert "order" in record["tie_policy"]


def test_a_split_without_a_usable_group_has_no_numbers():
    report = ranking_report(np.zeros((2, 3)), np.zeros((2, 3)), np.ones((2, 3)), ["a", "b"], split="cold")
    assert report.groups_used == 0
    assert report.to_dict()["map"] is None
    assert report.to_dict()["floor_map"] is None
