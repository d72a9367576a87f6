"""What a gate returns: one of three verdicts with its reasons and numbers. A value; acting on it happens elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self, get_args

from perfusion.errors import GateError

__all__ = ["Check", "Decision", "Verdict", "at_least", "at_most", "decide"]

Verdict = Literal["pass", "fail", "inconclusive"]


@dataclass(frozen=True)
class Check:
    """One question of a gate and its answer.

    Attributes:
        name: the question in a few words, e.g. "relative MAP gain".
        verdict: "inconclusive" says that the data cannot answer; it never counts as a pass.
        reason: one sentence with the value, the bound and, unless it passes, what it means.
    """

    name: str
    verdict: Verdict
    reason: str


@dataclass(frozen=True)
class Decision:
    """A gate's verdict and all that it rests on.

    Attributes:
        gate: "data", "reward", "load" or "promotion".
        verdict: "pass", "fail" or "inconclusive"; only "pass" opens the gate.
        reasons: one sentence per check, failures first.
        statistics: every number looked at, plain JSON values; a number that is not finite is kept as None.
        thresholds: every bound applied, plain JSON values.
    """

    gate: str
    verdict: Verdict
    reasons: tuple[str, ...] = ()
    statistics: dict[str, Any] = field(default_factory=dict)
    thresholds: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.verdict not in get_args(Verdict):
            raise GateError(f"gate {self.gate!r}: verdict {self.verdict!r} is none of {', '.join(get_args(Verdict))}")
        object.__setattr__(self, "reasons", tuple(self.reasons))
        object.__setattr__(self, "statistics", _plain(self.statistics))
        object.__setattr__(self, "thresholds", _plain(self.thresholds))

    @property
    def passed(self) -> bool:
        """Whether the gate opens."""
        return self.verdict == "pass"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` reads them back to an equal decision."""
        return {
            "gate": self.gate,
            "verdict": self.verdict,
            "reasons": list(self.reasons),
            "statistics": self.statistics,
            "thresholds": self.thresholds,
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """The decision written by `to_dict`.

        Raises:
            GateError: a key is missing or unknown, or the verdict is none of the three.
        """
        known = {"gate", "verdict", "reasons", "statistics", "thresholds"}
        if set(record) != known:
            raise GateError(f"not a decision: keys {sorted(record)} are not {sorted(known)}; run the gate again")
        return cls(
            gate=record["gate"],
            verdict=record["verdict"],
            reasons=tuple(record["reasons"]),
            statistics=dict(record["statistics"]),
            thresholds=dict(record["thresholds"]),
        )


def decide(
    gate: str, checks: Iterable[Check], statistics: Mapping[str, Any], thresholds: Mapping[str, Any]
) -> Decision:
    """Combine checks: one failure fails, else one open question is inconclusive; no check at all is inconclusive."""
    checks = list(checks)
    verdicts = {check.verdict for check in checks}
    verdict: Verdict = "inconclusive"
    if "fail" in verdicts:
        verdict = "fail"
    elif verdicts == {"pass"}:
        verdict = "pass"
    order = {"fail": 0, "inconclusive": 1, "pass": 2}
    reasons = [f"{check.verdict}: {check.reason}" for check in sorted(checks, key=lambda check: order[check.verdict])]
    reasons = reasons or ["inconclusive: nothing was checked"]
    return Decision(gate, verdict, tuple(reasons), dict(statistics), dict(thresholds))


def at_least(name: str, value: float | None, bound: float, unit: str = "") -> Check:
    """Check `value >= bound`; a missing or NaN value is inconclusive."""
    if value is None or not math.isfinite(value):
        return Check(name, "inconclusive", f"{name} is missing; needs at least {_shown(bound)}{unit}")
    verdict: Verdict = "pass" if value >= bound else "fail"
    return Check(name, verdict, f"{name} {_shown(value)}{unit}, needs at least {_shown(bound)}{unit}")


def at_most(name: str, value: float | None, bound: float, unit: str = "") -> Check:
    """Check `value <= bound`; a missing or NaN value is inconclusive."""
    if value is None or not math.isfinite(value):
        return Check(name, "inconclusive", f"{name} is missing; may be at most {_shown(bound)}{unit}")
    verdict: Verdict = "pass" if value <= bound else "fail"
    return Check(name, verdict, f"{name} {_shown(value)}{unit}, may be at most {_shown(bound)}{unit}")


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
