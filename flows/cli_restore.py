"""Commands that give a version back and prove it: restore, evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli_common import AsJson, WorkspaceOption, find_workspace, open_store, print_json, print_table

if TYPE_CHECKING:
    from tasks.reevaluation import Reevaluated
    from tasks.restoring import Restored

__all__ = ["COMMANDS", "evaluate", "restore"]

DIFFERENT = 2  # exit code


def restore(
    version: Annotated[
        str,
        typer.Argument(
            help="Version of the generator, or MODEL@VERSION with a role or registered name and a number or alias.",
            show_default=False,
        ),
    ],
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder that does not exist yet.", show_default=False)
    ],
    workspace: WorkspaceOption = None,
    as_json: AsJson = False,
) -> None:
    """Give back everything a version was made of, in a folder of its own.

    DIR becomes a git worktree at the version's commit, with what was not committed then patched in, and with the exact
    dvc.lock, dvc.yaml, params.yaml, data.dvc, data, checkpoints and evaluations. They are copied from DVC's cache and
    every byte is checked, against dvc.lock and against the registry. Exit code 2 when code that the stages read is not
    what dvc.lock recorded.

    Examples:

      perfusion restore 3 ../version-3
      perfusion restore champion ../champion
      perfusion restore reward@2 ../reward-2 --json
      perfusion restore smoke-generator/1 ../smoke
      cd ../version-3 && perfusion evaluate
      git worktree remove --force ../version-3
    """
    from tasks.registry import version_named
    from tasks.restoring import restore as give_back
    from tasks.restoring_source import source_of

    place = find_workspace(workspace)
    registry, family = open_store(place)
    source = source_of(registry, *version_named(registry.client, family, version))
    done = give_back(place, registry, source, folder.resolve(), lambda line: typer.echo(line, err=as_json))
    if as_json:
        print_json(_record(done))
    else:
        _tell(done)
    if done.unlike_lock:
        raise typer.Exit(DIFFERENT)


def evaluate(
    tolerance: Annotated[
        float,
        typer.Option("--tolerance", min=0.0, help="Relative difference that still counts as equal, e.g. 1e-6."),
    ] = 0.0,
    workspace: WorkspaceOption = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate the models of a workspace again, and compare with what was recorded.

    Nothing is trained, and nothing recorded is changed. Every metric is told equal or different; seconds and memory are
    shown but need not be equal. Exit code 2 when a metric differs. On the same kind of machine the numbers are the same
    to the last digit; on another kind they may differ in the last digits, hence --tolerance.

    Examples:

      perfusion evaluate
      perfusion evaluate --workspace ../version-3
      perfusion evaluate --tolerance 1e-6 --json
    """
    from tasks.reevaluation import reevaluate

    place = find_workspace(workspace)
    with place.held():
        told = reevaluate(place, lambda line: typer.echo(line, err=True), tolerance)
    if as_json:
        print_json({stage.stage: _figures(stage) for stage in told})
    else:
        for stage in told:
            _show(stage)
    if any(stage.different for stage in told):
        raise typer.Exit(DIFFERENT)


def _record(done: Restored) -> dict[str, Any]:
    return {
        "model": done.name, "version": done.version, "folder": str(done.folder), "run_id": done.run_id,
        "commit": done.commit, "changed": list(done.changed), "unlike_lock": list(done.unlike_lock),
        "data_from": done.data_from, "outputs_md5": done.outputs, "manifest_sha256": done.manifest,
        "lineage": done.lineage,
    }  # fmt: skip


def _tell(done: Restored) -> None:
    typer.echo(f"{done.name} version {done.version}, by MLflow's run {done.run_id}, is in {done.folder}:\n")
    for path, md5 in done.outputs.items():
        typer.echo(f"{md5}  {path}")
    typer.echo(f"\nby DVC's MD5, every byte as in dvc.lock; data from {done.data_from}")
    typer.echo(f"the checkpoint is the registered one, by SHA-256: manifest {done.manifest}")
    typer.echo(f"code: commit {done.commit}{_patched(done)}")
    if done.unlike_lock:
        typer.echo(f"NOT as dvc.lock recorded it, edited while the run went on: {', '.join(done.unlike_lock)}")
    typer.echo(f"prove it: cd {done.folder} && perfusion evaluate")


def _patched(done: Restored) -> str:
    if not done.changed:
        return ", nothing was uncommitted"
    return f", with {len(done.changed)} uncommitted files as they were: {', '.join(done.changed)}"


def _figures(stage: Reevaluated) -> dict[str, Any]:
    return {
        "equal": sum(metric.equal for metric in stage.metrics if not metric.cost),
        "different": {m.name: {"recorded": m.recorded, "found": m.found} for m in stage.different},
        "costs": {m.name: {"recorded": m.recorded, "found": m.found} for m in stage.metrics if m.cost},
        "files": stage.files,
        "files_unlike": list(stage.files_unlike),
    }


def _show(stage: Reevaluated) -> None:
    compared = [metric for metric in stage.metrics if not metric.cost]
    rows = [(m.name, _told(m.recorded), _told(m.found), _verdict(m.equal, m.cost)) for m in stage.metrics]
    print_table(stage.stage, ("metric", "recorded", "now", ""), rows)
    unlike = f", but for {'; '.join(stage.files_unlike[:5])}" if stage.files_unlike else ""
    typer.echo(
        f"{stage.stage}: {len(compared) - len(stage.different)} of {len(compared)} metrics equal, "
        f"{len(stage.different)} different; {stage.files} files of tables and pictures the same bytes{unlike}\n"
    )


def _verdict(equal: bool, cost: bool) -> str:
    return "a cost" if cost else "equal" if equal else "DIFFERENT"


def _told(value: object) -> str:
    """A value short enough for a table; all of it is in --json where it differs."""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


COMMANDS = {"restore": restore, "evaluate": evaluate}
