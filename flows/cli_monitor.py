"""The command that watches the champion: fresh picks, outcomes, and what follows from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli_common import AsJson, WorkspaceOption, find_workspace, open_store, print_json, run_flow

__all__ = ["COMMANDS", "monitor"]

EXIT = {"pass": 0, "inconclusive": 3, "fail": 4}


def monitor(
    data: Annotated[
        Path | None,
        typer.Argument(help="Dataset folder with fresh picks; the workspace's records since the training otherwise.",
                       show_default=False),
    ] = None,
    outcomes: Annotated[
        Path | None, typer.Option("--outcomes", help="Events of shops, as for evaluate-outcomes.", show_default=False)
    ] = None,
    treated: Annotated[str, typer.Option("--treated", help="Arm of the outcomes with the champion's items.")] = "ai",
    control: Annotated[str, typer.Option("--control", help="Arm it is compared with in the same store.")] = "human",
    reference: Annotated[
        Path | None,
        typer.Option("--reference", help="Dataset the champion was trained on; the snapshot kept with it otherwise.",
                     show_default=False),
    ] = None,
    workspace: WorkspaceOption = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Ask whether the champion is still fed with what it was trained on, and whether its items come back.

    Fresh picks are compared with the training data feature by feature, prompt by prompt, and the reward model is held
    against them. With --outcomes, a rise of the return rate beyond monitor.max_return_rise proposes a rollback, or with
    monitor.on_return_rise: rollback performs it. Evidence goes to MLflow. Exit code 0: nothing moved; 3: cannot be
    told; 4: something did.

    Examples:

      perfusion monitor
      perfusion monitor ../shop/last-week
      perfusion monitor ../shop/last-week --outcomes events.csv --json
    """
    place = find_workspace(workspace)
    open_store(place)
    from flows.server import start_server

    ready = start_server()
    from flows.monitor import monitor as flow

    ready()
    paths = (str(path.resolve()) if path is not None else None for path in (data, outcomes, reference))
    run_flow(flow, *paths, str(place.root), str(place.mlruns), treated, control)
    found = json.loads(place.watched.read_text())
    if as_json:
        print_json(found)
    else:
        _tell(found)
    raise typer.Exit(EXIT[found["verdict"]])


def _tell(found: dict[str, Any]) -> None:
    typer.echo(f"champion {found['champion']}: {found['verdict']}")
    for decision in found["decisions"]:
        typer.echo("\n  ".join([f"{decision['gate']} gate: {decision['verdict']}", *decision["reasons"]]))
    if found["message"]:
        typer.echo(found["message"])
    typer.echo(f"evidence: MLflow run {found['run_id']}")


COMMANDS = {"monitor": monitor}
