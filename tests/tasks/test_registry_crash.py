"""The registry under fire: racing processes, and processes killed between the intent and the commit."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from mlflow import MlflowClient

from perfusion.errors import GateError
from perfusion.governance import Decision
from tasks.registry import Registry, open_registry

NAME, PARTNER = "shop-reward", "shop-generator"
PASSED = [Decision(gate, "pass") for gate in ("reward", "load", "promotion")]
VERSIONS = 4


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with four registered versions of two models, and no champion."""
    folder = tmp_path_factory.mktemp("store")
    registry = open_at(folder)
    for name in (NAME, PARTNER):
        registry.client.create_registered_model(name)
        for number in range(1, VERSIONS + 1):
            files = folder / "files" / f"{name}-{number}"
            files.mkdir(parents=True)
            (files / "model.safetensors").write_text(files.name)
            registry.client.create_model_version(name, str(files))
            registry.register(name, number)
    return folder


@pytest.fixture
def folder(store: Path, tmp_path: Path) -> Path:
    for name in ("mlflow.db", "promotions.jsonl"):
        shutil.copy(store / name, tmp_path / name)
    return tmp_path


def open_at(folder: Path) -> Registry:
    return open_registry(f"sqlite:///{folder / 'mlflow.db'}", folder)


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    header = "import sys, os, signal; from pathlib import Path\n" + _HELPERS
    command = [sys.executable, "-c", header + script, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


_HELPERS = """
from perfusion.errors import GateError
from perfusion.governance import Decision
from tasks.registry import open_registry
NAME, PARTNER = "shop-reward", "shop-generator"
PASSED = [Decision(gate, "pass") for gate in ("reward", "load", "promotion")]
folder = Path(sys.argv[1])
registry = open_registry(f"sqlite:///{folder / 'mlflow.db'}", folder)
"""

RACE = """
wins = 0
while wins < int(sys.argv[2]):
    seen = registry.version(NAME)
    target = (seen or 0) % 4 + 1
    try:
        registry.promote({NAME: target}, expected={NAME: seen}, decisions=PASSED)
        wins += 1
    except GateError as error:
        assert "stale" in str(error) or "champion already" in str(error), error
print(wins)
"""


def test_racing_processes_lose_and_double_no_transition(folder: Path) -> None:
    each = 8
    racers = [start(RACE, folder, each) for _ in range(2)]
    for racer in racers:
        out, err = racer.communicate(timeout=120)
        assert racer.returncode == 0, err
        assert int(out) == each
    registry = open_at(folder)
    moves = [transition.moves[NAME] for transition in registry.history() if transition.status == "committed"]
    assert len(moves) == 2 * each
    assert moves[0][0] is None
    assert all(before == after for (_, before), (after, _) in pairwise(moves))
    assert registry.version(NAME) == moves[-1][1]
    assert registry.verify() == []


KILLED = """
moment, victim = sys.argv[2], sys.argv[3]
real = registry.client.set_registered_model_alias
def set_alias(name, alias, version):
    if (moment, name) == ("before", victim):
        os.kill(os.getpid(), signal.SIGKILL)
    real(name, alias, version)
    if (moment, name) == ("after", victim):
        os.kill(os.getpid(), signal.SIGKILL)
registry.client.set_registered_model_alias = set_alias
registry.promote({NAME: 2, PARTNER: 2}, expected=registry.champions("shop"), decisions=PASSED)
"""
# Models move in the order of their names, the generator first.
MOMENTS = {
    "before any alias moved": ("before", PARTNER, "aborted", 1),
    "after the first of two aliases": ("after", PARTNER, "committed", 2),
    "after both, before the commit": ("after", NAME, "committed", 2),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_between_intent_and_commit_is_undone_or_completed(folder: Path, moment: str) -> None:
    when, victim, status, champion = MOMENTS[moment]
    registry = open_at(folder)
    registry.promote({NAME: 1, PARTNER: 1}, expected={NAME: None, PARTNER: None}, decisions=PASSED)
    killed = start(KILLED, folder, when, victim)
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert registry.history()[-1].status == "pending"
    assert "interrupted" in registry.verify()[0]

    resolved = registry.recover()

    assert resolved is not None
    assert resolved.status == registry.history()[-1].status == status
    assert registry.champions("shop") == {NAME: champion, PARTNER: champion}
    assert registry.verify() == []
    assert registry.recover() is None


def test_the_next_transition_cleans_up_by_itself(folder: Path) -> None:
    registry = open_at(folder)
    registry.promote({NAME: 1, PARTNER: 1}, expected={NAME: None, PARTNER: None}, decisions=PASSED)
    start(KILLED, folder, "after", PARTNER).communicate(timeout=60)
    registry.promote({NAME: 3, PARTNER: 3}, expected={NAME: 2, PARTNER: 2}, decisions=PASSED)
    assert [transition.status for transition in registry.history()] == ["committed"] * 3
    assert registry.verify() == []


def test_lines_cut_off_the_end_are_noticed(folder: Path) -> None:
    registry = open_at(folder)
    registry.promote({NAME: 1, PARTNER: 1}, expected={NAME: None, PARTNER: None}, decisions=PASSED)
    log = folder / "promotions.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-2]))
    assert any("cut off" in problem for problem in open_at(folder).verify())


def test_a_held_lock_is_an_error_that_says_so(folder: Path) -> None:
    holder = start("with registry._locked():\n    print('held', flush=True)\n    sys.stdin.read()", folder)
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
