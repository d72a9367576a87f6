"""The retraining flow: data to champion, through stages that are cached and gates that are not.

data -> validate -> *data gate* -> split -> backbones -> pickscore -> reward -> evaluate-reward -> *reward gate* ->
encode -> dpo -> sft -> generator -> evaluate-generator -> challenger -> *load gate* -> *promotion gate* -> champion ->
report -> push

The stages are those of dvc.yaml, run by DVC in processes of their own; what acts on the world (registry, report) and
what judges (gates) is never cached. A closed gate ends the flow as a visible, explained outcome.
"""

from __future__ import annotations

import errno
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import copy_context
from functools import wraps
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from flows.outcome import Outcome, Status
from perfusion.checkpoint import atomic_write
from perfusion.config import Params
from perfusion.errors import PerFusionError
from perfusion.governance import Decision
from tasks import gates, publishing
from tasks.dataset import ensure_data
from tasks.dvc_push import PushError, push_outputs
from tasks.reporting_gates import gate_rows
from tasks.reporting_words import GATES
from tasks.run_stage import StageResult, require_disk, run_stage
from tasks.tracking import FlowRecord, Progress, flow_record, store_failure
from tasks.unchanged import Unchanged, recorded_outs
from tasks.workspace import Workspace, prepare_workspace

__all__ = ["STAGES", "Outcome", "numbers", "retrain"]

#: The stages in the order in which the flow runs them; tests/contracts holds it equal to dvc.yaml's.
STAGES = (
    "validate", "split", "backbones", "pickscore", "reward", "evaluate-reward", "encode", "dpo", "sft", "generator",
    "evaluate-generator",
)  # fmt: skip


class _Ended(Exception):
    """The flow is over before its last step; carries how."""

    def __init__(self, status: Status, *reasons: str) -> None:
        super().__init__(*reasons)
        self.status: Status = status
        self.reasons = reasons


class _Run:
    """One flow run: its place, its record, and what it has seen so far. Tasks get it whole and keep their findings.

    A plain class, because Prefect takes dataclasses apart when they are passed to tasks.
    """

    def __init__(self, workspace: Workspace, params: Params, record: FlowRecord, unchanged: Unchanged) -> None:
        self.workspace = workspace
        self.params = params
        self.record = record
        self.unchanged = unchanged
        self.content_hash = ""
        self.cached: dict[str, bool] = {}
        self.answers: dict[str, gates.Answer] = {}
        self.told: set[str] = set()  # gates whose answers MLflow has
        self.reached: set[str] = set()
        self.registered: publishing.Registered | None = None

    @property
    def decisions(self) -> list[Decision]:
        """What the gates have said, in the order of the graph."""
        return [answer.decision for answer in self.answers.values()]

    @property
    def asked_in(self) -> dict[str, str]:
        """Gate -> MLflow run in which it was asked."""
        return {gate: answer.run_id for gate, answer in self.answers.items() if answer.run_id is not None}

    @property
    def versions(self) -> dict[str, int]:
        """Registered name -> version of this run's models; empty until they are registered."""
        return self.registered.versions if self.registered is not None else {}


@flow(
    name="retrain",
    task_runner=ThreadPoolTaskRunner(max_workers=2),  # type: ignore[arg-type]  # Prefect's own runner, its own futures
    persist_result=False,
    validate_parameters=False,
)
def retrain(
    params: str | None = None, data: str | None = None, root: str | None = None, mlruns: str | None = None,
    push: bool = True,
) -> State[Any]:  # fmt: skip
    """Retrain on a parameter file and a dataset (None: the repository's own) and promote what earns it.

    Where DVC has a default remote and `push` is true, what serves at the end is copied there.
    """
    began = time.monotonic()
    with _quiet_failures():
        try:
            workspace = prepare_workspace(params, data, root, mlruns)
            with workspace.held():
                for told in (workspace.outcome, workspace.gates):  # of the run before
                    told.unlink(missing_ok=True)
                require_disk(workspace)
                publishing.require_shared_store(workspace)
                outcome = _recorded(workspace, began, push)
        except Exception as error:
            if (reason := _reason(error)) is None:
                raise
            outcome = Outcome("failed", (reason,), seconds=time.monotonic() - began)
        return outcome.state()


def _recorded(workspace: Workspace, began: float, push: bool) -> Outcome:
    """Run the graph with everything it does on record, and publish however it ended."""
    params = workspace.params()
    unchanged = Unchanged(workspace, STAGES)
    with flow_record(workspace, params, {"prefect.flow": "retrain"}) as record:
        run = _Run(workspace, params, record, unchanged)
        try:
            _graph(run)
            ended = _Ended("promoted", f"{_named(run.versions)} serve from now on")
        except _Ended as end:
            ended = end
            publishing.forget_unreached(workspace, run.reached)
        outcome = Outcome(
            ended.status, ended.reasons, record.run_id, run.versions, round(time.monotonic() - began, 1),
            bool(run.cached) and all(run.cached.values()),
        )  # fmt: skip
        atomic_write(workspace.outcome, outcome.to_json().encode())
        record.tags({"outcome": outcome.status, "outcome.reasons": "\n".join(outcome.reasons)})
        publish(run, outcome, return_state=True)
        if push and outcome.status in ("promoted", "unchanged"):  # the latter to catch up on a push that failed
            share(run, return_state=True)
        if outcome.status == "failed":
            record.end("FAILED")
    return outcome


