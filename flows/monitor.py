"""The monitoring flow: the champion against fresh picks, and against what became of its pictures in shops.

fresh picks -> *monitor gate* ; outcomes -> *outcomes gate* -> rollback, proposed or performed -> MLflow

Nothing here is cached: the same question has another answer tomorrow. A gate that fails is an outcome, not a crash.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Literal

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from perfusion.checkpoint import atomic_write
from perfusion.errors import GateError, PerFusionError
from perfusion.governance import Decision, Verdict
from tasks import monitoring
from tasks.registry import open_registry
from tasks.tracking import experiment_of, metric_key, open_store
from tasks.workspace import Workspace, open_workspace

__all__ = ["Watched", "monitor"]

Action = Literal["none", "proposed", "performed"]


@dataclass(frozen=True)
class Watched:
    """What a run of the monitor found.

    Attributes:
        verdict: of all its gates: "fail" if one failed, else "inconclusive" if one was.
        decisions: of the gates that were asked.
        rollback: whether returns asked for one, and whether it was made.
        champion: version of the reward model that was watched.
        run_id: MLflow's run with the evidence.
        message: what came of a rollback; empty where none was asked for.
    """

    verdict: Verdict
    decisions: tuple[Decision, ...]
    rollback: Action
    champion: int
    run_id: str
    message: str

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "verdict": self.verdict, "rollback": self.rollback, "champion": self.champion, "run_id": self.run_id,
            "message": self.message, "decisions": [decision.to_dict() for decision in self.decisions],
        }  # fmt: skip


@flow(name="monitor", persist_result=False, validate_parameters=False)
def monitor(
    data: str | None = None, outcomes: str | None = None, reference: str | None = None, root: str | None = None,
    mlruns: str | None = None, treated: str = "ai", control: str = "human", everything: bool = False,
) -> State[Any]:  # fmt: skip
    """Watch the champion of a workspace.

    Args:
        data: a dataset folder with fresh picks; None: the workspace's own, of which the records count that are newer
            than the champion's training data.
        outcomes: events of shops (see `perfusion evaluate-outcomes`); None: returns are not looked at.
        reference: the dataset the champion was trained on; None: the snapshot kept with its run.
        root, mlruns: the workspace and its store.
        treated, control: arms of the outcomes.
        everything: count every record of `data`, also those no newer than the training data.
    """
    try:
        workspace = open_workspace(root, mlruns)
        workspace.watched.unlink(missing_ok=True)  # of the run before
        run = _Run(workspace)
        watched = _watch(run, data, outcomes, reference, (treated, control), everything)
    except PerFusionError as error:
        return Failed(message=str(error))
    atomic_write(workspace.watched, json.dumps(watched.to_dict(), indent=1).encode())
    name = {"pass": "Steady", "fail": "Alarm", "inconclusive": "Inconclusive"}[watched.verdict]
    against = [reason for one in watched.decisions for reason in one.reasons if not reason.startswith("pass")]
    told = "\n".join([*against, *([watched.message] if watched.message else [])])
    return Completed(name=name, message=told or "nothing moved")


class _Run:
    """One run: its place, what serves, what was found. A plain class: Prefect takes dataclasses apart."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.params = workspace.params()
        self.registry = open_registry(workspace.tracking_uri, workspace.mlruns)
        self.champions = self.registry.champions(self.params.name)
        self.champion = monitoring.champion_of(self.registry, self.params)
        self.client = open_store(workspace)
        self.run_id = ""
        self.picks: monitoring.Evidence | None = None
        self.shops: tuple[Decision, dict[str, Any]] | None = None


def _watch(
    run: _Run, data: str | None, outcomes: str | None, reference: str | None, arms: tuple[str, str], everything: bool
) -> Watched:
    """The graph, read from top to bottom."""
    place = Path(data) if data is not None else run.workspace.data
    _must(watch_picks(run, place, reference, everything or data is not None, return_state=True))
    if outcomes is not None:
        _must(watch_outcomes(run, Path(outcomes), *arms, return_state=True))
    decisions = keep_evidence(run, place)
    rollback, message = act(run)
    watched = Watched(_worst(decisions), tuple(decisions), rollback, run.champion, run.run_id, message)
    tags = {f"gate.{decision.gate}": decision.verdict for decision in decisions}
    for name, value in {**tags, "verdict": watched.verdict, "rollback": rollback}.items():
        run.client.set_tag(run.run_id, name, value)
    run.client.set_terminated(run.run_id)
    _show(watched, run.picks)
    return watched


