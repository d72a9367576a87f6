"""Commands about the place itself: doctor, ui."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli_common import AsJson, WorkspaceOption, find_workspace, print_json, print_table

__all__ = ["COMMANDS", "doctor", "ui"]


def doctor(
    workspace: WorkspaceOption = None,
    as_json: AsJson = False,
    weights: Annotated[
        bool, typer.Option("--weights", help="List every model of the paper: present, or a twin and what to download.")
    ] = False,
) -> None:
    """Look whether everything is as it should be.

    Versions, torch, disk, weights, data, store and registry; exit code 2 when something is wrong. Says which models are
    twins: small stand-ins, trained here because no real weights are given.

    Examples:

      perfusion doctor
      perfusion doctor --weights
      perfusion doctor --workspace work/workspaces/photos --json
    """
    import os
    from dataclasses import asdict

    from perfusion.errors import ConfigError
    from tasks.doctor import Finding, examine

    if weights:
        _show_weights(workspace, as_json)
        return
    try:
        place, absent = find_workspace(workspace), []
    except ConfigError as error:
        place, absent = None, [Finding("workspace", "note" if workspace is None else "wrong", str(error))]
    findings = [*examine(place, os.environ), *absent]
    wrong = [finding for finding in findings if finding.state == "wrong"]
    if as_json:
        print_json({"findings": [asdict(finding) for finding in findings], "wrong": len(wrong)})
    else:
        print_table("perfusion doctor", ("", "", ""), [(f.state, f.name, f.detail) for f in findings])
        typer.echo(f"{len(wrong)} thing(s) to mend" if wrong else "nothing to mend")
    if wrong:
        raise typer.Exit(2)


def _show_weights(workspace: Path | None, as_json: bool) -> None:
    from dataclasses import asdict

    from tasks.weights import weights_table

    rows = weights_table(find_workspace(workspace).params())
    if as_json:
        print_json({"models": [asdict(row) for row in rows]})
        return
    lines = [
        (row.model, row.state, row.where or "", " ".join(code[:12] for code in row.sha256), row.download, row.parameter)
        for row in rows
    ]
    print_table("perfusion doctor --weights", ("model", "", "where", "sha256", "download", "parameter"), lines)


def ui(
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port to listen on.")] = 5000,
    workspace: WorkspaceOption = None,
) -> None:
    """Open MLflow's pages: runs, live curves, pictures, registry.

    They listen until Ctrl-C. Where MLFLOW_TRACKING_URI names a server, its address is told instead.

    Examples:

      perfusion ui
      perfusion ui --port 5001
    """
    import subprocess
    import sys

    from perfusion.errors import PerFusionError
    from tasks.store import is_server

    place = find_workspace(workspace)
    if is_server(place.tracking_uri):
        typer.echo(f"MLflow: {place.tracking_uri}, a server of its own; open that address")
        return
    if not place.has_store:
        typer.echo(f"{place.mlruns}: nothing there yet; runs will appear as they are made")
        place.mlruns.mkdir(parents=True, exist_ok=True)
    typer.echo(f"MLflow: http://{host}:{port}")
    store = ["--backend-store-uri", place.tracking_uri, "--artifacts-destination", str(place.mlruns / "artifacts")]
    command = [sys.executable, "-m", "mlflow", "ui", "--workers", "1", "--host", host, "--port", str(port), *store]
    code = subprocess.run(command, check=False).returncode
    if code not in (0, -2, 130):
        raise PerFusionError(f"MLflow ended with exit code {code}; is port {port} taken? try --port {port + 1}")


COMMANDS = {"doctor": doctor, "ui": ui}
