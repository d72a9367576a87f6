"""Commands that look at what came out: report, compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli_common import AsJson, WorkspaceOption, find_workspace, print_json
from flows.cli_headline import print_headline

__all__ = ["COMMANDS", "compare", "report"]


def report(
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The page; work/report/index.html otherwise.")] = None,
    workspace: WorkspaceOption = None,
    as_json: AsJson = False,
) -> None:
    """Show the headline figures of the last run and write its page.

    The page is one offline HTML file with figures and pictures. With --json the figures alone are printed, for tools;
    what does not exist is null and "missing" says why.

    Examples:

      perfusion report
      perfusion report --json
      perfusion report --workspace work/workspaces/photos --out photos.html
    """
    from tasks.reporting import summary, write_report

    place = find_workspace(workspace)
    figures = summary(place)
    if as_json:
        print_json(figures)
        return
    print_headline(figures)
    typer.echo(f"page: {write_report(place, out)}")


def compare(
    a: Annotated[str, typer.Argument(help="A workspace folder, an MLflow run id, or e.g. generator@3.")],
    b: Annotated[str, typer.Argument(help="The other one; differences are B minus A.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The page; work/report/compare.html otherwise.")
    ] = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Put two runs side by side on one offline page.

    It shows the difference in parameters, metrics with the interval of their paired difference, and pictures for the
    same users, prompts and seeds. Items that only one run has are counted and left out.

    Examples:

      perfusion compare generator@champion generator@challenger
      perfusion compare work/workspaces/smoke . --out smoke-against-default.html
    """
    from tasks.reporting import compare as write_comparison

    place = find_workspace(workspace)
    typer.echo(f"page: {write_comparison(place, a, b, out or place.report / 'compare.html')}")


COMMANDS = {"report": report, "compare": compare}
