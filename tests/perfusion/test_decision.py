"""A decision is a value: strict JSON both ways, and an open question never opens a gate."""

import json
import math

import numpy as np
import pytest

from perfusion.errors import GateError
from perfusion.governance import Check, Decision, at_least, at_most, decide
from perfusion.governance.checks import above, not_below
from perfusion.statistics import Interval


def test_round_trip_through_strict_json():
    decision = decide(
        "reward", [at_least("gain", 0.05, 0.02)], {"gain": np.float64(0.05), "bad": math.nan, 1: (1, 2)}, {"gain": 0.02}
    )
    text = json.dumps(decision.to_dict(), allow_nan=False)
    assert Decision.from_dict(json.loads(text)) == decision
    assert decision.statistics == {"gain": 0.05, "bad": None, "1": [1, 2]}


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ([], "inconclusive"),
        (["pass"], "pass"),
        (["pass", "inconclusive"], "inconclusive"),
        (["pass", "inconclusive", "fail"], "fail"),
    ],
)
def test_combination(verdicts, expected):
    checks = [Check(str(i), verdict, f"reason {i}") for i, verdict in enumerate(verdicts)]
    decision = decide("data", checks, {}, {})
    assert decision.verdict == expected
    assert decision.passed == (expected == "pass")
    assert decision.reasons


def test_failures_come_first_and_carry_numbers():
    decision = decide("data", [at_least("coverage", 0.9, 0.5), at_most("drift", 0.3, 0.25)], {}, {})
    assert decision.reasons[0] == "fail: drift 0.3, may be at most 0.25"


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
@pytest.mark.parametrize("check", [at_least, at_most])
def test_missing_number_is_inconclusive(check, value):
    assert check("x", value, 1.0).verdict == "inconclusive"


def test_checks_carry_their_numbers_structurally():
    interval = Interval(0.04, 0.01, 0.07, 0.95, 417, 979)
    gain = above("MAP gain", interval)
    assert (gain.value, gain.low, gain.high, gain.bound, gain.users) == (0.04, 0.01, 0.07, 0.0, 417)
    assert (gain.rule, not_below("x", interval, 0.02).bound) == ("surely above", -0.02)
    missing = above("MAP gain", Interval(math.nan, math.nan, math.nan, 0.95, 3, 9))
    assert (missing.verdict, missing.value, missing.low, missing.users) == ("inconclusive", None, None, 3)
    slow = at_most("seconds", 2.5, 2.0, " s")
    assert (slow.value, slow.bound, slow.rule, slow.unit, slow.verdict) == (2.5, 2.0, "at most", " s", "fail")
    assert Check.from_dict(json.loads(json.dumps(gain.to_dict()))) == gain


def test_checks_and_reasons_stand_in_one_order():
    decision = decide("data", [at_least("a", 1, 0), at_least("b", None, 0), at_least("c", 0, 1)], {}, {}, {"rows": 3})
    assert [check.name for check in decision.checks] == ["c", "b", "a"]
    assert [f"{check.verdict}: {check.reason}" for check in decision.checks] == list(decision.reasons)
    assert decision.judging(run="r").inputs == {"rows": 3, "run": "r"}


def test_a_record_of_before_there_were_checks_is_read():
    old = {"gate": "load", "verdict": "pass", "reasons": ["pass: fine"], "statistics": {}, "thresholds": {}}
    decision = Decision.from_dict(old)
    assert (decision.reasons, decision.checks, decision.inputs) == (("pass: fine",), (), {})
    with pytest.raises(GateError, match="not a check"):
        Decision.from_dict({**old, "checks": [{"name": "x"}]})


def test_unknown_verdict_and_keys_are_refused():
    with pytest.raises(GateError, match="perhaps"):
        Decision("data", "perhaps")
    with pytest.raises(GateError, match="not a decision"):
        Decision.from_dict({"gate": "data"})
