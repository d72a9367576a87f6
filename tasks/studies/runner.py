"""Runs stages of the studies, two at a time, each as soon as what it reads is there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from perfusion.checkpoint import atomic_write
from tasks.process import stop_running
from tasks.run_stage import run_stage
from tasks.studies.pipeline import LANES, Stage, lane_threads
from tasks.studies.place import Studies
from tasks.unchanged import unchanged_stages

__all__ = ["Schedule", "closure", "estimated_seconds", "make_schedule", "run_schedule"]

#: Seconds of a stage of one thread beside another one, on the sample marketplace, where it was never timed here.
NOMINAL = {
    "view": 6.0, "backbone": 130.0,
    "reward": 50.0, "score": 18.0, "coverage": 90.0, "generator": 190.0, "spo": 150.0, "picture": 45.0, "cost": 150.0,
}  # fmt: skip


@dataclass(frozen=True)
class Schedule:
    """What is to be run.

    Attributes:
        order: stages that may have to run, each after those that it needs.
        unchanged: how many others have nothing to do.
        seconds: expected, of all lanes together.
    """

    order: tuple[Stage, ...]
    unchanged: int
    seconds: float


def closure(stages: dict[str, Stage], wanted: Iterable[str]) -> list[Stage]:
    """The wanted stages and all that they need in turn, in the pipeline's order."""
    needed, waiting = set[str](), set(wanted)
    while waiting:
        name = waiting.pop()
        needed.add(name)
        waiting |= stages[name].needs - needed
    return [stage for name, stage in stages.items() if name in needed]


def make_schedule(studies: Studies, wanted: Iterable[str]) -> Schedule:
    """Ask DVC, once, what has nothing to do; a stage that needs one that has may have something too."""
    needed = closure(studies.stages, wanted)
    same = unchanged_stages(studies.place, tuple(stage.name for stage in needed)) if needed else frozenset()
    stale: dict[str, Stage] = {}
    for stage in needed:
        if stage.name not in same or stage.needs & stale.keys():
            stale[stage.name] = stage
    known = seconds_seen(studies)
    total = sum(estimated_seconds(stage, known) for stage in stale.values())
    return Schedule(tuple(stale.values()), len(needed) - len(stale), total)


def estimated_seconds(stage: Stage, known: dict[str, float]) -> float:
    """What a stage took the last time, or one of its family, or what it takes on the sample."""
    family = stage.name.partition("@")[0]
    own = [seconds for name, seconds in known.items() if name.partition("@")[0] == family]
    return known.get(stage.name, sum(own) / len(own) if own else NOMINAL[family])


def run_schedule(
    studies: Studies, schedule: Schedule, tell: Callable[[str], None], lanes: int = LANES
) -> dict[str, float]:
    """Run what is to be run; whatever was finished is kept when this is interrupted or a stage fails.

    Args:
        studies: of a workspace that the caller holds.
        schedule: of `make_schedule`.
        tell: takes a line for each stage that ends.
        lanes: stages at a time.

    Returns:
        Stage -> seconds, of the stages that really ran.

    Raises:
        StageError: a stage failed; the others that were running are stopped.
    """
    known = seconds_seen(studies)
    waiting = {stage.name: stage for stage in schedule.order}
    total = len(waiting)
    ran: dict[str, float] = {}
    running: dict[Future[tuple[bool, float]], Stage] = {}
    with ThreadPoolExecutor(lanes, thread_name_prefix="lane") as pool:
        try:
            while waiting or running:
                for stage in _ready(waiting, running.values(), known)[: lanes - len(running)]:
                    del waiting[stage.name]
                    running[pool.submit(_run_one, studies, stage)] = stage
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    stage = running.pop(future)
                    cached, seconds = future.result()
                    if not cached:
                        ran[stage.name] = known[stage.name] = seconds
                        _remember(studies, {stage.name: seconds})
                    ended = total - len(waiting) - len(running)
                    said = "nothing has changed" if cached else f"{seconds:.0f} s"
                    left = sum(estimated_seconds(one, known) for one in [*waiting.values(), *running.values()])
                    tell(f"[{ended}/{total}] {stage.name}: {said}; about {left / lanes / 60:.0f} min left")
        except BaseException:
            stop_running()
            raise
    return ran


def seconds_seen(studies: Studies) -> dict[str, float]:
    """Stage -> seconds of the last time it really ran here."""
    file = studies.place.seconds
    return dict(json.loads(file.read_text())) if file.exists() else {}


def _ready(waiting: dict[str, Stage], running: Iterable[Stage], known: dict[str, float]) -> list[Stage]:
    """Stages that nothing unfinished stands before; those on which most waits come first."""
    unfinished = waiting.keys() | {stage.name for stage in running}
    free = [stage for stage in waiting.values() if not stage.needs & unfinished]
    if any(stage.name.startswith("cost@") for stage in running):
        return []  # a clock is running: nothing beside it
    alone = [stage for stage in free if stage.name.startswith("cost@")]
    rest = [stage for stage in free if stage not in alone]
    if not rest and alone and len(unfinished) == len(waiting):
        return alone[:1]
    return sorted(rest, key=lambda stage: -_urgency(stage, waiting, known))


def _urgency(stage: Stage, waiting: dict[str, Stage], known: dict[str, float]) -> float:
    """Seconds of the longest chain of stages that begins with this one."""
    after = [other for other in waiting.values() if stage.name in other.needs]
    return estimated_seconds(stage, known) + max((_urgency(one, waiting, known) for one in after), default=0.0)


def _run_one(studies: Studies, stage: Stage) -> tuple[bool, float]:
    """Bring one stage up to date; whether it was, and the seconds it took."""
    threads = lane_threads(studies.workspace.params().threads)
    result = run_stage(studies.place, stage.name, lambda line: None, threads=threads, wait_for_lock=True)
    return result.cached, result.seconds


def _remember(studies: Studies, seconds: dict[str, float]) -> None:
    studies.place.seconds.parent.mkdir(parents=True, exist_ok=True)
    record = json.dumps({**seconds_seen(studies), **seconds}, indent=1, sort_keys=True)
    atomic_write(studies.place.seconds, record.encode())
