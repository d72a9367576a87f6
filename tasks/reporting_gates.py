"""A gate's decision as a table that a person understands: each check with its value, interval, bound and meaning."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from perfusion.governance import Check, Decision
from perfusion.governance.meanings import meaning
from tasks.reporting_words import ICONS, humane, split_reason

__all__ = ["COLUMNS", "bound_text", "gate_rows", "told_of", "value_text"]

COLUMNS = ("check", "value", "bound", "verdict", "meaning")
_BOUNDS = {
    "at least": "at least {}",
    "at most": "at most {}",
    "surely above": "interval above {}",
    "surely not below": "interval not below {}",
}
_UNITS = ", in standard deviations,"  # in names of checks whose numbers are standard deviations


def gate_rows(decision: Decision) -> list[dict[str, str]]:
    """One row a check, failures first: `COLUMNS` as text.

    A record of before checks had numbers gives its sentences in the place of the checks.
    """
    checks = decision.checks or tuple(_from_sentence(reason) for reason in decision.reasons)
    return [
        {
            "check": _named(check),
            "value": value_text(check),
            "bound": bound_text(check),
            "verdict": f"{ICONS[check.verdict]} {check.verdict}",
            "meaning": _meaning(decision.gate, check),
        }
        for check in checks
    ]


def value_text(check: Check) -> str:
    """ "0.0412 [0.0301, 0.0522] of 417 users", with the unit of the value; "missing" where there is none."""
    if check.rule is None:
        return ""
    if check.value is None:
        return "missing"
    text = f"{_number(check.value)}{_unit(check)}"
    if check.low is not None and check.high is not None:
        text += f" [{_number(check.low)}, {_number(check.high)}]"
    elif check.users is not None:
        text += " [too few users]"
    return text if check.users is None else f"{text} of {check.users} users"


def bound_text(check: Check) -> str:
    """ "at least 0.02", or what the lower end of the interval must keep to."""
    if check.rule is None or check.bound is None:
        return ""
    return _BOUNDS[check.rule].format(f"{_number(check.bound + 0.0)}{_unit(check)}")


def _named(check: Check) -> str:
    """Its name in the words of the pages; a sentence in the place of a name keeps its own."""
    if check.name == check.reason:
        return humane(check.name)
    return humane(check.name.replace(_UNITS, "").strip().replace("champion_rm", "the champion's reward model"))


def told_of(decision: Decision, run_id: str | None) -> list[str]:
    """What else belongs to a decision: what was judged, in which run, and what was too small to be judged."""
    lines = [f"judged: {_inputs(decision.inputs)}"] if decision.inputs else []
    if run_id is not None:
        lines.append(f"asked in MLflow run {run_id}")
    if small := decision.statistics.get("slices_not_judged"):
        lines.append(f"too few users to be judged on their own: {', '.join(small)}")
    return lines


def _inputs(inputs: Mapping[str, Any]) -> str:
    return "; ".join(f"{name.replace('_', ' ')} {_input(value)}" for name, value in inputs.items())


def _input(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {'none' if item is None else item}" for name, item in value.items())
    return "none" if value is None else str(value)


def _meaning(gate: str, check: Check) -> str:
    """What a check asks; where it did not pass, what that means, and what a check without numbers has to say."""
    words = meaning(gate, check.name)
    if check.verdict == "pass":
        return words.asks
    told = words.otherwise if check.verdict == "fail" else "It cannot be told: too little data, or none."
    said = humane(check.reason) if check.rule is None and check.reason != check.name else ""
    return f"{told} {said}".strip()


def _unit(check: Check) -> str:
    return " sd" if _UNITS in check.name else check.unit


def _number(value: float) -> str:
    """Counts in full, measures to four digits after the point, more where they are smaller than that."""
    if isinstance(value, int):
        return str(value)
    text = f"{value:.4f}" if value == 0 or abs(value) >= 0.001 else f"{value:.2g}"
    return re.sub(r"^-(?=0\.0+$)", "", text)


def _from_sentence(reason: str) -> Check:
    verdict, text = split_reason(reason)
    return Check(text, verdict if verdict in ("pass", "fail") else "inconclusive", text)  # type: ignore[arg-type]
