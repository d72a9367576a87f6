"""Schedules: one run at a time, and a cron deployment that a real server really schedules."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from flows.schedule import deployment
from perfusion.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parents[2]

APPLY = """
import anyio
from flows.schedule import deployment
from prefect.client.orchestration import get_client

made = deployment("*/5 * * * *", "often", {"params": "params.yaml"}).apply()

async def scheduled():
    async with get_client() as client:
        for _ in range(120):
            runs = await client.read_flow_runs(limit=10)
            if runs:
                deployed = await client.read_deployment(made)
                limit, options = deployed.global_concurrency_limit, deployed.concurrency_options
                print({run.state_type.value for run in runs}, limit.limit, options.collision_strategy.value)
                return
            await anyio.sleep(0.5)

anyio.run(scheduled)
"""


def test_at_most_one_run_and_the_newcomer_gives_way() -> None:
    made = deployment("0 3 * * *", "nightly", {"params": "params/smoke.yaml", "data": None, "root": None})
    assert made.concurrency_limit == 1
    assert made.concurrency_options is not None
    assert made.concurrency_options.collision_strategy.value == "CANCEL_NEW"
    assert made.parameters == {"params": "params/smoke.yaml"}
    assert [item.schedule.cron for item in made.schedules] == ["0 3 * * *"]


@pytest.mark.parametrize("cron", ["every day", "61 3 * * *", ""])
def test_a_wrong_cron_expression_is_told_in_words(cron: str) -> None:
    with pytest.raises(ConfigError, match="five fields"):
        deployment(cron, "nightly", {})


def test_prefect_yaml_says_the_same() -> None:
    deployments = yaml.safe_load((REPOSITORY / "prefect.yaml").read_text())["deployments"]
    written = next(made for made in deployments if made["name"] == "nightly")
    file, _, function = written["entrypoint"].partition(":")
    made = deployment(written["schedules"][0]["cron"], written["name"], {})
    assert (REPOSITORY / file).is_file()
    assert function == made.flow_name
    assert written["concurrency_limit"]["limit"] == made.concurrency_limit
    assert made.concurrency_options is not None
    assert written["concurrency_limit"]["collision_strategy"] == made.concurrency_options.collision_strategy.value


@pytest.mark.slow
def test_a_real_server_schedules_the_deployment(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ, "PREFECT_HOME": str(tmp_path), "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api", "DO_NOT_TRACK": "true", "PYTHONPATH": str(REPOSITORY),
    }  # fmt: skip
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    log = tmp_path / "server.log"
    with open(log, "w") as out, subprocess.Popen(command, env=environment, stdout=out, stderr=out) as server:
        try:
            _wait_for(port, server, log)
            applied = subprocess.run(
                [sys.executable, "-c", APPLY], env=environment, capture_output=True, text=True, cwd=REPOSITORY
            )
            assert applied.returncode == 0, applied.stderr
            assert applied.stdout.strip().endswith("{'SCHEDULED'} 1 CANCEL_NEW"), applied.stdout + applied.stderr
        finally:
            server.terminate()


def _wait_for(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and server.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"no Prefect server came up:\n{log.read_text()[-2000:]}")
