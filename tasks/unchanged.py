"""Which stages have nothing to do, asked of DVC once for all of them instead of once for each."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor

import yaml

from tasks.process import group
from tasks.run_stage import LOCK_ATTEMPTS, StageError, is_locked, stage_environment
from tasks.workspace import Workspace

__all__ = ["Unchanged", "recorded_outs", "unchanged_stages"]


class Unchanged:
    """The stages that DVC would skip as they stand, `stage in unchanged`; asking begins at once, beside other work.

    The answer holds until a stage runs. From then on (`forget`) nothing is known, and every stage asks DVC for itself.
    """

    def __init__(self, workspace: Workspace, stages: tuple[str, ...]) -> None:
        self._workspace, self._stages = workspace, stages
        self._answer: Future[frozenset[str]] | None = None
        if workspace.data.is_dir():  # else everything has yet to be made, and DVC is needed to fetch the data
            self._ask()

    def _ask(self) -> None:
        asking = ThreadPoolExecutor(1, thread_name_prefix="dvc-status")
        self._answer = asking.submit(unchanged_stages, self._workspace, self._stages)
        asking.shutdown(wait=False)

    def __contains__(self, stage: str) -> bool:
        """Whether nothing has run since DVC was asked and the stage was unchanged then; waits for the answer.

        Raises:
            StageError: DVC could not tell.
        """
        answer = self._answer
        return answer is not None and stage in answer.result()

    def forget(self) -> None:
        """A stage is about to run."""
        self._answer = None

    def ask_again(self) -> None:
        """A stage has run and made what was there before: ask about all of them once more, instead of one by one."""
        self._ask()


def unchanged_stages(workspace: Workspace, stages: tuple[str, ...]) -> frozenset[str]:
    """The stages whose command, dependencies, parameters and outputs are those of dvc.lock, as `dvc status` has it.

    `dvc repro` compares the same and skips the same stages. DVC is asked about all stages there are: asked by name, it
    reads dvc.yaml and dvc.lock once for each.

    Raises:
        StageError: DVC could not tell; holds its words.
    """
    command = [sys.executable, "-m", "dvc", "status", "--json"]
    options = {"cwd": workspace.root, "env": stage_environment(1)}
    for attempt in range(1, LOCK_ATTEMPTS + 1):
        with group(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options) as process:
            told, errors = process.communicate()
        if process.returncode == 0:
            return frozenset(stages) - json.loads(told).keys()
        if not is_locked(errors) or attempt == LOCK_ATTEMPTS:
            break
        time.sleep(1)  # another dvc of this workspace is at work
    raise StageError(f"`dvc status` could not tell which stages have changed:\n{errors.strip()}", is_locked(errors))


def recorded_outs(workspace: Workspace, stage: str) -> dict[str, str] | None:
    """DVC's hashes of a stage's outputs by path, as dvc.lock tells of its last run; None where it tells nothing."""
    if not workspace.dvc_lock.exists():
        return None
    told = yaml.safe_load(workspace.dvc_lock.read_text())["stages"].get(stage)
    metrics = {str(workspace.metrics(stage).relative_to(workspace.root))}  # hold times, and no stage reads them
    return {out["path"]: str(out["md5"]) for out in told["outs"] if out["path"] not in metrics} if told else None
