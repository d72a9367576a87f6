"""No process outlives the one that started it, however that one ends."""

from __future__ import annotations

import subprocess
import sys
import time

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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's part in it is Linux's own")
def test_a_stage_dies_with_its_parent_even_when_that_is_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    with parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert psutil.pid_exists(child)
        parent.kill()
    assert _gone(child)


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
