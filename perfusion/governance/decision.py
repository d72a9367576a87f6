"""What a gate returns: one of three verdicts with its reasons and numbers. A value; acting on it happens elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, Self, get_args

from perfusion.errors import GateError

__all__ = ["Check", "Decision", "Rule", "Verdict", "at_least", "at_most", "decide"]

Verdict = Literal["pass", "fail", "inconclusive"]
#: How a value is held against its bound; the last two speak of the lower bound of its interval.
Rule = Literal["at least", "at most", "surely above", "surely not below"]


@dataclass(frozen=True)
class Check:
    """One question of a gate and its answer.

    Attributes:
        name: the question in a few words, e.g. "relative MAP gain".
        verdict: "inconclusive" says that the data cannot answer; it never counts as a pass.
        reason: one sentence with the value, the bound and, unless it passes, what it means.
        value: what was measured; None where it is missing, or where the question has no number. A number that is not
            finite is kept as None, here and below.
        low, high: the interval of the value, where it has one.
        bound: what the value is held against, in the value's unit.
        rule: how; None where the question has no number.
        unit: of value and bound, " s" or " MiB"; "" for plain numbers.
        users: users behind the interval, where it has one.
    """

    name: str
    verdict: Verdict
    reason: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    bound: float | None = None
    rule: Rule | None = None
    unit: str = ""
    users: int | None = None

    def __post_init__(self) -> None:
        for name in ("value", "low", "high", "bound"):
            object.__setattr__(self, name, _plain(getattr(self, name)))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` reads them back to an equal check."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """The check written by `to_dict`.

        Raises:
            GateError: a key is missing or unknown.
        """
        return cls(**_known(record, "check", {item.name for item in fields(cls)}))


@dataclass(frozen=True)
class Decision:
    """A gate's verdict and all that it rests on.

    Attributes:
        gate: "data", "reward", "load" or "promotion".
        verdict: "pass", "fail" or "inconclusive"; only "pass" opens the gate.
        reasons: one sentence per check, failures first.
        statistics: every number looked at, plain JSON values; a number that is not finite is kept as None.
        thresholds: every bound applied, plain JSON values.
        checks: the questions with their numbers, in the order of `reasons`; () in records of before there were any.
        inputs: what was judged: counts, names of versions and runs, digests of files, plain JSON values.
    """

    gate: str
    verdict: Verdict
    reasons: tuple[str, ...] = ()
    statistics: dict[str, Any] = field(default_factory=dict)
    thresholds: dict[str, Any] = field(default_factory=dict)
    checks: tuple[Check, ...] = ()
    inputs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.verdict not in get_args(Verdict):
            raise GateError(f"gate {self.gate!r}: verdict {self.verdict!r} is none of {', '.join(get_args(Verdict))}")
        object.__setattr__(self, "reasons", tuple(self.reasons))
        object.__setattr__(self, "checks", tuple(self.checks))
        for name in ("statistics", "thresholds", "inputs"):
            object.__setattr__(self, name, _plain(getattr(self, name)))

    @property
    def passed(self) -> bool:
        """Whether the gate opens."""
        return self.verdict == "pass"

    def judging(self, **inputs: Any) -> Self:
        """The same decision, with more said about what was judged."""
        return replace(self, inputs={**self.inputs, **inputs})

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` reads them back to an equal decision."""
        return {
            "gate": self.gate,
            "verdict": self.verdict,
            "reasons": list(self.reasons),
            "statistics": self.statistics,
            "thresholds": self.thresholds,
            "checks": [check.to_dict() for check in self.checks],
            "inputs": self.inputs,
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """The decision written by `to_dict`; one of before there were checks and inputs has none.

        Raises:
            GateError: a key is missing or unknown, or the verdict is none of the three.
        """
        found = _known({"checks": [], "inputs": {}, **record}, "decision", {item.name for item in fields(cls)})
        return cls(**{**found, "checks": tuple(Check.from_dict(check) for check in found["checks"])})


def decide(
    gate: str, checks: Iterable[Check], statistics: Mapping[str, Any], thresholds: Mapping[str, Any],
    inputs: Mapping[str, Any] | None = None,
) -> Decision:  # fmt: skip
    """Combine checks: one failure fails, else one open question is inconclusive; no check at all is inconclusive."""
    order = {"fail": 0, "inconclusive": 1, "pass": 2}
    checks = sorted(checks, key=lambda check: order[check.verdict])
    verdicts = {check.verdict for check in checks}
    verdict: Verdict = "inconclusive"
    if "fail" in verdicts:
        verdict = "fail"
    elif verdicts == {"pass"}:
        verdict = "pass"
    reasons = [f"{check.verdict}: {check.reason}" for check in checks] or ["inconclusive: nothing was checked"]
    return Decision(
        gate, verdict, tuple(reasons), dict(statistics), dict(thresholds), tuple(checks), dict(inputs or {})
    )


def at_least(name: str, value: float | None, bound: float, unit: str = "") -> Check:
    """Check `value >= bound`; a missing or NaN value is inconclusive."""
    if value is None or not math.isfinite(value):
        reason = f"{name} is missing; needs at least {_shown(bound)}{unit}"
        return Check(name, "inconclusive", reason, bound=bound, rule="at least", unit=unit)
    verdict: Verdict = "pass" if value >= bound else "fail"
    reason = f"{name} {_shown(value)}{unit}, needs at least {_shown(bound)}{unit}"
    return Check(name, verdict, reason, value=value, bound=bound, rule="at least", unit=unit)


def at_most(name: str, value: float | None, bound: float, unit: str = "") -> Check:
    """Check `value <= bound`; a missing or NaN value is inconclusive."""
    if value is None or not math.isfinite(value):
        reason = f"{name} is missing; may be at most {_shown(bound)}{unit}"
        return Check(name, "inconclusive", reason, bound=bound, rule="at most", unit=unit)
    verdict: Verdict = "pass" if value <= bound else "fail"
    reason = f"{name} {_shown(value)}{unit}, may be at most {_shown(bound)}{unit}"
    return Check(name, verdict, reason, value=value, bound=bound, rule="at most", unit=unit)


def _known(record: Mapping[str, Any], what: str, keys: set[str]) -> dict[str, Any]:
    if set(record) != keys:
        raise GateError(f"not a {what}: keys {sorted(record)} are not {sorted(keys)}; run the gate again")
    return dict(record)


def _shown(value: float) -> str:
    """Counts in full, measures to four digits."""
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def _plain(value: Any) -> Any:
    """Plain JSON values: numpy scalars unwrapped, tuples as lists, keys as text; None for what is not finite."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "item") and not isinstance(value, (str, bytes)):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
