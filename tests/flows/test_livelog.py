"""The live log: followed while it grows, begun anew or gone on with as the stage's key says."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from tasks.livelog import LiveLog, LogTail, append_record, read_log


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "reward.jsonl"


def _steps(file: Path) -> list[int]:
    return [record["step"] for record in read_log(file) if "step" in record]


def test_a_tail_gives_every_line_once(file: Path) -> None:
    log, tail = LiveLog.begin(file, "key", {}), LogTail(file)
    assert tail.poll() == [{"key": "key"}]
    log.write(run="reward", step=1, metrics={"loss": 2.0})
    log.write(run="reward", step=2, metrics={"loss": 1.0})
    assert [record["step"] for record in tail.poll()] == [1, 2]
    assert tail.poll() == []


def test_a_line_that_is_not_whole_yet_waits(file: Path) -> None:
    log, tail = LiveLog.begin(file, "key", {}), LogTail(file)
    tail.poll()
    with open(file, "ab") as half:
        half.write(b'{"run": "reward", "st')
    assert tail.poll() == []
    with open(file, "ab") as rest:
        rest.write(b'ep": 1}\n')
    assert tail.poll() == [{"run": "reward", "step": 1}]
    log.write(run="reward", step=2)
    assert [record["step"] for record in tail.poll()] == [2]


def test_a_tail_notices_a_log_begun_anew(file: Path) -> None:
    LiveLog.begin(file, "old", {}).write(run="reward", step=9)
    tail = LogTail(file)
    assert len(tail.poll()) == 2
    LiveLog.begin(file, "new", {}).write(run="reward", step=1)
    assert [record.get("step") for record in tail.poll()] == [None, 1]


def test_a_resumed_run_keeps_the_steps_before_the_crash_and_drops_those_after_its_state(file: Path) -> None:
    log = LiveLog.begin(file, "key", {})
    for step in (10, 20, 30, 40):
        log.write(run="reward", step=step)
    append_record(file, error="Killed", message="gone", expected=False)
    LiveLog.begin(file, "key", {"reward": 30})
    assert _steps(file) == [10, 20, 30]
    assert not [record for record in read_log(file) if "error" in record]


@pytest.mark.parametrize(("key", "resumed"), [("another", {"reward": 30}), ("key", {})])
def test_a_log_of_another_run_or_without_a_state_is_begun_anew(file: Path, key: str, resumed: dict[str, int]) -> None:
    LiveLog.begin(file, "key", {}).write(run="reward", step=10)
    LiveLog.begin(file, key, resumed)
    assert read_log(file) == [{"key": key}]


def test_a_line_torn_by_a_kill_is_no_record(file: Path) -> None:
    log = LiveLog.begin(file, "key", {})
    log.write(run="reward", step=1)
    with open(file, "ab") as torn:
        torn.write(b'{"run": "reward", "st')
    assert _steps(file) == [1]
    LiveLog.begin(file, "key", {"reward": 1}).write(run="reward", step=2)
    assert _steps(file) == [1, 2], "the stage that goes on drops the torn line"


def test_a_line_for_which_there_is_no_space_leaves_nothing(file: Path) -> None:
    LiveLog.begin(file, "key", {}).write(run="reward", step=1)
    whole = file.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 9, limits[1]))
    try:
        with pytest.raises(OSError, match="No space left"):
            append_record(file, run="reward", step=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file.read_bytes() == whole
