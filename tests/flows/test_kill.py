"""A run is killed, and the next one goes on: the fast part of `python -m benchmarks.kills`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.kills.check import after_kill, after_run, fingerprint, state_of
from benchmarks.kills.place import Place, make_place
from benchmarks.kills.plan import OWN_STEPS, TARGETS, plan
from benchmarks.kills.run import MARK, STEPS, FlowRun, await_step, begin
from flows.retrain import STAGES
from tasks.run_stage import run_stage
from tasks.stage_run import content_hash
from tasks.tracking import open_store

PATIENCE = 600.0


@pytest.fixture
def place(marketplace: Path, tmp_path: Path) -> Place:
    """Small models that learn from shuffled merchants, so that a run ends at the reward gate."""
    return make_place(tmp_path / "place", marketplace, reward={"shuffle_users": True})


@pytest.mark.slow
def test_a_run_killed_while_it_trains_leaves_nobody_and_the_next_one_ends_with_the_same_bytes(place: Place) -> None:
    workspace = place.workspace
    killed = begin(place)
    try:
        await_step(killed, "reward", PATIENCE, "trainer")
        _wait_until((workspace.state / "reward" / "reward.pt").exists)
        killed.process.send_signal(signal.SIGKILL)
        assert killed.wait(60)
        assert killed.orphans() == []
    finally:
        killed.stop()
    assert not workspace.reward.exists(), "nothing half-written under its final name"
    assert set(fingerprint(workspace)) >= {"work/valid", "work/split", "work/backbones/clip", "work/pickscore"}
    assert place.outcome() == {}

    following = begin(place)
    try:
        assert following.wait(PATIENCE)
    finally:
        following.stop()
    assert place.outcome()["status"] == "refused", following.log.read_text()[-2000:]
    (resumed,) = [told.split()[1] for told in following.resumed() if told.startswith("reward ")]
    assert 0 < int(resumed.split("/")[0]) <= 40
    client = open_store(workspace)
    runs = client.search_runs([client.get_experiment_by_name("kills").experiment_id])
    ends = Counter(run.info.status for run in runs if run.data.tags.get("prefect.flow"))
    assert ends == {"KILLED": 1, "FINISHED": 1}, "the store knows which run was killed, and that it goes on no more"
    assert not [run for run in runs if run.info.status == "RUNNING"]

    taken_up = content_hash(workspace.reward)
    place.forget("reward")
    assert not run_stage(workspace, "reward", lambda line: None).cached
    assert content_hash(workspace.reward) == taken_up, "uninterrupted, the same bytes"

    reference, before = fingerprint(workspace), state_of(place)
    assert after_kill(place, reference, before) == []
    nobody = {"kills-reward: no champion", "kills-generator: no champion"}
    assert set(after_run(place, reference, before, moves=0)) == nobody, "a refused run promotes nothing"
    torn = workspace.split / "groups.parquet"
    half = torn.read_bytes()[:1000]
    torn.unlink()  # it may be a link into DVC's cache
    torn.write_bytes(half)
    problems = after_kill(place, reference, before)
    assert {problem.split(":")[0] for problem in problems} == {"work/split", "split/groups.parquet"}
    told = set(after_run(place, {**reference, "work/reward": "another"}, before, moves=1)) - nobody
    assert {problem.split(":")[0] for problem in told} == {
        "work/split", "split/groups.parquet", "work/reward", "champions moved 0 times, expected 1",
    }  # fmt: skip


def test_who_outlives_a_run_is_found_by_its_mark_wherever_it_went(tmp_path: Path) -> None:
    """A child of a child, in a session of its own, whose parents have ended."""
    script = (
        "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], "
        "start_new_session=True)"
    )
    process = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, MARK: "me"}, start_new_session=True)
    run = FlowRun(process, "me", tmp_path / "log")
    try:
        assert run.wait(60)
        (orphan,) = run.orphans(patience=0.5)
        assert orphan.endswith("time.sleep(600)")
    finally:
        run.stop()
    assert run.orphans() == []


def test_a_plan_attacks_everything_before_it_attacks_anything_again() -> None:
    attacks = plan(184, seed=0)
    cells = Counter((attack.step, attack.target, attack.signal) for attack in attacks[:92])
    assert {cell[:2] for cell in cells if cell[0] in STAGES} == {(stage, who) for stage in STAGES for who in TARGETS}
    assert {cell[0] for cell in cells} == {*STAGES, *OWN_STEPS}
    assert max(cells.values()) == max(OWN_STEPS.values())
    assert {attack.step for attack in attacks} <= set(STEPS)
    assert plan(92, seed=0) == attacks[:92]
    assert plan(92, seed=1) != attacks[:92]


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
