"""Lineage: the same origin gives the same record, and every difference is named."""

import copy
import json

import pytest

from perfusion.errors import GateError
from perfusion.governance import lineage

LOCK = {
    "schema": "2.0",
    "stages": {
        "reward": {
            "cmd": "python -m tasks.stages reward",
            "deps": [{"path": "work/split", "hash": "md5", "md5": "aa.dir", "size": 3, "nfiles": 2}],
            "params": {"params.yaml": {"reward": {"lr": 0.1}}},
            "outs": [{"path": "work/reward", "hash": "md5", "md5": "bb.dir"}],
        },
    },
}


def record(**changes):
    given = {
        "dataset_digest": "d0", "params": {"a": 1, "b": {"c": 2.5}}, "code_sha": "c0ffee", "code_dirty": False,
        "lock": LOCK, "versions": {"torch": "2.13.0"},
    }  # fmt: skip
    return lineage.lineage_record(**{**given, **changes})


def test_the_same_origin_gives_the_same_record_in_any_order():
    assert record() == record(params={"b": {"c": 2.5}, "a": 1})
    assert json.loads(json.dumps(record())) == record()
    assert lineage.compare_lineage(record(), record()) == ()


@pytest.mark.parametrize(("changes", "where"), [
    ({"dataset_digest": "d1"}, "dataset"),
    ({"params": {"a": 2}}, "params"),
    ({"code_dirty": True}, "code.dirty"),
    ({"versions": {"torch": "2.14.0"}}, "versions.torch"),
    ({"versions": {}}, "versions"),
])  # fmt: skip
def test_every_difference_is_named(changes, where):
    other = record(**changes)
    assert other["digest"] != record()["digest"]
    assert where in [difference.where for difference in lineage.compare_lineage(record(), other)]


def test_a_changed_input_of_a_stage_is_named_with_both_hashes():
    lock = copy.deepcopy(LOCK)
    lock["stages"]["reward"]["deps"][0]["md5"] = "cc.dir"
    (difference,) = lineage.compare_lineage(record(), record(lock=lock))
    assert difference == lineage.Difference("stages.reward.deps.work/split", "md5:aa.dir", "md5:cc.dir")


def test_no_stage_is_no_lineage():
    with pytest.raises(GateError, match="names no stage"):
        record(lock={"schema": "2.0"})


def test_floors_are_lower_bounds_and_a_missing_figure_falls_below():
    metrics = {"reward": {"gauc": 0.9, "gauc_ci": [0.88, 0.92], "map": 0.8, "map_ci": [None, None], "users": 30}}
    floors = lineage.expected_floors(metrics)
    assert floors == {"reward.gauc": 0.88}
    assert lineage.fallen_below(metrics, floors) == ()
    assert "0.85" in lineage.fallen_below({"reward": {"gauc": 0.85}}, floors)[0]
    assert "missing" in lineage.fallen_below({}, floors)[0]
    assert lineage.fallen_below({"reward": {"gauc": float("nan")}}, floors)
