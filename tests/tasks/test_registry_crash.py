"""The registry under fire: racing processes, and processes killed between the intent and the commit."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from benchmarks import registry_drills as drills
from benchmarks.registry_drills import FAMILY, MOMENTS, PASSED, open_at
from perfusion.errors import GateError
from tasks.registry import Registry
from tasks.workspace import REPOSITORY

NAME, PARTNER = drills.REWARD, drills.GENERATOR


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with four registered versions of two models, and no champion."""
    folder = tmp_path_factory.mktemp("store")
    drills.make_store(folder)
    return folder


@pytest.fixture
def folder(store: Path, tmp_path: Path) -> Path:
    for name in ("mlflow.db", "promotions.jsonl"):
        shutil.copy(store / name, tmp_path / name)
    return tmp_path


def promote_first(folder: Path) -> Registry:
    registry = open_at(folder)
    registry.promote({NAME: 1, PARTNER: 1}, expected={NAME: None, PARTNER: None}, decisions=PASSED)
    return registry


def test_racing_processes_lose_and_double_no_transition(folder: Path) -> None:
    """The same race with 200 attempts each is `python -m benchmarks.registry`."""
    told = drills.race(folder, attempts=12)
    assert told["problems"] == []
    assert told["promoted"] + told["refused"] == told["attempts"] == 24
    assert told["committed"] == told["promoted"] >= 12


@pytest.mark.parametrize("name", MOMENTS)
def test_a_kill_between_intent_and_commit_is_undone_or_completed(folder: Path, name: str) -> None:
    registry, moment = promote_first(folder), MOMENTS[name]
    drills.kill_at(folder, moment)
    assert registry.history()[-1].status == "pending"
    assert "interrupted" in registry.verify()[0]

    status, problems = drills.recovered(folder)

    assert (status, problems) == (moment.status, [])
    assert registry.history()[-1].status == status
    assert set(registry.champions(FAMILY).values()) == {1 if status == "aborted" else 2}
    assert registry.recover() is None


def test_the_next_transition_cleans_up_by_itself(folder: Path) -> None:
    registry = promote_first(folder)
    drills.kill_at(folder, MOMENTS["after the first of two aliases"])
    registry.promote({NAME: 3, PARTNER: 3}, expected={NAME: 2, PARTNER: 2}, decisions=PASSED)
    assert [transition.status for transition in registry.history()] == ["committed"] * 3
    assert registry.verify() == []


def test_lines_cut_off_the_end_are_noticed(folder: Path) -> None:
    promote_first(folder)
    log = folder / "promotions.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-2]))
    assert any("cut off" in problem for problem in open_at(folder).verify())


def test_a_held_lock_is_an_error_that_says_so(folder: Path) -> None:
    script = "import sys; from pathlib import Path; from benchmarks.registry_drills import open_at\n"
    script += "with open_at(Path(sys.argv[1]))._locked():\n    print('held', flush=True)\n    sys.stdin.read()"
    command, pipe = [sys.executable, "-c", script, str(folder)], subprocess.PIPE
    holder = subprocess.Popen(command, cwd=REPOSITORY, stdin=pipe, stdout=pipe, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        waiting = Registry(MlflowClient(f"sqlite:///{folder / 'mlflow.db'}"), folder, timeout=0.2)
        with pytest.raises(GateError, match="held by another promotion"):
            waiting.promote({NAME: 1}, expected={NAME: None}, decisions=PASSED)
    finally:
        holder.kill()
        holder.communicate()


def test_a_store_that_fails_midway_loses_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.exceptions import MlflowException

    registry = open_at(folder)

    def fail(*_: object) -> None:
        raise MlflowException("database is gone")

    with monkeypatch.context() as patch:
        patch.setattr(registry.client, "set_registered_model_alias", fail)
        with pytest.raises(GateError, match="database is gone"):
            registry.promote({NAME: 1}, expected={NAME: None}, decisions=PASSED)
    assert registry.recover() is not None
    registry.promote({NAME: 1}, expected={NAME: None}, decisions=PASSED)
    assert registry.version(NAME) == 1
