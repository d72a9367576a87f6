"""`perfusion gate`: what the gates said, as tables that a person understands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli_common import AsJson, WorkspaceOption, find_workspace, help_text, print_json, print_table

if TYPE_CHECKING:
    from tasks.gates import Answer

__all__ = ["app"]

app = typer.Typer(help="What the gates said, and why.", no_args_is_help=True)


@app.callback()
def gate() -> None:
    """What the gates said, and why."""


def explain(
    run: Annotated[
        str, typer.Argument(help='An MLflow run id, "last", or a version: generator@3, perfusion-reward@champion.')
    ] = "last",
    workspace: WorkspaceOption = None,
    as_json: AsJson = False,
) -> None:
    """Reprint every gate's decision: each check with its value, interval, bound and what it means.

    Failures come first. Of a version it tells what the gates said of it last, in whichever run that was. Nothing is
    asked anew: what is shown is the record that MLflow and the promotion log keep. Exit code 2 when a gate was closed.

    Examples:

      perfusion gate explain
      perfusion gate explain generator@champion
      perfusion gate explain 4f1c9d2e7a --json
    """
    from tasks.gate_records import find_answers

    found = find_answers(find_workspace(workspace), run)
    if as_json:
        print_json(found.to_dict())
    else:
        typer.echo(f"{found.title}\n")
        for answer in found.answers:
            _show(answer)
    if not all(answer.decision.passed for answer in found.answers):
        raise typer.Exit(2)


def _show(answer: Answer) -> None:
    from tasks.reporting_gates import COLUMNS, gate_rows, told_of
    from tasks.reporting_words import GATES

    decision = answer.decision
    title = f"{decision.gate} gate: {decision.verdict}. {GATES[decision.gate]}"
    print_table(title, COLUMNS, [list(row.values()) for row in gate_rows(decision)])
    for line in told_of(decision, answer.run_id):
        typer.echo(f"  {line}")
    typer.echo("")


app.command("explain", help=help_text(explain))(explain)
