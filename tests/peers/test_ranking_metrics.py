"""MAP and GAUC against scikit-learn where scores differ, and against every order there is where they are tied."""

from itertools import permutations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from perfusion.evaluation.ranking import average_precision, group_auc, group_aucs, group_average_precision


def drawn(seed: int, count: int, levels: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ragged groups (G, N): scores (`levels` distinct ones, or none alike), picked (some, not all), valid."""
    generator = np.random.default_rng(seed)
    size = generator.integers(2, 6, (count, 1))
    valid = np.arange(5) < size
    alike = (
        generator.integers(0, levels, (count, 5))
        if levels
        else generator.permuted(np.tile(np.arange(5), (count, 1)), axis=1)
    )
    order = np.where(valid, generator.random((count, 5)), 2.0).argsort(1).argsort(1)
    picked = order < generator.integers(1, size)
    return alike.astype(float), picked, valid


@pytest.mark.parametrize("seed", range(3))
def test_without_ties_they_are_scikit_learns(seed: int):
    scores, picked, valid = drawn(seed, 200, None)
    precision, area = group_average_precision(scores, picked, valid), group_aucs(scores, picked, valid)
    for row in range(len(scores)):
        s, y = scores[row, valid[row]], picked[row, valid[row]]
        assert precision[row] == pytest.approx(average_precision_score(y, s), abs=1e-12)
        assert area[row] == pytest.approx(roc_auc_score(y, s), abs=1e-12)


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_with_ties_the_area_is_scikit_learns_too(levels: int):
    scores, picked, valid = drawn(levels, 200, levels)
    area = group_aucs(scores, picked, valid)
    for row in range(len(scores)):
        assert area[row] == pytest.approx(roc_auc_score(picked[row, valid[row]], scores[row, valid[row]]), abs=1e-12)


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_with_ties_they_are_the_mean_over_every_order_of_the_tied(levels: int):
    """scikit-learn's average precision is another thing here: it takes a tie for one step."""
    scores, picked, valid = drawn(10 + levels, 40, levels)
    for row in range(len(scores)):
        s, y = scores[row, valid[row]], picked[row, valid[row]]
        orders = {order for order in permutations(range(len(s))) if (np.diff(s[list(order)]) <= 0).all()}
        ranks = [np.array([*order]) for order in orders]
        strict = [-np.argsort(order).astype(float) for order in ranks]
        expected = np.mean([average_precision_score(y, ranking) for ranking in strict])
        assert average_precision(s, y) == pytest.approx(expected, abs=1e-12)
        assert group_auc(s, y) == pytest.approx(np.mean([roc_auc_score(y, ranking) for ranking in strict]), abs=1e-12)


def test_of_pairs_map_is_half_of_one_plus_gauc():
    generator = np.random.default_rng(0)
    scores = generator.integers(0, 3, (500, 2)).astype(float)
    picked = np.eye(2, dtype=bool)[generator.integers(0, 2, 500)]
    every = np.ones_like(picked)
    precision, area = group_average_precision(scores, picked, every), group_aucs(scores, picked, every)
    np.testing.assert_allclose(precision, (1 + area) / 2)
