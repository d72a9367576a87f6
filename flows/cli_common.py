"""What commands share: finding the workspace, options that look the same everywhere, tables and JSON."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State
    from rich.table import Table

    from tasks.registry import Registry
    from tasks.workspace import Workspace

__all__ = [
    "AsJson",
    "WorkspaceOption",
    "find_workspace",
    "help_text",
    "open_store",
    "print_json",
    "print_table",
    "run_flow",
    "shown",
    "threaded_workspace",
    "unwrapped",
]

UNBOUNDED = 100_000  # columns; more than any table takes

WorkspaceOption = Annotated[
    Path | None,
    typer.Option("--workspace", "-w", help="Folder with params.yaml and dvc.yaml; found from here upwards otherwise."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for tools instead of tables for people.")]


def find_workspace(given: Path | None) -> Workspace:
    """The workspace that a command is about.

    Raises:
        ConfigError: the given folder is none, or none is found from the current folder upwards.
    """
    from perfusion.errors import ConfigError
    from tasks.workspace import open_workspace

    here = Path.cwd()
    candidates = [given.resolve()] if given is not None else [here, *here.parents]
    root = next((folder for folder in candidates if _is_workspace(folder)), None)
    if root is None:
        place = f"{given}: this folder is" if given is not None else f"{here} and the folders above it are"
        raise ConfigError(
            f"{place} no workspace (a folder with params.yaml and dvc.yaml)\n"
            "remedy: change into the repository or into work/workspaces/NAME, or name it: --workspace FOLDER"
        )
    own = root / "mlruns"
    return open_workspace(root, own if own.is_dir() else None)


def threaded_workspace(given: Path | None) -> Workspace:
    """As `find_workspace`; its number of threads is set for the libraries that read it when they are imported."""
    import os

    from tasks.process import cpu_environment

    place = find_workspace(given)
    os.environ.update(cpu_environment(place.params().threads))
    return place


def open_store(workspace: Workspace) -> tuple[Registry, str]:
    """The registry of the workspace's store, and the family of models that its parameters name.

    Raises:
        GateError: there is no store yet.
        ConfigError: it is a server's, which does not answer.
    """
    from perfusion.errors import GateError
    from tasks.registry import open_registry
    from tasks.store import require_answer

    if not workspace.has_store:
        raise GateError(f"{workspace.mlruns}: no model was ever registered here; `perfusion retrain` makes the first")
    require_answer(workspace.tracking_uri)
    return open_registry(workspace.tracking_uri, workspace.mlruns), workspace.params().name


def run_flow(flow: Callable[..., Any], *given: Any, **named: Any) -> State[Any]:
    """Run a flow of Prefect's in this process; SIGTERM ends it promptly.

    Raises:
        PerFusionError: it failed, or Prefect's server went away and did not come back.
    """
    import httpx

    from flows.termination import end_promptly
    from perfusion.errors import PerFusionError

    end_promptly()
    try:
        state: State[Any] = flow(*given, **named, return_state=True)
    except httpx.TransportError as error:
        raise _server_gone(str(error)) from error
    if not state.is_final():
        raise _server_gone(f"the last that it took of the run is {state.name}")
    if state.is_failed() or state.is_crashed():
        raise PerFusionError(state.message or "the flow failed without a message")
    return state


def _server_gone(why: str) -> Exception:
    from prefect.settings import PREFECT_API_URL

    from perfusion.errors import PerFusionError

    return PerFusionError(
        f"{PREFECT_API_URL.value()}: Prefect's server went away and did not come back ({why})\n"
        "remedy: run the same command again, what has finished is kept; if the server is yours (PREFECT_API_URL), see"
        " that it runs"
    )


def help_text(command: Callable[..., None]) -> str:
    """A command's docstring as its help."""
    return unwrapped(inspect.getdoc(command) or "")


def unwrapped(text: str) -> str:
    """Paragraphs as single lines, which the terminal wraps at its own width; indented ones (examples) as they stand."""
    paragraphs = text.split("\n\n")
    return "\n\n".join(part if part.startswith(" ") else " ".join(part.split("\n")) for part in paragraphs)


def print_json(value: Any) -> None:
    """Print one JSON document."""
    typer.echo(json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False))


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], stack: bool = False) -> None:
    """Print a table; numbers are shown as given. Into a pipe or a file it is as wide as it needs to be.

    Args:
        title: stands above.
        columns: their headings.
        rows: one value a column.
        stack: in a terminal too narrow for the table, a line a cell, each row under its first value; else cells fold.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    cells = [[escape(shown(value)) for value in row] for row in rows]
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in cells:
        table.add_row(*row)
    console = Console()
    needed = console.measure(table, options=console.options.update(max_width=UNBOUNDED)).maximum
    if not console.is_terminal:
        Console(width=max(needed, console.width)).print(table)
    elif stack and needed > console.width:
        console.print(_stacked(title, columns, cells))
    else:
        console.print(table)


def _stacked(title: str, columns: Sequence[str], cells: Sequence[Sequence[str]]) -> Table:
    """Two columns: under each row's first value its other headings and what stands below them."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None, pad_edge=False)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for first, *rest in cells:
        table.add_row(f"[bold]{first}[/bold]", "")
        for heading, value in zip(columns[1:], rest, strict=True):
            table.add_row(f"  {heading}", value)
    return table


def shown(value: object) -> str:
    """A value as people read it: "-" for nothing, four significant digits."""
    if value is None or value == "":
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _is_workspace(folder: Path) -> bool:
    return (folder / "params.yaml").is_file() and (folder / "dvc.yaml").is_file()
