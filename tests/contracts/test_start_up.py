"""What is imported before anything happens: next to nothing for help, nothing that computes for an unchanged run."""

from __future__ import annotations

import ast
import subprocess
import sys

import imports
import pytest
from typer.models import CommandInfo

from flows.cli import app
from tasks import stages

TOOLS = {"prefect", "mlflow", "dvc", "great_expectations"}
LEARNING = {"torch", "torchvision", "transformers", "diffusers", "accelerate", "open_clip", "sklearn"}
HEAVY = TOOLS | LEARNING | {"pandas", "polars", "duckdb", "numpy", "scipy", "pyarrow", "matplotlib", "sqlalchemy"}


def loaded_by(script: str) -> set[str]:
    """The modules in a process of its own after a script has run."""
    script = f"{script}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=imports.REPOSITORY
    )  # fmt: skip
    return set(done.stdout.splitlines()[-1].split())


def test_no_help_imports_anything_heavy() -> None:
    names = [[str(command.name)] for command in app.registered_commands]
    for group in app.registered_groups:
        assert group.typer_instance is not None
        assert group.name is not None
        names += [
            [group.name],
            *([group.name, *_name(command)] for command in group.typer_instance.registered_commands),
        ]
    calls = "\n".join(f"app([*{words}, '--help'], standalone_mode=False)" for words in [[], *names])
    assert not HEAVY & loaded_by(f"from flows.cli import app\n{calls}")


def _name(command: CommandInfo) -> list[str]:
    """A command's name, which typer takes from its function where none is given."""
    return [command.name or command.callback.__name__.replace("_", "-")] if command.callback else []


def test_a_run_with_nothing_to_do_imports_nothing_that_computes() -> None:
    """Nor the server: that has a process of its own."""
    unwanted = LEARNING | {"great_expectations", "dvc", "matplotlib", "scipy.stats", "prefect.server.api.server"}
    assert not unwanted & loaded_by("import flows.retrain")


@pytest.mark.parametrize(
    ("stage", "unwanted"),
    [
        ("validate", LEARNING | TOOLS | {"scipy"}),  # great_expectations when the first rule is judged
        ("split", LEARNING | TOOLS | {"scipy"}),
        ("pickscore", TOOLS | {"diffusers", "matplotlib", "scipy.stats"}),
    ],
)
def test_a_stage_imports_what_it_uses(stage: str, unwanted: set[str]) -> None:
    assert not unwanted & loaded_by("\n".join(["import tasks.stages", *_imports_of(stage)]))


def _imports_of(stage: str) -> list[str]:
    """The import statements that a stage's adapter and the helpers it calls run."""
    tree = ast.parse((imports.REPOSITORY / "tasks" / "stages.py").read_text())
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    adapter = functions[stages.STAGES[stage].__name__]
    called = {node.id for node in ast.walk(adapter) if isinstance(node, ast.Name)} & functions.keys()
    nodes = [node for name in [adapter.name, *called] for node in ast.walk(functions[name])]
    return [ast.unparse(node) for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom))]
