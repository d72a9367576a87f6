"""What a schedule runs: one retraining of a branch's last commit, in a worktree of its own, if anything is new.

This flow comes from the user's checkout, in whatever state that is, so it imports as little of the project as it can;
the retraining comes from the commit.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import deque
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import flow, get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import ObjectNotFound
from prefect.flows import Flow
from prefect.runtime import flow_run as this_run
from prefect.states import Cancelled, Completed, Crashed

from flows.outcome import Outcome
from flows.webhook import ADDRESS, announce
from perfusion.errors import DataError, PerFusionError
from tasks.dataset import content_of, noted_content
from tasks.process import group
from tasks.ticks import Inputs, last_settled, nothing_new, record_tick
from tasks.workspace import REPOSITORY, Workspace, WorkspaceBusyError, open_workspace
from tasks.worktree import SchedulePlace, commit_of, params_text

__all__ = ["scheduled"]

TOLD = ("failed", "refused")  # outcomes of which the webhook hears
PIPED: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "bufsize": 1}
CUT_OFF = "its process was killed and could not say how it ended; noticed at the next tick"
TAIL = 12  # lines of a run that ended without saying how


def tell_of_crash(flow: Flow[Any, Any], flow_run: FlowRun, state: State[Any]) -> None:
    """The flow's own process was killed and tells nothing; whoever started it runs this, with arguments by name."""
    schedule = str(flow_run.parameters.get("schedule", "nightly"))
    announce(_message(schedule, "crashed", (str(state.message),), flow_run=str(flow_run.id)))


def tell_of_killed(place: SchedulePlace) -> None:
    """Say of the run before that it crashed, where it was killed together with whoever had started it and nobody has.

    A machine that loses its power is such a case: Prefect goes on showing the run as Running.
    """
    run = place.unended()
    if run is None:
        return
    state = None
    with suppress(ObjectNotFound), get_client(sync_client=True) as client:  # not found: another server's run
        state = client.read_flow_run(UUID(run)).state
        if state is not None and not state.is_final():
            client.set_flow_run_state(run, Crashed(message=CUT_OFF))
    record_tick(place.ticks, None, "crashed", (f"flow run {run}: {CUT_OFF}",), None)
    if state is None or not state.is_final():
        announce(_message(place.name, "crashed", (CUT_OFF,), flow_run=run))


@flow(
    name="scheduled", persist_result=False, validate_parameters=False,
    on_crashed=[tell_of_crash],  # type: ignore[list-item]  # as Prefect's documentation writes a hook
)  # fmt: skip
def scheduled(
    schedule: str = "nightly", branch: str = "main", params: str | None = None, data: str | None = None,
    force: bool = False,
) -> State[Any]:  # fmt: skip
    """Retrain from a branch's last commit and promote what earns it; end as NothingNew where that would be in vain.

    Args:
        schedule: a name for the folder in which runs of this schedule happen, work/scheduled/NAME.
        branch: whose last commit is run.
        params: parameter file, relative to the repository (then the commit's) or absolute; None: params.yaml.
        data: dataset folder, absolute; None: the data that the commit's data.dvc pins.
        force: run although nothing is new.
    """
    try:
        place = SchedulePlace(REPOSITORY, schedule)
        with place.held():
            tell_of_killed(place)
            with place.noted(str(this_run.id)):
                return _tick(place, branch, params, data, force)
    except WorkspaceBusyError as error:
        return Cancelled(message=str(error))
    except PerFusionError as error:
        outcome = Outcome("failed", (str(error),))
        announce(_message(schedule, outcome.status, outcome.reasons))
        return outcome.state()
    except Exception as error:  # a defect: told, and left to Prefect with its traceback
        announce(_message(schedule, "failed", (f"unexpected {type(error).__name__}: {error}",)))
        raise


