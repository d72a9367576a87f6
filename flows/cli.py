"""`perfusion`: the command line. Commands live in `flows/cli_*.py`; what does the work is imported when it runs."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from flows import (
    cli_benchmark,
    cli_data,
    cli_gate,
    cli_look,
    cli_machine,
    cli_models,
    cli_monitor,
    cli_people,
    cli_registry,
    cli_restore,
    cli_run,
    cli_serve,
)
from flows.cli_common import help_text, unwrapped
from flows.environment import quieten
from perfusion.errors import PerFusionError

__all__ = ["app", "main"]

USER_MISTAKE, DEFECT = 2, 1  # exit codes
LOGGING = {"MLFLOW_LOGGING_LEVEL": "WARNING", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
HELP = """Personalised text-to-image retraining: a reward model that knows each merchant's taste, a generator that draws
for it, gates that judge both, a registry that serves what passed.

[bold]First steps[/bold]

  perfusion retrain     the sample marketplace, from data to champion
  perfusion report      what came of it, and the page with the pictures
  perfusion generate --user m00007 --prompt "dress, v-neck" --out pictures
  perfusion doctor      when something is not as it should be

Commands find the workspace (the folder with params.yaml and dvc.yaml) from the current folder upwards; --workspace
names another. Add --debug to any command for the traceback of an error."""

app = typer.Typer(help=unwrapped(HELP), no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False)
for module in (
    cli_run, cli_benchmark, cli_look, cli_people, cli_models, cli_serve, cli_registry, cli_restore, cli_monitor,
    cli_machine,
):  # fmt: skip
    for name, command in module.COMMANDS.items():
        app.command(name, help=help_text(command))(command)
app.add_typer(cli_data.app, name="data")
app.add_typer(cli_gate.app, name="gate")


def show_version(asked: bool) -> None:
    """Say which version this is, and stop."""
    if asked:
        from perfusion import __version__

        typer.echo(f"perfusion {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and stop.", callback=show_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; may stand anywhere.")] = False,
) -> None:
    """Options that belong to no command (`--debug` is taken out of the arguments before they are parsed)."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 2 the user can mend it, 1 a defect, 130 interrupted."""
    given = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in given
    words = [word for word in given if word != "--debug"]
    quieten(Path(__file__).resolve().parents[1])
    for name, value in LOGGING.items():
        os.environ.setdefault(name, value)
    try:
        app(words or ["--help"], prog_name="perfusion")
    except PerFusionError as error:
        _stop(f"error: {error}", USER_MISTAKE, debug)
    except KeyboardInterrupt:
        _stop("interrupted; what was finished is kept, the next run goes on from there", 130, debug)
    except Exception as error:
        if _is_refused_request(error):
            _stop(f"error: {getattr(error, 'message', error)}", USER_MISTAKE, debug)
        said = str(error).strip().splitlines() or ["(no message)"]
        _stop(
            f"unexpected {type(error).__name__}: {said[0][:300]}\n"
            "This is a defect of perfusion or of its environment: `perfusion doctor` looks at the latter,\n"
            "the same command with --debug shows where it happened.",
            DEFECT,
            debug,
        )


def _stop(message: str, code: int, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    print(message, file=sys.stderr)
    raise SystemExit(code)


def _is_refused_request(error: Exception) -> bool:
    """Whether a served model refused a request: a mistake in what was asked, told by field."""
    return type(error).__name__ in ("MlflowException", "RequestError") and (
        getattr(error, "error_code", "") == "INVALID_PARAMETER_VALUE"
    )


if __name__ == "__main__":
    main()