def _graph(run: _Run) -> None:
    """The graph, read from top to bottom."""
    _must(provide_data(run, return_state=True))
    _stage(run, "validate")
    _gate(run, "data", gates.data)
    for stage in ("split", "backbones", "pickscore", "reward", "evaluate-reward"):
        _stage(run, stage)
    _gate(run, "reward", gates.reward)
    for stage in ("encode", "dpo", "sft", "generator", "evaluate-generator"):
        _stage(run, stage)
    state = _must(register(run, return_state=True))
    if state.name == "Unchanged":
        assert run.registered is not None
        _keep_answers(run, {**gates.said_of_champions(run.workspace, run.registered), **run.answers})
        raise _Ended("unchanged", str(state.message))
    _gate(run, "load", gates.load)
    _gate(run, "promotion", gates.promotion)
    _must(promote(run, return_state=True))


def _must(state: State[Any]) -> State[Any]:
    """Go on only from a task that ended well."""
    if state.is_completed():
        return state
    raise _Ended("failed", str(state.message))


def _stage(run: _Run, stage: str) -> None:
    _must(bring_up_to_date.with_options(name=stage)(run, stage, return_state=True))


def _gate(run: _Run, gate: str, question: gates.Question) -> None:
    """Ask, and end the flow, well explained, unless the answer is a pass."""
    _must(judge.with_options(name=f"{gate} gate")(run, gate, question, return_state=True))
    decision = run.answers[gate].decision
    if not decision.passed:
        if run.registered is not None:
            publishing.remember(run.workspace, run.registered, run.decisions, run.asked_in)
        raise _Ended("refused", f"not promoted: the {gate} gate says {decision.verdict}", *decision.reasons)


def _explained(function: Callable[..., State[Any]]) -> Callable[..., State[Any]]:
    """Turn an error that explains itself into a failed state; only a defect shows a traceback."""

    @wraps(function)
    def explained(*arguments: Any) -> State[Any]:
        try:
            return function(*arguments)
        except Exception as error:
            if (reason := _reason(error)) is None:
                raise
            return Failed(message=reason)

    return explained


def _reason(error: Exception) -> str | None:
    """What an error says to whoever can do something about it; None where it is a defect."""
    if isinstance(error, PerFusionError):
        return str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{error.filename or 'the disk'}: {error.strerror}\nremedy: free some space and run again"
    return store_failure(error)


@task(name="data", cache_policy=NO_CACHE)
@_explained
def provide_data(run: _Run) -> State[Any]:
    """The dataset, present and checked against its pinned content hash."""
    run.content_hash = ensure_data(run.workspace, get_run_logger().info)
    return Completed(message=f"{run.workspace.data.resolve()}: content {run.content_hash}")


@task(cache_policy=NO_CACHE)
@_explained
def bring_up_to_date(run: _Run, stage: str) -> State[Any]:
    """One stage of dvc.yaml, with its log followed live; unchanged ends as "Cached"."""
    run.reached.add(stage)
    result = StageResult(stage, cached=True, seconds=0.0) if stage in run.unchanged else _through_dvc(run, stage)
    run.cached[stage] = result.cached
    run.record.stage(stage, result.cached, result.seconds)
    metrics = json.loads(run.workspace.metrics(stage).read_text())
    if stage == "split":
        run.record.dataset(run.content_hash, numbers(metrics))
    create_table_artifact(
        [{"metric": name, "value": value} for name, value in numbers(metrics).items()], key=f"{stage}-metrics",
        description=f"Metrics of the stage `{stage}`{' (cached)' if result.cached else ''}",
    )  # fmt: skip
    if result.cached:
        return Completed(name="Cached", message=f"{stage}: nothing it depends on has changed")
    return Completed(message=f"{stage}: {result.seconds:.1f} s")


def _through_dvc(run: _Run, stage: str) -> StageResult:
    """Have DVC run a stage, or skip it after all, and follow its log."""
    run.unchanged.forget()
    before = recorded_outs(run.workspace, stage)
    with run.record.following(stage, _progress(stage)):
        result = run_stage(run.workspace, stage, get_run_logger().info, threads=run.params.threads)
    if before is not None and recorded_outs(run.workspace, stage) == before:
        run.unchanged.ask_again()  # the same bytes as before: what follows may be cached
    return result