def _tick(place: SchedulePlace, branch: str, params: str | None, data: str | None, force: bool) -> State[Any]:
    """One tick, with the schedule held."""
    place.clear()  # of a run that was killed
    inside = _inside(params, data)
    inputs = _inputs(place, open_workspace(place.kept / inside), branch, params, data)
    reason = None if force else nothing_new(last_settled(place.ticks), inputs)
    if reason is not None:
        record_tick(place.ticks, inputs, "nothing-new", (reason,), None)
        return Completed(name="NothingNew", message=reason)
    get_run_logger().info("retraining from commit %s of %s in %s", inputs.commit[:12], branch, place.tree)
    with place.checkout(inputs.commit) as tree:
        outcome = _retrain(tree, tree / inside, params, data)
    workspace = open_workspace(place.kept / inside)
    if data is not None:
        inputs = replace(inputs, content=noted_content(workspace))
    record_tick(place.ticks, inputs, outcome.status, outcome.reasons, outcome.run_id)
    if outcome.status in TOLD:
        page = workspace.report / "index.html"
        report = str(page) if page.exists() and outcome.run_id is not None else None
        announce(_message(place.name, outcome.status, outcome.reasons, outcome.run_id, report, inputs.commit))
    return outcome.state()


def _inside(params: str | None, data: str | None) -> Path:
    """Where in a checkout the workspace of these parameters and data is, as for `perfusion retrain`."""
    if params is None and data is None:
        return Path()
    return Path("work", "workspaces", Path(params or "params.yaml").stem)


def _inputs(
    place: SchedulePlace, workspace: Workspace, branch: str, params: str | None, data: str | None
) -> Inputs:  # fmt: skip
    """What a run of now would be made from. A folder is hashed only where files were touched since the last run."""
    commit = commit_of(place.repository, branch)
    digest = hashlib.sha256(params_text(place.repository, commit, params).encode()).hexdigest()
    if data is None:
        return Inputs(commit, digest)
    if not Path(data).is_dir():
        raise DataError(
            f"{data}: no such dataset folder (data)\nremedy: name one by its absolute path, or mount what holds it"
        )
    known = workspace.verified_data.exists() and workspace.data.resolve() == Path(data).resolve()
    return Inputs(commit, digest, data, content_of(workspace, get_run_logger().info) if known else None)


def _retrain(tree: Path, root: Path, params: str | None, data: str | None) -> Outcome:
    """Run the worktree's own `perfusion retrain` to its end; nobody of its processes survives this."""
    command = [sys.executable, "-m", "flows.cli", "retrain", "--mlruns", str(REPOSITORY / "mlruns")]
    if root != tree:
        command += ["--workspace", str(root), "--params", str(tree / (params or "params.yaml"))]
    if data is not None:
        command += ["--data", data]
    workspace = open_workspace(root)
    workspace.outcome.unlink(missing_ok=True)
    tell = get_run_logger().info
    with group(command, cwd=tree, env=_environment(tree), **PIPED) as process:
        assert process.stdout is not None
        last: deque[str] = deque(maxlen=TAIL)
        for line in map(str.rstrip, process.stdout):
            tell(line)
            last.append(line)
        code = process.wait()
    if workspace.outcome.exists():
        return Outcome.from_json(workspace.outcome.read_text())
    said = "\n".join(last)
    error = said[said.rfind("error: ") :] if "error: " in said else said
    return Outcome("failed", (error or f"`perfusion retrain` ended without a word, with exit code {code}",))


def _environment(tree: Path) -> dict[str, str]:
    """This process's environment, without what is for it alone, and with the worktree's code first."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT__") and name != ADDRESS}
    return {**own, "PYTHONPATH": str(tree)}


def _message(
    schedule: str, outcome: str, reasons: tuple[str, ...], run_id: str | None = None, report: str | None = None,
    commit: str | None = None, flow_run: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """What the webhook hears."""
    first = reasons[0].splitlines()[0] if reasons and reasons[0] else ""
    return {
        "text": f"PerFusion, schedule {schedule}: {outcome}. {first}", "schedule": schedule, "outcome": outcome,
        "reasons": list(reasons), "run_id": run_id, "report": report, "commit": commit,
        "flow_run": flow_run or this_run.id,
    }  # fmt: skip
