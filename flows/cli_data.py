"""`perfusion data`: make a sample, import a public dataset, validate a dataset, describe it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows import cli_import
from flows.cli_common import AsJson, help_text, print_json, print_table

if TYPE_CHECKING:
    from perfusion.config import DataConfig

__all__ = ["app"]

app = typer.Typer(help="Make, check and describe datasets.", no_args_is_help=True)
Folder = Annotated[Path, typer.Argument(help="Dataset folder: users.parquet, groups.parquet, images/part-*.parquet.")]


def sample(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to create.")] = Path("data"),
    users: Annotated[int, typer.Option("--users", help="Merchants; about 20 group records each.")] = 600,
    seed: Annotated[int, typer.Option("--seed", help="Another seed is another marketplace.")] = 0,
    dirt: Annotated[bool, typer.Option("--dirt", help="Plant one of every defect that validation must find.")] = False,
    personal: Annotated[
        bool, typer.Option("--personal/--no-personal", help="Without, tastes weigh nothing: nothing can be learned.")
    ] = True,
    replace: Annotated[bool, typer.Option("--replace", help="Put it in the place of an older dataset.")] = False,
) -> None:
    """Draw the planted marketplace: garments, merchants with tastes, and which pictures they picked.

    The same arguments give the same content, whatever machine draws it; its hash is printed.

    Examples:

      perfusion data sample --users 600 --seed 0 --out data
      perfusion data sample --users 40 --dirt --out /tmp/dirty
    """
    from perfusion.errors import DataError

    if out.exists() and not replace:
        raise DataError(f"{out}: is there already; name another folder with --out, or give --replace")
    from perfusion.world import write_marketplace

    content = write_marketplace(out, users=users, seed=seed, dirt=dirt, personal=personal, replace=replace)
    typer.echo(f"{out}: {users} merchants, seed {seed}, content hash {content}")


def validate(
    folder: Folder,
    params: Annotated[Path | None, typer.Option("--params", "-p", help="Parameter file whose limits apply.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Keep valid/ and quarantine/ in this folder.")] = None,
    columns: Annotated[
        bool, typer.Option("--columns", help="Only count what columns of groups tell; opens no picture, asks no gate.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Judge every row of a dataset and ask the data gate; exit code 2 when the gate stays closed.

    Examples:

      perfusion data validate data
      perfusion data validate /shops/all --columns
      perfusion data validate ../shop/marketplace --params params/photos.yaml --out /tmp/checked
    """
    from perfusion.config import Params, load_params

    config = (Params() if params is None else load_params(params)).data
    if columns:
        _count_faults(folder, config, as_json)
        return
    from rich.console import Console

    from perfusion.governance.data_gate import data_gate
    from tasks.validation import validate as judge
    from tasks.validation_report import render_report

    with tempfile.TemporaryDirectory(prefix="perfusion-validate-") as scratch:
        place = Path(scratch) if out is None else out
        report = judge(folder, config, None, place / "valid", place / "quarantine")
    decision = data_gate(report, config)
    if as_json:
        print_json({"report": report, "decision": decision.to_dict()})
    else:
        Console().print(render_report(report))
        typer.echo(f"data gate: {decision.verdict}")
        for reason in decision.reasons:
            typer.echo(f"  {reason}")
    if not decision.passed:
        raise typer.Exit(2)


def _count_faults(folder: Path, config: DataConfig, as_json: bool) -> None:
    from perfusion.data.quality import count_faults

    found = count_faults(folder, config)
    if as_json:
        print_json(found)
        return
    broken = [(rule, count) for rule, count in found["rules"].items() if count]
    print_table(f"{folder}: {found['faulty']} of {found['groups_in']} group records break a rule", ("rule", ""), broken)


def describe(
    folder: Folder,
    as_json: AsJson = False,
    content_hash: Annotated[
        bool, typer.Option("--hash/--no-hash", help="Print the content hash, for which every picture is decoded.")
    ] = True,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for a page with charts, the charts, and all as JSON.")
    ] = None,
) -> None:
    """Count users, prompts, group records and pictures (the paper's Table 1), and list the user features.

    Records that lack a user, a prompt, pictures or picks are left out and counted as incomplete. With --out, also how
    records a user, sizes, picks and their places, lengths of prompts and their phrases are distributed.

    Examples:

      perfusion data describe data
      perfusion data describe data --out work/described
      perfusion data describe data --json --no-hash
    """
    from perfusion.data import describe_dataset

    facts, features = describe_dataset(folder, content_hash)
    if out is not None:
        from perfusion.data.portrait import distributions, write_description

        found = distributions(folder / "groups.parquet")
        page = write_description(out, str(folder), {**facts, "user_features": features}, found)
        typer.echo(f"page: {page}", err=as_json)
    if as_json:
        print_json({**facts, "user_features": features})
        return
    print_table(str(folder), ("", ""), [(key, _line(value)) for key, value in facts.items()])
    rows = [(name, *values.values()) for name, values in features.items()]
    print_table("user features", ("feature", "type", "values", "missing"), rows)


def _line(value: object) -> object:
    """A table cell: nested values on one line."""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {item}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else value


for command in (sample, *cli_import.COMMANDS, validate, describe):
    app.command(help=help_text(command))(command)