@task(cache_policy=NO_CACHE)
@_explained
def judge(run: _Run, gate: str, question: gates.Question) -> State[Any]:
    """Ask a gate; its verdict is kept in the workspace, in MLflow and as a Prefect artifact."""
    logger = get_run_logger()
    answer = gates.remembered(run.workspace, run.params, run.registered, gate)
    if answer is not None:
        logger.info("judged before, and neither models nor champions nor thresholds have changed since")
    else:
        answer = gates.Answer(question(run.workspace, run.params, run.registered), run.record.run_id)
    run.answers[gate] = answer
    _keep_answers(run, run.answers)
    decision = answer.decision
    create_table_artifact(
        gate_rows(decision), key=f"{gate}-gate", description=f"{gate} gate: {decision.verdict}. {GATES[gate]}"
    )
    for reason in decision.reasons:
        logger.log(logging.INFO if reason.startswith("pass") else logging.WARNING, reason)
    if gate == "data" and decision.passed:
        publishing.accept(run.workspace)
    name = {"pass": "Passed", "fail": "Closed", "inconclusive": "Inconclusive"}[decision.verdict]
    against = [reason for reason in decision.reasons if not reason.startswith("pass")]
    return Completed(name=name, message="\n".join(against) or f"all {len(decision.reasons)} checks pass")


def _keep_answers(run: _Run, answers: Mapping[str, gates.Answer]) -> None:
    """Keep what the gates said, and in which runs, where reports look for it and with the MLflow run."""
    known = {gate: answer.to_dict() for gate, answer in answers.items()}
    atomic_write(run.workspace.gates, json.dumps(known, indent=2).encode())
    for gate, answer in answers.items():
        if gate not in run.told:
            run.record.decision(answer.decision, answer.run_id)
            run.told.add(gate)


@task(cache_policy=NO_CACHE)
@_explained
def register(run: _Run) -> State[Any]:
    """Take both models into the registry as challengers, unless they are there already."""
    run.registered = found = publishing.register(run.workspace, run.params, run.record)
    if found.versions == found.champions:
        return Completed(name="Unchanged", message=f"nothing new to promote: {_named(run.versions)} serve already")
    return Completed(name="Known" if found.known else "Completed", message=f"challenger: {_named(run.versions)}")


@task(cache_policy=NO_CACHE)
@_explained
def promote(run: _Run) -> State[Any]:
    """Make the challengers champions, if the champions are still those that the gates compared with."""
    assert run.registered is not None
    publishing.remember(run.workspace, run.registered, run.decisions, run.asked_in)
    publishing.promote(run.workspace, run.registered, run.decisions)
    return Completed(message=f"champion: {_named(run.versions)}")


@task(cache_policy=NO_CACHE)
@_explained
def publish(run: _Run, outcome: Outcome) -> State[Any]:
    """Write the report and keep all evidence with the MLflow run, however the flow ended."""
    page = publishing.report(run.workspace, run.record)
    text = [f"# {outcome.status}", *(f"- {reason}" for reason in outcome.reasons), "", f"Report: `{page}`"]
    create_markdown_artifact("\n".join(text), key="outcome", description=f"retraining {outcome.status}")
    return Completed(message=f"report: {page}")


@task(name="push", cache_policy=NO_CACHE)
def share(run: _Run) -> State[Any]:
    """Copy what serves to DVC's remote, where one is configured; what fails here is told and costs nothing else."""
    try:
        done = push_outputs(run.workspace)
    except PushError as error:
        get_run_logger().warning("%s", error)
        run.record.tags({"dvc.push": f"failed: {error}"})
        return Completed(name="NotPushed", message=str(error))
    if done is None:
        return Completed(name="NoRemote", message="DVC has no default remote; docs/backends.md tells how to name one")
    get_run_logger().info(done)
    run.record.tags({"dvc.push": done})
    return Completed(message=done)


def numbers(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers among nested metrics, by dotted name."""
    flat: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            flat |= numbers(value, f"{prefix}{name}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            flat[f"{prefix}{name}"] = value
    return flat


def _progress(stage: str) -> Progress:
    """Shows a stage's progress as Prefect artifacts, one a training run, made when it first tells of itself."""
    context = copy_context()  # the follower's thread knows nothing of the task it works for
    artifacts: dict[str, Any] = {}

    def show(run: str, step: int, of: int) -> None:
        if run not in artifacts:
            artifacts[run] = context.run(create_progress_artifact, 0.0, key=f"{run}-progress", description=stage)
        context.run(update_progress_artifact, artifacts[run], 100.0 * step / of)

    return show


def _named(versions: Mapping[str, int]) -> str:
    return " and ".join(f"{name} version {version}" for name, version in sorted(versions.items()))


class _NoEmptyTraceback(logging.Filter):
    """Drops Prefect's second telling of a failed state, which adds "NoneType: None" where there was no exception."""

    def filter(self, record: logging.LogRecord) -> bool:
        told_twice = record.getMessage().startswith(("Task run failed with state", "Flow run failed with state"))
        return not (told_twice and not (record.exc_info and record.exc_info[0]))


@contextmanager
def _quiet_failures() -> Iterator[None]:
    """A failure that explains itself is told once, without a traceback."""
    no_empty_traceback = _NoEmptyTraceback()
    loggers = [logging.getLogger(name) for name in ("prefect.task_runs", "prefect.flow_runs")]
    for logger in loggers:
        logger.addFilter(no_empty_traceback)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(no_empty_traceback)
