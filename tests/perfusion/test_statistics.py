"""Intervals over users: equal to the library's, honest about few users, and unable to hide a missing number."""

import json
import math

import numpy as np
import pytest
from scipy.stats import bootstrap

from perfusion.statistics import Interval, cluster_bootstrap, cluster_statistic, paired_difference, share_positive


@pytest.fixture
def records():
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(80), rng.integers(1, 5, 80))
    return rng.normal(0.3, 1, len(users)) + rng.normal(0, 1, 80)[users], users


def test_agrees_with_scipy_on_user_sums(records):
    values, users = records
    ours = cluster_bootstrap(values, users, resamples=20_000)
    sums, counts = np.bincount(users, values), np.bincount(users)
    theirs = bootstrap(
        (sums, counts), lambda s, n, axis: s.sum(axis) / n.sum(axis), paired=True, vectorized=True,
        method="percentile", n_resamples=20_000, rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    assert ours.mean == pytest.approx(values.mean())
    assert ours.low == pytest.approx(theirs.low, abs=0.01)
    assert ours.high == pytest.approx(theirs.high, abs=0.01)


def test_resampling_users_is_wider_than_resampling_correlated_records(records):
    values, users = records
    by_user = cluster_bootstrap(values, users)
    by_record = cluster_bootstrap(values, np.arange(len(values)))
    assert by_user.high - by_user.low > 1.2 * (by_record.high - by_record.low)


def test_same_seed_same_bytes_and_row_order_does_not_matter(records):
    values, users = records
    first = cluster_bootstrap(values, users, seed=3)
    order = np.random.default_rng(5).permutation(len(values))
    assert first == cluster_bootstrap(values, users, seed=3)
    assert first != cluster_bootstrap(values, users, seed=4)
    shuffled = cluster_bootstrap(values[order], users[order], seed=3)
    assert shuffled.low == pytest.approx(first.low, abs=1e-12)


def test_pairing_narrows_the_interval(records):
    values, users = records
    better = values + 0.1
    assert paired_difference(better, values, users).low == pytest.approx(0.1)
    assert cluster_bootstrap(better, users).low < cluster_bootstrap(values, users).high


def test_identical_values_give_an_interval_of_exactly_zero(records):
    values, users = records
    tie = paired_difference(values, values.copy(), users)
    assert (tie.mean, tie.low, tie.high) == (0, 0, 0)


def test_statistic_of_several_means_shares_resamples(records):
    values, users = records
    columns = np.stack([values, 2 * values], axis=1)
    ratio = cluster_statistic(columns, users, lambda means: means[..., 1] / means[..., 0])
    assert (ratio.low, ratio.mean, ratio.high) == pytest.approx((2, 2, 2))


def test_few_users_have_a_mean_and_no_bounds():
    interval = cluster_bootstrap([1.0, 2.0, 3.0], ["a", "b", "c"])
    assert interval.mean == 2
    assert not interval.conclusive
    assert "too few" in str(interval)
    assert cluster_bootstrap([], []).clusters == 0


def test_nan_is_never_averaged_away(records):
    values, users = records
    values = values.copy()
    values[7] = math.nan
    assert not cluster_bootstrap(values, users).conclusive
    assert not share_positive(values, users).conclusive


def test_share_positive_counts_users_and_not_ties():
    users = [f"u{i}" for i in range(40) for _ in range(2)]
    values = [1.0, 1.0] * 30 + [0.0, 0.0] * 5 + [-3.0, 1.0] * 5
    share = share_positive(values, users)
    assert share.mean == 0.75
    assert share.low < 0.65 < 0.75 < share.high < 0.9
    assert share_positive([1.0] * 40, range(40)).low < 1


def test_interval_survives_strict_json():
    for interval in (Interval(1.0, 0.5, 1.5, 0.95, 30, 60), cluster_bootstrap([1.0], ["a"])):
        back = Interval.from_dict(json.loads(json.dumps(interval.to_dict(), allow_nan=False)))
        assert str(back) == str(interval)


def test_wrong_lengths_are_refused():
    with pytest.raises(ValueError, match="cluster ids"):
        cluster_bootstrap([1.0, 2.0], ["a"])
