"""A run that is told to end ends, with all that it started, whatever has become of Prefect's server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tasks.workspace import REPOSITORY

DEAF = """
import signal, sys, time
from flows.termination import end_promptly
from tasks.process import group
signal.signal(signal.SIGTERM, lambda *_: None)
end_promptly(patience=0.2)
with group([sys.executable, "-c", "import time; time.sleep(600)"]) as stage:
    print(stage.pid, flush=True)
    stage.wait()
    print("stopped", flush=True)
    time.sleep(600)
"""
SERVED = """
import time
from flows.server import start_server
start_server()
print("started", flush=True)
time.sleep(600)
"""
UNANSWERED = """
from flows.server import start_server
from perfusion.errors import PerFusionError
ready = start_server()
try:
    ready()
except PerFusionError as error:
    print(error)
"""
DESERTED = """
import psutil
from flows.cli_common import run_flow
from flows.environment import quieten
from flows.server import start_server
from perfusion.errors import PerFusionError
from tasks.workspace import REPOSITORY
quieten(REPOSITORY)
ready = start_server()
from prefect import flow
ready()

@flow
def deserted():
    (server,) = psutil.Process().children()
    server.kill()

try:
    run_flow(deserted)
except PerFusionError as error:
    print(error)
"""
RETRAIN = """
import sys
from flows.environment import quieten
from flows.server import start_server
from flows.termination import end_promptly
ready = start_server()
from flows.retrain import retrain
ready()
end_promptly(patience=3)
retrain(*sys.argv[1:], return_state=True)
"""


def test_a_process_deaf_to_sigterm_ends_and_its_stage_before_it() -> None:
    run = subprocess.Popen([sys.executable, "-c", DEAF], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    with run:
        assert run.stdout is not None
        stage = int(run.stdout.readline())
        run.send_signal(signal.SIGTERM)
        assert run.stdout.readline() == "stopped\n"
        assert run.wait(60) == 128 + signal.SIGTERM
    assert not psutil.pid_exists(stage)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's part in it is Linux's own")
def test_a_server_does_not_outlive_a_killed_run() -> None:
    with _start(SERVED) as run:
        assert run.stdout is not None
        run.stdout.readline()
        (server,) = psutil.Process(run.pid).children()
        assert server.cmdline()[1:3] == ["-m", "flows.server"]
        run.kill()
    server.wait(60)


def test_a_configured_server_is_used_and_none_started(tmp_path: Path) -> None:
    (tmp_path / "profiles.toml").write_text('active = "x"\n[profiles.x]\nPREFECT_API_URL = "http://here/api"\n')
    script = (
        "import psutil; from flows.server import start_server; start_server()(); print(psutil.Process().children())"
    )
    for settings in ({"PREFECT_API_URL": "http://127.0.0.1:1/api"}, {"PREFECT_HOME": str(tmp_path)}):
        with _start(script, **settings) as run:
            assert run.communicate()[0] == "[]\n", settings


@pytest.mark.slow
def test_a_server_that_cannot_start_is_told_of() -> None:
    with _start(UNANSWERED, PREFECT_SERVER_DATABASE_CONNECTION_URL="sqlite+aiosqlite:////nowhere/at/all.db") as run:
        said, _ = run.communicate()
    assert "Prefect's server did not start" in said
    assert "remedy: " in said


@pytest.mark.slow
def test_a_server_that_goes_away_for_good_is_told_of(tmp_path: Path) -> None:
    settings = {"PREFECT_HOME": str(tmp_path), "PREFECT_CLIENT_MAX_RETRIES": "0"}  # else minutes of asking again
    with _start(DESERTED, **settings) as run:
        said, _ = run.communicate()
    assert "Prefect's server went away and did not come back (" in said
    assert "http://127.0.0.1:" in said
    assert "remedy: run the same command again" in said


@pytest.mark.slow
def test_sigterm_ends_a_run_whose_server_was_killed(marketplace: Path, tmp_path: Path) -> None:
    """Prefect alone would go on for minutes, trying to tell its server."""
    smoke = str(REPOSITORY / "params" / "smoke.yaml")
    places = (smoke, str(marketplace), str(tmp_path / "workspace"), str(tmp_path / "mlruns"))
    with _start(RETRAIN, *places, PREFECT_HOME=str(tmp_path / "prefect")) as run:
        family = _wait_for_stage(run, "validate")
        (server,) = [child for child in family if "flows.server" in child.cmdline()]
        server.kill()
        run.send_signal(signal.SIGTERM)
        assert run.wait(60) in (-signal.SIGTERM, 128 + signal.SIGTERM)
    for child in family:
        child.wait(60)


def _start(script: str, *arguments: str, **settings: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments], cwd=REPOSITORY, env={**environment, **settings},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def _wait_for_stage(run: subprocess.Popen[str], stage: str) -> list[psutil.Process]:
    """Every process that the run has started, once one of them is the stage's."""
    deadline = time.monotonic() + 240
    while True:
        family = psutil.Process(run.pid).children(recursive=True)
        if any(_command(child)[-2:] == ["tasks.stages", stage] for child in family):
            return family
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []
