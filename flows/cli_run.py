"""Commands that compute: retrain, stage, schedule."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated

import typer

from flows.cli_common import WorkspaceOption, find_workspace, run_flow

__all__ = ["COMMANDS", "retrain", "schedule", "stage", "tick_parameters"]

LOCAL_SERVER = "http://127.0.0.1:4200/api"
ParamsOption = Annotated[
    Path | None, typer.Option("--params", "-p", help="Parameter file; params.yaml of the repository otherwise.")
]
DataOption = Annotated[
    Path | None, typer.Option("--data", "-d", help="Dataset folder; data/ of the repository otherwise.")
]


def retrain(
    params: ParamsOption = None,
    data: DataOption = None,
    workspace: WorkspaceOption = None,
    push: Annotated[
        bool, typer.Option(help="Copy what serves at the end to DVC's default remote, where there is one.")
    ] = True,
    mlruns: Annotated[
        Path | None, typer.Option("--mlruns", help="Store of runs and models; mlruns/ of the repository otherwise.")
    ] = None,
) -> None:
    """Run the whole DAG, from data to champion.

    It validates, trains, evaluates, judges, and promotes what earns it. Stages whose inputs did not change are not run
    again. Gates that stay closed end the run with their reasons; that is an outcome, not an error. Other parameters or
    data get a workspace of their own, work/workspaces/NAME.

    Examples:

      perfusion retrain
      perfusion retrain --params params/smoke.yaml
      perfusion retrain --params params/photos.yaml --data ../shop/marketplace
      perfusion retrain --no-push
    """
    from flows.server import start_server
    from tasks.workspace import prepare_workspace

    prepare_workspace(params, data, workspace, mlruns)  # a mistake is told before Prefect takes its seconds to start
    ready = start_server()
    from flows.retrain import retrain as flow

    ready()
    given = (str(path) if path is not None else None for path in (params, data, workspace, mlruns))
    state = run_flow(flow, *given, push=push)
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
    params: Annotated[
        Path | None, typer.Option("--params", "-p", help="Parameter file; the commit's, where it is the repository's.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", "-d", help="Dataset folder; the data that the commit pins otherwise.")
    ] = None,
    branch: Annotated[
        str | None, typer.Option("--branch", help="Whose last commit is run; the branch checked out now otherwise.")
    ] = None,
    name: Annotated[str, typer.Option("--name", help="Of the deployment, and of its folder.")] = "scheduled",
    webhook: Annotated[
        str | None,
        typer.Option(
            "--webhook",
            envvar="PERFUSION_WEBHOOK",
            metavar="URL",
            help="Told of runs that fail or are refused, in JSON.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Run also when neither code nor data are new.")] = False,
) -> None:
    """Retrain again and again by the clock, until interrupted.

    Each run has a git worktree of its own, work/scheduled/NAME/checkout, made from the branch's last commit: what you
    change here meanwhile does not reach it, and it does not touch what is here. The DVC cache and the store of models
    are shared. A tick that meets a run still going on is cancelled; one that meets nothing new since the last run ends
    at once, as NothingNew. Give the webhook's address by the environment: arguments can be seen by other users.

    Prefect's server must be running (`make prefect`, or the one that PREFECT_API_URL names); for a server with work
    pools and workers, deploy prefect.yaml instead.

    Examples:

      perfusion schedule --cron "0 3 * * *"
      perfusion schedule --cron "0 */6 * * 1-5" --params params/photos.yaml --data ../shop/marketplace
      PERFUSION_WEBHOOK=https://chat.example/hooks/xyz perfusion schedule --cron "0 3 * * *" --branch main
    """
    import os

    parameters = tick_parameters(name, branch, params, data, force)  # a mistake is told before Prefect is imported
    _find_server()
    from flows.schedule import serve
    from flows.webhook import ADDRESS

    if webhook is not None:
        os.environ[ADDRESS] = webhook  # for the processes that run what falls due
    serve(cron, name, parameters)


def tick_parameters(
    name: str, branch: str | None, params: Path | None, data: Path | None, force: bool
) -> dict[str, str | bool]:  # fmt: skip
    """The parameters of the flow `scheduled`, as they hold wherever it runs.

    Raises:
        ConfigError: the name is none, the branch or the parameter file is not there.
        DataError: the dataset folder is not there.
    """
    from perfusion.errors import DataError
    from tasks.workspace import REPOSITORY
    from tasks.worktree import SchedulePlace, commit_of, current_branch, params_text

    branch = branch if branch is not None else current_branch(REPOSITORY)
    commit = commit_of(REPOSITORY, branch)
    given: dict[str, str | bool] = {"schedule": SchedulePlace(REPOSITORY, name).name, "branch": branch}
    if params is not None:
        file = params.resolve()
        named = str(file.relative_to(REPOSITORY) if file.is_relative_to(REPOSITORY) else file)
        params_text(REPOSITORY, commit, named)
        given["params"] = named
    if data is not None:
        if not data.is_dir():
            raise DataError(f"{data}: no such dataset folder\nremedy: name one by --data FOLDER")
        given["data"] = str(data.resolve())
    return {**given, **({"force": True} if force else {})}


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
