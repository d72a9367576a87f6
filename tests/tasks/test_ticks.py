"""Whether a scheduled run would be in vain."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tasks.ticks import Inputs, last_settled, nothing_new, record_tick

PINNED = Inputs("c" * 40, "p" * 64)
FOLDER = Inputs("c" * 40, "p" * 64, "/shop/marketplace", "d" * 32)


@pytest.mark.parametrize("inputs", [PINNED, FOLDER])
@pytest.mark.parametrize("outcome", ["promoted", "unchanged", "refused"])
def test_the_same_inputs_again_are_nothing_new(tmp_path: Path, inputs: Inputs, outcome: str) -> None:
    record_tick(tmp_path / "ticks.jsonl", inputs, outcome, ("a reason",), "run")
    record_tick(tmp_path / "ticks.jsonl", inputs, "nothing-new", ("a reason",), None)
    reason = nothing_new(last_settled(tmp_path / "ticks.jsonl"), inputs)
    assert reason is not None
    assert inputs.commit[:12] in reason
    assert outcome in reason


@pytest.mark.parametrize("change", [{"commit": "e" * 40}, {"params": "q"}, {"folder": "/other"}, {"content": "f"}])
def test_any_other_input_is_new(tmp_path: Path, change: dict[str, str]) -> None:
    record_tick(tmp_path / "ticks.jsonl", FOLDER, "promoted", (), "run")
    assert nothing_new(last_settled(tmp_path / "ticks.jsonl"), replace(FOLDER, **change)) is None


def test_a_failed_run_is_tried_again(tmp_path: Path) -> None:
    ticks = tmp_path / "ticks.jsonl"
    assert nothing_new(last_settled(ticks), PINNED) is None
    record_tick(ticks, PINNED, "failed", ("disk full",), None)
    assert nothing_new(last_settled(ticks), PINNED) is None
    record_tick(ticks, PINNED, "refused", ("no",), "run")
    later = replace(PINNED, commit="e" * 40)
    record_tick(ticks, later, "failed", ("disk full",), None)
    assert nothing_new(last_settled(ticks), later) is None
    assert nothing_new(last_settled(ticks), PINNED) is not None, "what was settled stays settled"
