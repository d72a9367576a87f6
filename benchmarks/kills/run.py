"""A flow run in a process of its own: begun, watched, shot at, and searched for what it left alive."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil

from benchmarks.kills.place import Place
from flows.retrain import STAGES
from tasks.process import die_with_parent, stop_group
from tasks.workspace import REPOSITORY

__all__ = ["MARK", "STEPS", "FlowRun", "Spans", "await_step", "begin", "strike", "watch"]

#: Everything that a flow run with a promotion does, in its order.
STEPS = (
    "data", "validate", "data gate", "split", "backbones", "pickscore", "reward", "evaluate-reward", "reward gate",
    *STAGES[STAGES.index("encode") :], "register", "load gate", "promotion gate", "promote", "publish",
)  # fmt: skip
MARK = "PERFUSION_KILLS"  # an environment variable, inherited by every process of a run
POLL = 0.1  # seconds between two looks; looking at all processes takes milliseconds
_FINISHED = re.compile(r"Task run '(.+)-[0-9a-f]{3}' - Finished in state")
_RESUMED = re.compile(r"([\w-]+): resuming at step (\d+) of (\d+)")

#: Seconds that a step took (the flow's part in it), or a process of a stage: (step, "flow" | "dvc" | "trainer").
Spans = dict[tuple[str, str], float]


@dataclass
class FlowRun:
    """A flow run.

    Attributes:
        process: the flow's.
        mark: found in the environment of every process of the run.
        log: what it says.
    """

    process: subprocess.Popen[bytes]
    mark: str
    log: Path
    _read: int = 0
    _finished: list[str] = field(default_factory=list)

    def finished(self) -> list[str]:
        """The steps that have ended, in their order."""
        with open(self.log, "rb") as file:
            file.seek(self._read)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._read += len(whole)
        self._finished += _FINISHED.findall(whole.decode(errors="replace"))
        return self._finished

    def running(self) -> bool:
        return self.process.poll() is None

    def find(self, target: str, step: str) -> psutil.Process | None:
        """The flow itself, or the dvc or the trainer of a stage; None where there is none."""
        if target == "flow":
            return psutil.Process(self.process.pid) if self.running() else None
        ends = {"dvc": ["--single-item", step], "trainer": ["tasks.stages", step]}[target]
        try:
            family = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return None
        return next((child for child in family if _command(child)[-2:] == ends), None)

    def alive(self) -> list[psutil.Process]:
        """Every process of the run that lives, the flow's included."""
        return [process for process in psutil.process_iter() if _mark_of(process) == self.mark]

    def wait(self, patience: float) -> bool:
        """Whether the flow ends within `patience` seconds."""
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            return False
        return True

    def stop(self) -> None:
        """End everything of the run that still lives."""
        stop_group(self.process)
        for process in self.alive():
            process.kill()

    def orphans(self, patience: float = 5.0) -> list[str]:
        """The command lines of those that outlive the flow by `patience` seconds."""
        deadline = time.monotonic() + patience
        while (left := self.alive()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return [" ".join(_command(process))[-200:] for process in left]

    def resumed(self) -> list[str]:
        """At which step trainings went on, e.g. "reward 12/40"."""
        told = self.log.read_text(errors="replace")
        return [f"{name} {step}/{of}" for name, step, of in _RESUMED.findall(told)]


def begin(place: Place, server: str | None = None, any_disk: bool = False) -> FlowRun:
    """Start a retraining in a place.

    Args:
        place: where.
        server: address of Prefect's API; None: the run starts a server of its own.
        any_disk: run even where there is little space.
    """
    mark = uuid.uuid4().hex
    logs = place.root / "logs"
    logs.mkdir(exist_ok=True)
    log = logs / f"{len(list(logs.iterdir())):04d}.log"
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    environment |= {**place.environment(), MARK: mark, "PYTHONUNBUFFERED": "1"}
    if server is not None:
        environment["PREFECT_API_URL"] = server
    command = [sys.executable, "-m", "benchmarks.kills.flow", *place.arguments, *(["--any-disk"] if any_disk else [])]
    with open(log, "wb") as file:
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            start_new_session=True, preexec_fn=partial(die_with_parent, os.getpid()),
        )  # fmt: skip
    return FlowRun(process, mark, log)


def watch(run: FlowRun, patience: float) -> Spans:
    """Follow a run to its end and take the time of its steps and of its stages' processes.

    Raises:
        TimeoutError: it does not end within `patience` seconds.
    """
    began = time.monotonic()
    ended: dict[str, float] = {}
    seen: dict[tuple[str, str], tuple[float, float]] = {}
    while run.running():
        now = time.monotonic()
        if now - began > patience:
            run.stop()
            raise TimeoutError(f"{run.log}: the run did not end within {patience:g} s")
        for step in run.finished():
            ended.setdefault(step, now)
        for key in _stage_processes(run):
            seen[key] = (seen.get(key, (now, now))[0], now)
        time.sleep(POLL)
    for step in run.finished():
        ended.setdefault(step, time.monotonic())
    starts = [began, *ended.values()]
    spans = {(step, "flow"): end - start for (step, end), start in zip(ended.items(), starts, strict=False)}
    return spans | {key: last - first for key, (first, last) in seen.items()}


def strike(run: FlowRun, step: str, target: str, number: signal.Signals, delay: float, patience: float) -> str:
    """Wait until a step has begun (or its process is there) and `delay` seconds more, and send the signal.

    Returns:
        The step in which the run was when it was hit; "" where the target had ended by then.

    Raises:
        TimeoutError: the step does not begin within `patience` seconds.
    """
    await_step(run, step, patience, target)
    time.sleep(delay)
    found, hit = run.find(target, step), STEPS[min(len(run.finished()), len(STEPS) - 1)]
    if found is None:
        return ""
    try:
        found.send_signal(number)
    except psutil.NoSuchProcess:
        return ""
    return hit


def await_step(run: FlowRun, step: str, patience: float, target: str = "flow") -> None:
    """Wait until a step begins, or a process of it is there.

    Raises:
        TimeoutError: it does not within `patience` seconds, or the run has ended.
    """
    place = STEPS.index(step)
    deadline = time.monotonic() + patience
    while True:
        by_flow = place == 0 or STEPS[place - 1] in run.finished()
        if by_flow and (target == "flow" or run.find(target, step) is not None):
            return
        if not run.running() or time.monotonic() > deadline:
            raise TimeoutError(f"{run.log}: {step} did not begin; finished: {', '.join(run.finished())}")
        time.sleep(POLL)


def _stage_processes(run: FlowRun) -> Iterator[tuple[str, str]]:
    try:
        family = psutil.Process(run.process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return
    for child in family:
        match _command(child)[-2:]:
            case ["--single-item", stage]:
                yield stage, "dvc"
            case ["tasks.stages", stage]:
                yield stage, "trainer"


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return []


def _mark_of(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(MARK) if process.status() != psutil.STATUS_ZOMBIE else None
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None
