"""Run one stage of dvc.yaml through DVC, tell its output line by line, and leave no process behind."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from perfusion.errors import PerFusionError
from tasks.livelog import read_log
from tasks.process import cpu_environment, group
from tasks.workspace import Workspace

__all__ = [
    "LOCK_ATTEMPTS",
    "DiskFullError",
    "StageError",
    "StageResult",
    "is_locked",
    "require_disk",
    "run_stage",
    "stage_environment",
]

LEAST_FREE_MIB = 2048  # a cold run on the sample leaves 1.3 GB: its outputs, and as much again in the DVC cache
SCARCE_MIB = 64  # with less than this left, a stage that died without a word has most likely found the disk full
LOCK_ATTEMPTS = 5
_UNCHANGED = re.compile(r"^Stage '.*' (didn't change, skipping|is cached - skipping run)")
_LOCKED = re.compile(r"Unable to acquire lock")
_CHATTER = re.compile(
    r"^(Use `dvc push`|To track the changes with git|\tgit add |To enable auto staging|\tdvc config core\.autostage"
    r"|Updating lock file|Generating lock file|Data and pipelines are up to date|Running stage |> |$)"
)


class StageError(PerFusionError):
    """A stage failed; the text is the stage's own.

    Attributes:
        expected: whether the stage explained it (bad input, no space, divergence); otherwise it is a defect.
    """

    def __init__(self, message: str, expected: bool) -> None:
        super().__init__(message)
        self.expected = expected


class DiskFullError(PerFusionError):
    """There is too little free space to start."""


@dataclass(frozen=True)
class StageResult:
    """How a stage ended.

    Attributes:
        stage: its name.
        cached: nothing it depends on had changed, so that nothing ran.
        seconds: wall time, DVC's own included.
    """

    stage: str
    cached: bool
    seconds: float


def run_stage(
    workspace: Workspace, stage: str, tell: Callable[[str], None], force: bool = False, threads: int = 1,
    wait_for_lock: bool = False,
) -> StageResult:  # fmt: skip
    """Bring one stage up to date with `dvc repro --single-item`.

    The stage runs in a process group of its own; however this call ends, nobody of that group survives it.

    Args:
        workspace: where.
        stage: its name in dvc.yaml.
        tell: called with every line of output as it comes.
        force: run it even when nothing changed.
        threads: of the numerical libraries.
        wait_for_lock: other stages run at the same time here, and DVC is to wait for its lock instead of giving up.

    Raises:
        StageError: it failed; carries the stage's own message.
    """
    began, clock = time.monotonic(), time.time()
    options = [*(["--wait-for-lock"] if wait_for_lock else []), "repro", "--single-item"]
    command = [sys.executable, "-m", "dvc", *options, *(["--force"] if force else []), stage]
    for attempt in range(1, LOCK_ATTEMPTS + 1):
        code, lines = _run_in_group(command, workspace, threads, tell)
        if code == 0 or not any(map(is_locked, lines)) or attempt == LOCK_ATTEMPTS:
            break
        time.sleep(1)  # another dvc of this workspace is reading or writing its lock file
    if code != 0:
        raise _failure(workspace, stage, clock, lines)
    return StageResult(stage, any(_UNCHANGED.match(line) for line in lines), time.monotonic() - began)


def _run_in_group(
    command: list[str], workspace: Workspace, threads: int, tell: Callable[[str], None]
) -> tuple[int, list[str]]:
    """Run a command to its end and tell its lines; its whole process group is gone when this returns or raises."""
    options = {"cwd": workspace.root, "env": stage_environment(threads), "bufsize": 1}
    with group(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options) as process:
        assert process.stdout is not None
        lines = []
        for line in map(str.rstrip, process.stdout):
            lines.append(line)
            if not _CHATTER.match(line) and not _UNCHANGED.match(line):
                tell(line)
        return process.wait(), lines


def require_disk(workspace: Workspace, least_mib: int = LEAST_FREE_MIB) -> None:
    """Refuse to start where outputs could not be written.

    Raises:
        DiskFullError: less than `least_mib` are free; names place, value, bound and remedy.
    """
    workspace.root.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(workspace.root).free // 2**20
    if free < least_mib:
        raise DiskFullError(
            f"{workspace.root}: {free} MiB free on this disk, a retraining needs {least_mib} MiB\n"
            "remedy: free some space; `dvc gc --workspace` drops cached outputs that no current stage uses"
        )


def is_locked(said: str) -> bool:
    """Whether DVC's words say that another dvc holds the workspace's lock file."""
    return _LOCKED.search(said) is not None


def stage_environment(threads: int) -> dict[str, str]:
    """The caller's environment, with this interpreter's programs first."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    own = {"PATH": path, "PYTHONUNBUFFERED": "1", "DVC_NO_ANALYTICS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return {**os.environ, **cpu_environment(threads), **own}


def _failure(workspace: Workspace, stage: str, since: float, lines: list[str]) -> StageError:
    """The stage's own words where it left some in its log, else the last words on its output."""
    told = [record for record in read_log(workspace.log(stage)) if "error" in record and record["time"] >= since]
    if told:
        error = told[0]  # of several processes, the one that failed first
        kind = "" if error["expected"] else f"{error['error']}: "
        return StageError(f"stage {stage}: {kind}{error['message']}", bool(error["expected"]))
    tail = "\n".join([line for line in lines if not _CHATTER.match(line)][-12:]) or "(no output)"
    busy = any("is busy" in line or is_locked(line) for line in lines)
    free = shutil.disk_usage(workspace.root).free // 2**20
    if free < SCARCE_MIB:
        tail += f"\nremedy: only {free} MiB are free on the disk of {workspace.root}; free some space and run again"
    return StageError(f"stage {stage} failed without a word of its own; the end of its output:\n{tail}", busy)
