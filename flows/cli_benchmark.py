"""The command that makes the paper's tables: benchmark."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli_common import WorkspaceOption, find_workspace, print_table
from flows.cli_run import DataOption, ParamsOption

if TYPE_CHECKING:
    from tasks.studies.tables import Table
    from tasks.workspace import Workspace

__all__ = ["COMMANDS", "benchmark"]

ALL, GATES = "all", "gates"


def benchmark(
    names: Annotated[
        list[str],
        typer.Argument(
            help="table1 table2 table3 table4 table5 fig5 fig6 coldstart groupsize coverage, or all; gates.",
            show_default=False,
        ),
    ],
    workspace: WorkspaceOption = None,
    params: ParamsOption = None,
    data: DataOption = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, max=20, help="Training seeds of each system.")] = 3,
    trials: Annotated[
        float, typer.Option("--trials", min=0.001, max=100.0, help="Of `gates`: times as many simulated pairs.")
    ] = 1.0,
) -> None:
    """Make the paper's tables and figures on this data, the paper's values beside ours.

    What is missing is trained first, the retraining's own stages too; everything is cached, so that a second call
    computes nothing and an interrupted one goes on. Tables are printed, kept in MLflow, and written as one page,
    work/report/benchmark.html.

    `gates` is no table of the paper and not in `all`: it puts simulated pairs of models, of known worth, through the
    gates and tells how often they are wrong. It needs no data and no model, and writes work/benchmarks/gates.json.

    Examples:

      perfusion benchmark table2 fig5
      perfusion benchmark all
      perfusion benchmark coverage --seeds 1 --params params/smoke.yaml
      perfusion benchmark gates
      perfusion benchmark gates --trials 0.1
    """
    from flows.termination import end_promptly

    chosen = _chosen(names)
    place = _workspace(params, data, workspace)
    end_promptly()
    if GATES in names:
        from flows.cli_gate_trials import run_gate_trials

        run_gate_trials(place, trials)
    if not chosen:
        return
    from flows.benchmark import benchmark as run

    found = run(place, chosen, seeds, typer.echo)
    for table in found.tables:
        _show(table)
    typer.echo(
        f"{found.ran} stages ran; {found.seconds / 60:.1f} min\nreport: {found.page}\nMLflow run: {found.run_id}"
    )


def _workspace(params: Path | None, data: Path | None, workspace: Path | None) -> Workspace:
    """The workspace here, or that of a parameter file and a dataset, as `perfusion retrain` makes it."""
    if params is None and data is None:
        return find_workspace(workspace)
    from tasks.workspace import prepare_workspace

    return prepare_workspace(params, data, workspace)


def _chosen(names: list[str]) -> list[str]:
    """The studies asked for, each once, in their order; `GATES` is none of them.

    Raises:
        ConfigError: there is no study of a name.
    """
    from perfusion.errors import ConfigError
    from tasks.studies.systems import STUDIES

    for name in names:
        if name not in (ALL, GATES) and name not in STUDIES:
            near = difflib.get_close_matches(name, [*STUDIES, ALL, GATES], n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(STUDIES)}, {ALL} and {GATES}"
            raise ConfigError(f"{name!r} is no benchmark; {hint}")
    return [name for name in STUDIES if name in names or ALL in names]


def _show(table: Table) -> None:
    from tasks.studies.words import claim_text, header, plain_rows

    print_table(table.title, header(table), plain_rows(table), stack=True)
    titles = {row.name: row.title for row in table.rows}
    for line in [*(claim_text(claim, titles) for claim in table.claims), *table.notes]:
        typer.echo(f"  {line}")
    typer.echo("")


COMMANDS = {"benchmark": benchmark}
