"""Schedules: one run at a time, each in its own worktree, on a real server and a real worker."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId, LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import FlowRun, State

from flows.schedule import deployment
from flows.scheduled import scheduled
from perfusion.errors import ConfigError
from tasks.livelog import read_log
from tasks.worktree import SchedulePlace

REPOSITORY = Path(__file__).resolve().parents[2]
SECRET = "b7f0c2"  # in the webhook's address
PATIENCE = 1200.0  # seconds, of a machine that is busy with other things


def test_a_deployment_has_its_cron_and_parameters() -> None:
    made = deployment("0 3 * * *", "nightly", {"schedule": "nightly", "branch": "main"})
    assert made.parameters == {"schedule": "nightly", "branch": "main"}
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
    assert written["parameters"].keys() <= scheduled.parameters.properties.keys()


class Hook:
    """A webhook that is out of order at its first call, and what it was told."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                hook.calls.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
                self.send_response(503 if len(hook.calls) == 1 else 204)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}/{SECRET}"


@dataclass
class Works:
    """A user's checkout, a Prefect server on which it is deployed, a worker and a webhook."""

    checkout: Path
    client: SyncPrefectClient
    deployment: UUID
    worker: subprocess.Popen[bytes]
    worker_log: Path
    hook: Hook

    @property
    def place(self) -> SchedulePlace:
        return SchedulePlace(self.checkout, "nightly")

    def tick(self, **parameters: Any) -> UUID:
        """Have a run fall due now."""
        return self.client.create_flow_run_from_deployment(self.deployment, parameters=parameters).id

    def state(self, run: UUID) -> State[Any]:
        state = self.client.read_flow_run(run).state
        assert state is not None
        return state

    def ended(self, run: UUID) -> State[Any]:
        self.wait(lambda: self.state(run).is_final())
        return self.state(run)

    def wait(self, condition: Callable[[], Any]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain\n{self.worker_log.read_text()[-3000:]}"
            time.sleep(0.1)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's checkout with unfinished work in it. Its data are small, and its data gate asks for more."""
    root = tmp_path_factory.mktemp("user") / "checkout"
    for name in ("perfusion", "tasks", "flows", "params"):
        shutil.copytree(REPOSITORY / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".gitignore", ".dvcignore", ".dvc/config", ".dvc/.gitignore", "mlruns/.gitignore", "dvc.yaml"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / name, root / name)
    values = yaml.safe_load((REPOSITORY / "params" / "smoke.yaml").read_text())
    values["data"]["min_groups"] = 10**6
    (root / "params.yaml").write_text(yaml.safe_dump(values))
    meta = {"command": "perfusion data sample --users 20 --seed 0 --out data"}
    (root / "data.dvc").write_text(yaml.safe_dump({"outs": [{"path": "data"}], "meta": meta}))
    pipeline = (REPOSITORY / "prefect.yaml").read_text()
    (root / "prefect.yaml").write_text(pipeline.replace("active: false", "active: true"))
    git(root, "init", "--quiet", "--initial-branch", "main")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "a shop")
    (root / "params.yaml").write_text("half a thou")
    (root / "tasks" / "validation.py").write_text("def validate(")
    (root / "perfusion" / "world" / "ideas.py").write_text("")
    return root


@pytest.fixture(scope="module")
def works(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Works]:
    home = tmp_path_factory.mktemp("prefect")
    port, hook = free_port(), Hook()
    api = f"http://127.0.0.1:{port}/api"
    environment = {
        **os.environ, "PREFECT_HOME": str(home), "PREFECT_API_URL": api, "PYTHONPATH": str(checkout),
        "PWD": str(checkout),  # what prefect.yaml calls the place
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "true", "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PERFUSION_WEBHOOK": hook.address,
    }  # fmt: skip
    threading.Thread(target=hook.server.serve_forever, daemon=True).start()
    server = ("server", "start", "--host", "127.0.0.1", "--port", str(port))
    with prefect(server, home / "server.log", environment, checkout) as process, SyncPrefectClient(api) as client:
        wait_for(port, process, home / "server.log")
        client.create_work_pool(WorkPoolCreate(name="perfusion", type="process"))
        deploy = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
        subprocess.run(deploy, cwd=checkout, env=environment, check=True, capture_output=True)
        made = client.read_deployment_by_name("scheduled/nightly").id
        worker = ("worker", "start", "--pool", "perfusion", "--name", "here")
        with prefect(worker, home / "worker.log", environment, checkout) as process:
            yield Works(checkout, client, made, process, home / "worker.log", hook)
    hook.server.shutdown()
    hook.server.server_close()


@pytest.mark.slow
def test_ticks_are_scheduled_ahead(works: Works) -> None:
    def ahead() -> list[FlowRun]:
        mine = FlowRunFilterDeploymentId(any_=[works.deployment])
        return works.client.read_flow_runs(flow_run_filter=FlowRunFilter(deployment_id=mine))

    works.wait(ahead)
    assert {run.state_type.value for run in ahead() if run.state_type} == {"SCHEDULED"}
    due = {run.expected_start_time.strftime("%H:%M") for run in ahead() if run.expected_start_time}
    assert due == {"03:00"}


