"""A decision is a value: strict JSON both ways, and an open question never opens a gate."""

import json
import math

import numpy as np
import pytest

from perfusion.errors import GateError
from perfusion.governance import Check, Decision, at_least, at_most, decide


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


def test_unknown_verdict_and_keys_are_refused():
    with pytest.raises(GateError, match="perhaps"):
        Decision("data", "perhaps")
    with pytest.raises(GateError, match="not a decision"):
        Decision.from_dict({"gate": "data"})
