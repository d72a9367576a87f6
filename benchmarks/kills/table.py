"""The tables of the kill matrix, as Markdown."""

from __future__ import annotations

import signal
from collections.abc import Sequence

from benchmarks.kills.attacks import Result
from benchmarks.kills.disturb import Disturbed
from benchmarks.kills.plan import TARGETS
from benchmarks.kills.run import STEPS

__all__ = ["disturbance_table", "kill_table"]


def kill_table(results: Sequence[Result]) -> str:
    """One row for each step: kills by target and signal, and what was found."""
    head = ["step", *(f"{target} KILL / TERM" for target in TARGETS), "orphans", "losses", "gone on at step"]
    rows = [_row(step, [r for r in results if r.attack.step == step]) for step in STEPS]
    return _markdown(head, [row for row in [*rows, _row("all", list(results))] if row is not None])


def disturbance_table(found: Sequence[Disturbed]) -> str:
    """One row for each disturbance."""
    head = ["disturbance", "the run", "seconds", "losses", "next run"]
    return _markdown(head, [[d.name, d.ended, f"{d.seconds:.0f}", "; ".join(d.losses) or "0", d.next] for d in found])


def _row(step: str, results: list[Result]) -> list[str] | None:
    if not results:
        return None
    counts = []
    for target in TARGETS:
        of = [result.attack.signal for result in results if result.attack.target == target]
        counts.append(f"{of.count(signal.SIGKILL)} / {of.count(signal.SIGTERM)}" if of else "")
    orphans = sum(len(result.orphans) for result in results)
    losses = sum(bool(result.losses) for result in results)
    resumed = [] if step == "all" else [told for result in results for told in result.mended.resumed]
    return [step, *counts, str(orphans), str(losses), ", ".join(resumed)]


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
