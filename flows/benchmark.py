"""The benchmark: the paper's tables and figures on this workspace's data, whatever is missing trained first.

stages of the retraining that are missing -> stages of the studies, two at a time -> tables -> page and MLflow
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.dataset import ensure_data
from tasks.run_stage import require_disk, run_stage
from tasks.studies.builders import build
from tasks.studies.page import write_benchmark_page
from tasks.studies.pipeline import LANES
from tasks.studies.place import Studies, prepare_studies
from tasks.studies.record import record_benchmark
from tasks.studies.runner import Schedule, closure, estimated_seconds, make_schedule, run_schedule, seconds_seen
from tasks.studies.sheets import study_sheet
from tasks.studies.systems import STUDIES
from tasks.studies.tables import Table
from tasks.unchanged import unchanged_stages
from tasks.workspace import Workspace

__all__ = ["Benchmark", "benchmark"]

#: Stages of the retraining, in the order in which they build on each other, with their seconds on the sample.
BASE_SECONDS = {
    "validate": 8, "split": 3, "backbones": 470, "pickscore": 24, "reward": 32, "evaluate-reward": 22, "encode": 12,
    "dpo": 42, "sft": 27, "generator": 140, "evaluate-generator": 94,
}  # fmt: skip


@dataclass(frozen=True)
class Benchmark:
    """What came of it.

    Attributes:
        tables: in the order asked for.
        page: the report.
        run_id: MLflow's.
        ran: stages that really ran.
        seconds: wall time.
    """

    tables: tuple[Table, ...]
    page: Path
    run_id: str
    ran: int
    seconds: float


def benchmark(workspace: Workspace, names: Sequence[str], seeds: int, tell: Callable[[str], None]) -> Benchmark:
    """Run what is missing and make the tables.

    Args:
        workspace: whose data and parameters; it is held for the time.
        names: of `tasks.studies.systems.STUDIES`.
        seeds: training seeds of each system.
        tell: takes what a person should see.

    Raises:
        StageError: a stage failed; what had finished is kept.
        WorkspaceBusyError: a retraining or another benchmark is going on here.
    """
    began = time.monotonic()
    with workspace.held():
        require_disk(workspace)
        ensure_data(workspace, tell)
        studies = prepare_studies(workspace, seeds)
        base = _stale_base(workspace, names)
        wanted = {stage for name in names for stage in studies.plan.stages(name)}
        _tell_plan(studies, names, base, wanted, tell)
        ran = sum(not _run_base(workspace, stage, tell) for stage in base)
        schedule = make_schedule(studies, wanted)
        _tell_schedule(schedule, tell)
        ran += len(run_schedule(studies, schedule, tell))
        tables = tuple(build(studies, name) for name in names)
        sheets = {name: sheet for name in names if (sheet := study_sheet(studies, name)) is not None}
        seconds = time.monotonic() - began
        facts = {"seeds": str(seeds), "studies": " ".join(names), "workspace": workspace.root.name}
        page = write_benchmark_page(workspace.report / "benchmark.html", tables, sheets, facts)
        run_id = record_benchmark(studies, tables, sheets, page, {**facts, "seconds": f"{seconds:.0f}"})
    return Benchmark(tables, page, run_id, ran, seconds)


def _stale_base(workspace: Workspace, names: Sequence[str]) -> tuple[str, ...]:
    """The retraining's stages that are needed, from the first that is not up to date."""
    order = tuple(BASE_SECONDS)
    last = max(order.index(STUDIES[name].base) for name in names)
    needed = order[: last + 1]
    same = unchanged_stages(workspace, needed) if workspace.dvc_lock.exists() else frozenset()
    first = next((place for place, stage in enumerate(needed) if stage not in same), len(needed))
    return needed[first:]


def _run_base(workspace: Workspace, stage: str, tell: Callable[[str], None]) -> bool:
    """Bring a stage of the retraining up to date; whether it was."""
    result = run_stage(workspace, stage, lambda line: None, threads=workspace.params().threads)
    tell(f"retraining's {stage}: {'nothing has changed' if result.cached else f'{result.seconds:.0f} s'}")
    return result.cached


def _tell_plan(
    studies: Studies, names: Sequence[str], base: Sequence[str], wanted: set[str], tell: Callable[[str], None]
) -> None:
    tell(f"studies: {', '.join(names)}")
    for system, why in studies.plan.missing.items():
        if any(system in (*STUDIES[name].ranked, *STUDIES[name].drawn) for name in names):
            tell(f"left out: {system}: {why}")
    first = sum(BASE_SECONDS[stage] for stage in base)
    if base:
        tell(f"first, of the retraining: {', '.join(base)}; about {first / 60:.0f} min where nothing is cached")
        known = seconds_seen(studies)
        stages = closure(studies.stages, wanted)
        then = sum(estimated_seconds(stage, known) for stage in stages) / LANES
        tell(f"then up to {len(stages)} stages of the studies, about {then / 60:.0f} min where nothing is cached")


def _tell_schedule(schedule: Schedule, tell: Callable[[str], None]) -> None:
    if not schedule.order:
        tell(f"nothing has changed: all {schedule.unchanged} stages of these studies are cached")
        return
    minutes = schedule.seconds / LANES / 60
    tell(
        f"{len(schedule.order)} stages to run, {schedule.unchanged} cached; about {minutes:.0f} min, {LANES} at a time"
    )
