"""Evaluate the models of a workspace again, from their checkpoints, and compare with what was recorded.

The evaluation stages run in a scratch workspace inside the workspace, which reaches everything they depend on through
links: nothing is trained, and neither the recorded figures nor dvc.lock are touched.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from perfusion.errors import DataError
from tasks.process import group
from tasks.registry import changed_files, file_hashes
from tasks.reporting_words import flatten
from tasks.run_stage import StageError, stage_environment
from tasks.stage_run import stages_of
from tasks.workspace import CODE_FOLDERS, Workspace, link_to, open_workspace

__all__ = ["EVALUATIONS", "Metric", "Reevaluated", "compare_metrics", "reevaluate"]

EVALUATIONS = ("evaluate-reward", "evaluate-generator")
_COSTS = ("costs",)  # sections of metrics that no two runs share: seconds, memory


@dataclass(frozen=True)
class Metric:
    """One figure of an evaluation.

    Attributes:
        name: dotted path in the stage's metrics.
        recorded: its value in work/metrics; None where it is new.
        found: its value now; None where it is gone.
        equal: the two are the same, within the tolerance.
        cost: seconds or memory, which need not be equal.
    """

    name: str
    recorded: Any
    found: Any
    equal: bool
    cost: bool


@dataclass(frozen=True)
class Reevaluated:
    """What one evaluation stage came to.

    Attributes:
        stage: its name.
        metrics: every figure of either evaluation.
        files: how many files (tables and pictures) the evaluation wrote.
        files_unlike: those whose bytes are not the recorded ones, one line each.
    """

    stage: str
    metrics: tuple[Metric, ...]
    files: int
    files_unlike: tuple[str, ...]

    @property
    def different(self) -> tuple[Metric, ...]:
        """The figures that should be equal and are not."""
        return tuple(metric for metric in self.metrics if not metric.equal and not metric.cost)


def reevaluate(workspace: Workspace, tell: Callable[[str], None], tolerance: float = 0.0) -> list[Reevaluated]:
    """Run both evaluations of a workspace's models again.

    Args:
        workspace: with models and recorded evaluations.
        tell: called with every line of the stages' output.
        tolerance: greatest relative difference of numbers that still counts as equal; 0 means the same number.

    Raises:
        DataError: something that the evaluations read, or their recorded figures, are not there.
        StageError: an evaluation failed.
    """
    stages = stages_of(workspace.dvc_yaml)
    _require(workspace, stages)
    workspace.work.mkdir(exist_ok=True)
    with TemporaryDirectory(prefix=".evaluate-", dir=workspace.work) as folder:
        scratch = _scratch(workspace, stages, Path(folder))
        told = []
        for stage in EVALUATIONS:
            _run(scratch, stage, tell)
            recorded, found = (json.loads(place.metrics(stage).read_text()) for place in (workspace, scratch))
            metrics = compare_metrics(recorded, found, tolerance)
            outs = stages[stage]["outs"]
            before, after = ([_hashes(place.root / out) for out in outs] for place in (workspace, scratch))
            unlike = [line for a, b in zip(before, after, strict=True) for line in changed_files(a, b)]
            told.append(Reevaluated(stage, metrics, sum(map(len, after)), tuple(unlike)))
    return told


def _hashes(folder: Path) -> dict[str, str]:
    """An evaluation's files but for its copy of the metrics, which holds the costs too."""
    return {name: digest for name, digest in file_hashes(folder).items() if name != "metrics.json"}


def compare_metrics(
    recorded: Mapping[str, Any], found: Mapping[str, Any], tolerance: float = 0.0
) -> tuple[Metric, ...]:  # fmt: skip
    """Every figure of two evaluations, beside each other. A missing figure equals nothing; NaN equals NaN."""
    left, right = dict(flatten(recorded)), dict(flatten(found))
    return tuple(
        Metric(
            name, left.get(name), right.get(name),
            name in left and name in right and _same(left[name], right[name], tolerance), name.split(".")[0] in _COSTS,
        )
        for name in [*left, *(name for name in right if name not in left)]
    )  # fmt: skip


def _same(a: Any, b: Any, tolerance: float) -> bool:
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_same(x, y, tolerance) for x, y in zip(a, b, strict=True))
    if isinstance(a, float) and isinstance(b, float):
        return a == b or (math.isnan(a) and math.isnan(b)) or math.isclose(a, b, rel_tol=tolerance)
    return bool(a == b)


def _require(workspace: Workspace, stages: Mapping[str, Any]) -> None:
    deps = [dep for stage in EVALUATIONS for dep in stages[stage]["deps"]]
    needed = dict.fromkeys([*deps, *(out for stage in EVALUATIONS for out in stages[stage]["outs"])])
    absent = [path for path in needed if not (workspace.root / path).exists()]
    absent += [
        str(workspace.metrics(s).relative_to(workspace.root)) for s in EVALUATIONS if not workspace.metrics(s).exists()
    ]
    if absent:
        raise DataError(
            f"{workspace.root}: there is nothing to evaluate again: {', '.join(absent)} not there\n"
            "remedy: `perfusion retrain` trains and evaluates; `dvc checkout` gives back what its lock file names; "
            "`perfusion restore VERSION DIR` gives back a registered version"
        )


def _scratch(workspace: Workspace, stages: Mapping[str, Any], folder: Path) -> Workspace:
    """A workspace of links to what the evaluations read, with outputs of its own."""
    for name in CODE_FOLDERS:
        link_to(folder / name, (workspace.root / name).resolve())
    link_to(folder / "data", workspace.data.resolve())
    for dep in sorted({dep for stage in EVALUATIONS for dep in stages[stage]["deps"]}):  # folders before their parts
        place = folder / dep
        if dep.startswith("work/") and not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            link_to(place, (workspace.root / dep).resolve())
    for file in (workspace.params_file, workspace.dvc_yaml):
        shutil.copyfile(file, folder / file.name)
    return open_workspace(folder, workspace.mlruns)


def _run(scratch: Workspace, stage: str, tell: Callable[[str], None]) -> None:
    """Run one stage there, by the code that the workspace has, and leave no process behind."""
    options = {"cwd": scratch.root, "env": stage_environment(scratch.params().threads), "bufsize": 1}
    command = [sys.executable, "-m", "tasks.stages", stage]
    with group(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options) as process:
        assert process.stdout is not None
        lines = []
        for line in map(str.rstrip, process.stdout):
            lines.append(line)
            tell(line)
        if process.wait() != 0:
            raise StageError(f"{stage} failed:\n" + "\n".join(lines[-12:]), expected=process.returncode == 2)
