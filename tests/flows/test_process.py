"""No process outlives the one that started it, however that one ends."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest

from tasks.process import die_with_parent, stop_group
from tasks.workspace import REPOSITORY

PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", '''
from tasks.process import die_with_parent
die_with_parent()
print("ready", flush=True)
import time
time.sleep(600)
'''], stdout=subprocess.PIPE, text=True)
child.stdout.readline()
print(child.pid, flush=True)
child.wait()
"""
LATE = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", '''
import sys, time
from pathlib import Path
time.sleep(1)  # dvc is killed while the stage still imports
from tasks.process import die_with_parent
die_with_parent()
Path(sys.argv[1]).touch()
time.sleep(600)
''', sys.argv[1]])
print(child.pid, flush=True)
if sys.argv[2] == "gone":
    os._exit(0)
child.wait()
"""
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""


def _gone(pid: int, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


def _wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's part in it is Linux's own")
def test_a_stage_dies_with_its_parent_even_when_that_is_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    with parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert psutil.pid_exists(child)
        parent.kill()
    assert _gone(child)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's part in it is Linux's own")
@pytest.mark.parametrize("parent", ["gone", "there"])
def test_a_stage_whose_parent_ended_before_it_could_ask_ends_too(parent: str, tmp_path: Path) -> None:
    began = tmp_path / "began"
    run = subprocess.Popen(
        [sys.executable, "-c", LATE, str(began), parent], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY,
        start_new_session=True,
    )  # fmt: skip
    with run:
        assert run.stdout is not None
        child = int(run.stdout.readline())
        if parent == "gone":
            run.wait(60)
            assert _gone(child, 60)
        else:
            _wait_until(began.exists)
            assert not _gone(child, 0.2)
            stop_group(run)
    assert began.exists() == (parent == "there"), "only a stage with its parent alive does any work"


def test_a_child_of_a_known_parent_ends_when_another_took_its_place() -> None:
    own, other = os.getpid(), os.getppid()
    for parent, code in ((own, 0), (other, -9)):
        with subprocess.Popen([sys.executable, "-c", ""], preexec_fn=partial(die_with_parent, parent)) as child:
            assert child.wait(60) == code


def test_a_group_that_ignores_the_polite_signal_is_stopped_with_all_its_children() -> None:
    leader = subprocess.Popen(
        [sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE, text=True, start_new_session=True
    )  # fmt: skip
    with leader:
        assert leader.stdout is not None
        child = int(leader.stdout.readline())
        stop_group(leader, patience=0.3)
    assert leader.returncode == -9
    assert _gone(child)


def test_stopping_a_group_that_has_ended_is_no_error() -> None:
    done = subprocess.Popen([sys.executable, "-c", ""], start_new_session=True, preexec_fn=die_with_parent)
    done.wait()
    stop_group(done)
    assert done.returncode == 0