def _must(state: State[Any]) -> None:
    if not state.is_completed():
        raise PerFusionError(str(state.message))


def _explained(function: Callable[..., str]) -> Callable[..., State[Any]]:
    """A step whose errors explain themselves: a failed state, and no traceback."""

    @wraps(function)
    def explained(*arguments: Any) -> State[Any]:
        try:
            return Completed(message=function(*arguments))
        except PerFusionError as error:
            return Failed(message=str(error))

    return explained


@task(name="fresh picks", cache_policy=NO_CACHE, persist_result=False)
@_explained
def watch_picks(run: _Run, data: Path, reference: str | None, everything: bool) -> str:
    """Read and judge fresh picks."""
    named = Path(reference) if reference is not None else None
    snapshot = monitoring.snapshot_for(run.registry, run.params, named)
    fresh = monitoring.read_fresh(data, run.params, snapshot, everything)
    run.picks = monitoring.judge_picks(run.registry, run.params, snapshot, fresh)
    told = f"{len(fresh.groups)} fresh records, {fresh.quarantined} set aside: {run.picks.decision.verdict}"
    get_run_logger().info(told)
    return told


@task(name="outcomes", cache_policy=NO_CACHE, persist_result=False)
@_explained
def watch_outcomes(run: _Run, events: Path, treated: str, control: str) -> str:
    """Read and judge what became of pictures in shops."""
    run.shops = monitoring.judge_outcomes(events, run.params, treated, control)
    return f"returns: {run.shops[0].verdict}"


@task(name="evidence", cache_policy=NO_CACHE, persist_result=False)
def keep_evidence(run: _Run, data: Path) -> list[Decision]:
    """Put decisions, tables and charts into an MLflow run of their own; the decisions."""
    experiment = experiment_of(run.client, run.workspace, f"{run.params.name}-monitor")
    tags = {"champion": str(run.champion), "data": str(data.resolve())}
    made = run.client.create_run(experiment, run_name=time.strftime("%Y-%m-%d %H:%M:%S"), tags=tags)
    run.run_id = made.info.run_id
    with tempfile.TemporaryDirectory(prefix="perfusion-monitor-") as folder:
        decisions = monitoring.keep(Path(folder), run.picks, run.shops)
        run.client.log_artifacts(run.run_id, folder)
    for row in run.picks.moved if run.picks is not None else ():
        if row.size is not None and math.isfinite(row.size):
            run.client.log_metric(run.run_id, metric_key(f"drift/{row.variable}"), row.size)
    return decisions


@task(name="rollback", cache_policy=NO_CACHE, persist_result=False)
def act(run: _Run) -> tuple[Action, str]:
    """Propose or perform a rollback where returns rose beyond their limit; what was done, in words."""
    decision = run.shops[0] if run.shops is not None else None
    if decision is None or decision.verdict != "fail":
        return "none", ""
    done = monitoring.rolled_back_for(run.registry, run.params, decision)
    if done is not None:
        return "none", f"these outcomes caused rollback #{done.number} before; give those of the champion since"
    if run.params.monitor.on_return_rise == "propose":
        asked = f'perfusion rollback --reason "{decision.reasons[0]} (MLflow run {run.run_id})"'
        return "proposed", f"returns rose beyond their limit; to go back: {asked}"
    try:
        moved = monitoring.roll_back(run.registry, run.params, decision, run.run_id, run.champions)
    except GateError as error:
        return "proposed", f"returns rose beyond their limit, and the rollback was refused: {error}"
    moves = ", ".join(f"{name} {before} -> {after}" for name, (before, after) in moved.moves.items())
    return "performed", f"rolled back (#{moved.number}): {moves}"


def _worst(decisions: list[Decision]) -> Verdict:
    verdicts = {decision.verdict for decision in decisions}
    return "fail" if "fail" in verdicts else "inconclusive" if "inconclusive" in verdicts else "pass"


def _show(watched: Watched, picks: monitoring.Evidence | None) -> None:
    """The run's findings as Prefect artifacts."""
    lines = [f"# monitor: {watched.verdict}", watched.message]
    lines += [f"- {reason}" for decision in watched.decisions for reason in decision.reasons]
    create_markdown_artifact("\n".join(lines), key="monitor", description=f"champion {watched.champion}")
    if picks is not None and picks.moved:
        create_table_artifact([row.to_dict() for row in picks.moved], key="drift", description="then and now")
