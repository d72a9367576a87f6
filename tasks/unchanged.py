"""Which stages have nothing to do, asked of DVC once for all of them instead of once for each."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor

from tasks.process import group
from tasks.run_stage import LOCK_ATTEMPTS, StageError, is_locked, stage_environment
from tasks.workspace import Workspace

__all__ = ["Unchanged", "unchanged_stages"]


class Unchanged:
    """The stages that DVC would skip as they stand, `stage in unchanged`; asking begins at once, beside other work.

    The answer holds until a stage runs. From then on (`forget`) nothing is known, and every stage asks DVC for itself.
    """

    def __init__(self, workspace: Workspace, stages: tuple[str, ...]) -> None:
        self._answer: Future[frozenset[str]] | None = None
        if workspace.data.is_dir():  # else everything has yet to be made, and DVC is needed to fetch the data
            asking = ThreadPoolExecutor(1, thread_name_prefix="dvc-status")
            self._answer = asking.submit(unchanged_stages, workspace, stages)
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
