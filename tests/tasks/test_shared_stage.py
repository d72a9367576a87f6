"""A stage whose training two processes share: what one makes, one writer, and nobody left when one is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from benchmarks.untrained import make_stages
from perfusion.config import load_params
from tasks.launching import processes_of
from tasks.livelog import read_log
from tasks.workspace import REPOSITORY, Workspace, open_workspace

STEPS = 60  # enough to be killed in the midst of


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_stages(tmp_path_factory.mktemp("stages"))


def _workspace(stages: Path, root: Path, processes: int, seconds: float = 30.0) -> Workspace:
    """A workspace in which the stage `reward` may run: two micro-batches a step, a state every so many seconds."""
    root.mkdir()
    for name, target in {"perfusion": REPOSITORY, "tasks": REPOSITORY, "data": stages}.items():
        (root / name).symlink_to(target / name)
    shutil.copy(REPOSITORY / "dvc.yaml", root)
    workspace = open_workspace(root)
    shutil.copytree(stages / "split", workspace.split)
    for model in (workspace.clip, workspace.pickscore):
        shutil.copytree(stages / "clip", model)
    optimiser = {"steps": STEPS, "lr": 1e-3, "accumulate": 2, "log_every": 1, "checkpoint_seconds": seconds}
    values = {"processes": processes, "reward": {"optimiser": optimiser, "batch_groups": 8, "evaluate_every": STEPS}}
    workspace.params_file.write_text(yaml.safe_dump(values))
    return workspace


def _start(workspace: Workspace) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        [sys.executable, "-m", "tasks.stages", "reward"], cwd=workspace.root, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def _run(workspace: Workspace) -> str:
    with _start(workspace) as process:
        said, _ = process.communicate(timeout=1200)
    assert process.returncode == 0, said[-3000:]
    return said


def _steps(workspace: Workspace) -> list[int]:
    return [record["step"] for record in read_log(workspace.log("reward")) if "grad_norm" in record.get("metrics", {})]


@pytest.fixture(scope="module")
def alone(stages: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The stage as one process runs it."""
    workspace = _workspace(stages, tmp_path_factory.mktemp("alone") / "workspace", 1)
    _run(workspace)
    return workspace


def _told(workspace: Workspace) -> dict[str, Any]:
    """training.json but for how often states were kept, which a test that kills changes."""
    record = json.loads((workspace.reward / "training.json").read_text())
    del record["parameters"]["optimiser"]["checkpoint_seconds"]
    return dict(record)


def _same(one: Workspace, two: Workspace) -> None:
    assert (one.reward / "model.safetensors").read_bytes() == (two.reward / "model.safetensors").read_bytes()
    assert _told(one) == _told(two)
    assert one.metrics("reward").read_bytes() == two.metrics("reward").read_bytes()


@pytest.mark.slow
def test_two_processes_make_the_bytes_of_one_and_one_of_them_writes(
    stages: Path, alone: Workspace, tmp_path: Path
) -> None:
    shared = _workspace(stages, tmp_path / "workspace", 2)
    said = _run(shared)
    _same(alone, shared)
    assert _steps(shared) == list(range(1, STEPS + 1))
    assert said.count(f"reward  {STEPS}/{STEPS}") == 1
    assert not shared.state.joinpath("reward").exists()
    assert {path.name for path in shared.work.iterdir()} == {path.name for path in alone.work.iterdir()}


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's part in it is Linux's own")
def test_when_one_process_is_killed_all_end_and_the_next_run_goes_on(
    stages: Path, alone: Workspace, tmp_path: Path
) -> None:
    workspace = _workspace(stages, tmp_path / "workspace", 2, seconds=1e-9)
    with _start(workspace) as launcher:
        deadline = time.monotonic() + 1200
        while len(_steps(workspace)) < 2 and time.monotonic() < deadline:
            assert launcher.poll() is None, launcher.communicate()[0][-3000:]
            time.sleep(0.02)
        family = psutil.Process(launcher.pid).children(recursive=True)
        victim = max(family, key=lambda process: process.create_time())
        os.kill(victim.pid, signal.SIGKILL)
        launcher.communicate(timeout=1200)
    assert launcher.returncode != 0
    psutil.wait_procs(family, timeout=60)
    assert not [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert not workspace.reward.exists()
    told = _run(workspace)
    assert f"of {STEPS}" in told
    assert "resuming at step" in told
    _same(alone, workspace)


def test_a_stage_has_no_more_processes_than_micro_batches(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text("processes: 4\nreward: {optimiser: {steps: 1, lr: 0.1, accumulate: 3}}\n")
    params = load_params(file)
    assert [processes_of(stage, params) for stage in ("reward", "generator", "encode", "backbones")] == [3, 1, 1, 1]


@pytest.mark.slow
def test_processes_launched_for_a_stage_that_one_runs_are_refused(stages: Path, tmp_path: Path) -> None:
    workspace = _workspace(stages, tmp_path / "workspace", 1)
    command = ["--multi_gpu", "--num_machines", "1", "--num_processes", "2", "--main_process_port", "0"]
    launched = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *command, "-m", "tasks.stages", "split"],
        cwd=workspace.root, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True,
    )  # fmt: skip
    assert launched.returncode != 0
    (told, *_) = [json.loads(line) for line in workspace.log("split").read_text().splitlines()]
    assert "split: 2 processes were launched for a stage that one runs" in told["message"]
