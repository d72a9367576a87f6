"""Commands that compute: retrain, stage, schedule."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated

import typer

from flows.cli_common import WorkspaceOption, find_workspace

__all__ = ["COMMANDS", "retrain", "schedule", "stage"]

LOCAL_SERVER = "http://127.0.0.1:4200/api"
ParamsOption = Annotated[
    Path | None, typer.Option("--params", "-p", help="Parameter file; params.yaml of the repository otherwise.")
]
DataOption = Annotated[
    Path | None, typer.Option("--data", "-d", help="Dataset folder; data/ of the repository otherwise.")
]


def retrain(params: ParamsOption = None, data: DataOption = None, workspace: WorkspaceOption = None) -> None:
    """Run the whole DAG, from data to champion.

    It validates, trains, evaluates, judges, and promotes what earns it. Stages whose inputs did not change are not run
    again. Gates that stay closed end the run with their reasons; that is an outcome, not an error. Other parameters or
    data get a workspace of their own, work/workspaces/NAME.

    Examples:

      perfusion retrain
      perfusion retrain --params params/smoke.yaml
      perfusion retrain --params params/photos.yaml --data ../shop/marketplace
    """
    from flows.server import start_server
    from flows.termination import end_promptly
    from perfusion.errors import PerFusionError
    from tasks.workspace import prepare_workspace

    prepare_workspace(params, data, workspace)  # a mistake in them is told before Prefect takes its seconds to start
    ready = start_server()
    from flows.retrain import retrain as flow

    ready()
    end_promptly()
    given = (str(path) if path is not None else None for path in (params, data, workspace))
    state = flow(*given, return_state=True)
    if state.is_failed() or state.is_crashed():
        raise PerFusionError(state.message or "the flow failed without a message")
    typer.echo(f"{state.name}: {state.message}")


def stage(
    name: Annotated[str, typer.Argument(help="A stage of dvc.yaml, e.g. reward.", show_default=False)],
    workspace: WorkspaceOption = None,
    force: Annotated[bool, typer.Option("--force", help="Run it even when nothing it depends on changed.")] = False,
) -> None:
    """Bring one stage of the DAG up to date, without gates and registry.

    The stage's inputs must be there: run the earlier stages first, or `perfusion retrain` for all.

    Examples:

      perfusion stage validate
      perfusion stage reward --force
    """
    import yaml

    from perfusion.errors import ConfigError
    from tasks.run_stage import require_disk, run_stage

    place = find_workspace(workspace)
    stages = list(yaml.safe_load(place.dvc_yaml.read_text())["stages"])
    if name not in stages:
        near = difflib.get_close_matches(name, stages, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"stages: {', '.join(stages)}"
        raise ConfigError(f"{name!r} is no stage of {place.dvc_yaml}; {hint}")
    if place.params().workers > 1:
        from flows.server import start_server

        start_server()()  # for the shards' task runs
    with place.held():
        require_disk(place)
        result = run_stage(place, name, typer.echo, force=force, threads=place.params().threads)
    typer.echo(f"{name}: {'cached, nothing it depends on changed' if result.cached else f'{result.seconds:.1f} s'}")


def schedule(
    cron: Annotated[str, typer.Option("--cron", help="When, as minute hour day month weekday; in UTC.")],
    params: ParamsOption = None,
    data: DataOption = None,
    workspace: WorkspaceOption = None,
    name: Annotated[str, typer.Option("--name", help="The deployment's name in Prefect.")] = "scheduled",
) -> None:
    """Retrain again and again by the clock, until interrupted.

    A tick that meets a run still going on is cancelled. Prefect's server must be running (`make prefect`, or the one
    that PREFECT_API_URL names); for a server with work pools and workers, deploy prefect.yaml instead.

    Examples:

      perfusion schedule --cron "0 3 * * *"
      perfusion schedule --cron "0 */6 * * 1-5" --params params/photos.yaml --data ../shop/marketplace
    """
    _find_server()
    from flows.schedule import serve

    given = {"params": params, "data": data, "root": workspace}
    serve(cron, name, {key: str(path.resolve()) if path is not None else None for key, path in given.items()})


def _find_server() -> None:
    """See that there is a Prefect server that schedules; the one a flow starts for itself never does.

    Raises:
        ConfigError: none is named and none listens in the usual place.
    """
    import os
    import urllib.error
    import urllib.request

    from perfusion.errors import ConfigError

    if os.environ.get("PREFECT_API_URL"):
        return
    try:
        with urllib.request.urlopen(f"{LOCAL_SERVER}/health", timeout=2):
            os.environ["PREFECT_API_URL"] = LOCAL_SERVER
    except (urllib.error.URLError, OSError):
        raise ConfigError(
            f"no Prefect server: PREFECT_API_URL is not set and nothing answers at {LOCAL_SERVER}\n"
            "remedy: start one in another terminal with `make prefect`, or set PREFECT_API_URL"
        ) from None


COMMANDS = {"retrain": retrain, "stage": stage, "schedule": schedule}