@pytest.mark.slow
@pytest.mark.drill
def test_a_tick_runs_to_its_end_in_its_own_worktree_and_an_overlapping_one_is_cancelled(works: Works) -> None:
    before = status(works.checkout)
    run = works.tick()
    works.wait(lambda: works.place.tree.exists() or works.state(run).is_final())
    overlapping = works.tick()
    given_way = works.ended(overlapping)
    assert given_way.is_cancelled()
    assert "a run is still going on" in str(given_way.message)
    assert not works.state(run).is_final(), "cancelled because that one was running"
    ended = works.ended(run)
    assert ended.name == "Refused", ended.message
    assert "data gate" in str(ended.message)

    assert status(works.checkout) == before, "the user's unfinished work is as it was"
    assert not (works.checkout / "data").exists()
    assert {file.name for file in (works.checkout / "work").iterdir()} <= {"scheduled", "prefect"}
    assert not works.place.tree.exists()
    assert (works.place.kept / "work" / "valid" / "users.parquet").exists()
    assert any((works.checkout / ".dvc" / "cache" / "files").rglob("*")), "the shared cache has what the run made"
    outcome = json.loads((works.place.kept / "work" / "outcome.json").read_text())
    source = works.checkout / "mlruns" / "artifacts" / "smoke" / outcome["run_id"] / "artifacts"
    assert (source / "git.diff").read_text() == "", "made from the commit as it is"
    (tick,) = read_log(works.place.ticks)
    assert tick["outcome"] == "refused"
    assert tick["inputs"]["commit"] == git(works.checkout, "rev-parse", "HEAD").strip()


@pytest.mark.slow
@pytest.mark.drill
def test_the_webhook_hears_of_a_refusal_though_it_was_out_of_order(works: Works) -> None:
    first, again = works.hook.calls
    assert first == again
    assert first["outcome"] == "refused"
    assert first["run_id"] == json.loads((works.place.kept / "work" / "outcome.json").read_text())["run_id"]
    assert Path(first["report"]).read_text().startswith("<!")
    assert first["reasons"][1].startswith("fail: valid group records")
    assert UUID(first["flow_run"])


@pytest.mark.slow
@pytest.mark.drill
def test_a_killed_run_is_told_of_and_leaves_nothing_in_the_way_of_the_next(works: Works) -> None:
    run = works.tick(force=True)
    works.wait(lambda: stages_of(works.worker))
    family = psutil.Process(works.worker.pid).children(recursive=True)
    (engine,) = [child for child in family if command_of(child)[-2:] == ["-m", "prefect.engine"]]
    children = engine.children(recursive=True)
    engine.kill()
    assert works.ended(run).is_crashed()
    works.wait(lambda: len(works.hook.calls) == 3)
    assert works.hook.calls[-1]["outcome"] == "crashed"
    assert works.hook.calls[-1]["flow_run"] == str(run)
    for child in children:
        child.wait(60)
    assert works.place.tree.exists(), "left as it was"

    ended = works.ended(works.tick())
    assert (ended.name, ended.is_completed()) == ("NothingNew", True), ended.message
    assert "those of the run that ended" in str(ended.message)
    assert not works.place.tree.exists()
    assert (works.place.kept / "data" / "users.parquet").exists()
    assert len(works.hook.calls) == 3, "no news is not told"


@pytest.mark.slow
@pytest.mark.drill
def test_the_webhooks_address_is_in_no_log_and_no_parameter(works: Works) -> None:
    mine = FlowRunFilterDeploymentId(any_=[works.deployment])
    runs = works.client.read_flow_runs(flow_run_filter=FlowRunFilter(deployment_id=mine))
    for run in runs:
        told = works.client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id])))
        assert SECRET not in " ".join([*(entry.message for entry in told), run.model_dump_json()])
    assert SECRET not in works.worker_log.read_text()
    for file in (file for file in works.place.root.rglob("*") if file.is_file()):
        assert SECRET.encode() not in file.read_bytes(), file


def git(root: Path, *arguments: str) -> str:
    own = ("-c", "user.name=somebody", "-c", "user.email=somebody@example.org", "-c", "core.hooksPath=/dev/null")
    return subprocess.run(["git", *own, *arguments], cwd=root, check=True, capture_output=True, text=True).stdout


def status(root: Path) -> str:
    return git(root, "status", "--porcelain") + git(root, "diff")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def prefect(
    arguments: tuple[str, ...], log: Path, environment: dict[str, str], cwd: Path
) -> Iterator[subprocess.Popen[bytes]]:  # fmt: skip
    """A process of Prefect's, with all that it starts gone when the block ends."""
    command = [sys.executable, "-m", "prefect", *arguments]
    with open(log, "w") as out, subprocess.Popen(command, cwd=cwd, env=environment, stdout=out, stderr=out) as process:
        try:
            yield process
        finally:
            family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
            for member in family:
                member.kill()
            psutil.wait_procs(family, 60)


def wait_for(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and server.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"no Prefect server came up:\n{log.read_text()[-2000:]}")


def stages_of(worker: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Processes in which a retraining goes on."""
    family = psutil.Process(worker.pid).children(recursive=True)
    return [child for child in family if "flows.cli" in command_of(child)]


def command_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []
