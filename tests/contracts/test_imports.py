"""Imports go one way: flows -> tasks -> perfusion, and inside perfusion from evidence down to numbers."""

from __future__ import annotations

import imports
import pytest

TOOLS = {"prefect", "mlflow", "dvc", "great_expectations", "typer", "filelock"}
BELOW = {"perfusion": {"tasks", "flows"}, "tasks": {"flows"}, "flows": set()}
#: Packages of the library, lowest first; those in one row do not know each other.
ROWS = (
    {"errors", "paths", "progress", "torchvision_guard"},
    {"config", "checkpoint", "fanout", "model_folder", "seeding", "statistics"},
    {"compute", "distributed", "optimiser"},
    {"loop"},
    {"nn", "data"},
    {"world"},
    {"reward", "generation"},
    {"scorers"},
    {"evaluation"},
    {"governance", "studies"},
    {"trials"},
)
ROW = {name: number for number, row in enumerate(ROWS) for name in row}
MODULES = imports.modules()


@pytest.mark.parametrize("name", MODULES)
def test_no_layer_imports_one_above_it(name: str) -> None:
    above = BELOW[name.split(".")[0]]
    assert not [used for used in imports.imported(MODULES[name]) if used.split(".")[0] in above]


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("perfusion")])
def test_the_library_knows_no_tool(name: str) -> None:
    assert not [used for used in imports.imported(MODULES[name]) if used.split(".")[0] in TOOLS]


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("perfusion.")])
def test_the_library_imports_downwards(name: str) -> None:
    own = name.split(".")[1]
    for used in imports.imported(MODULES[name]):
        parts = used.split(".")
        if parts[0] == "perfusion" and len(parts) > 1 and parts[1] in ROW and parts[1] != own:
            assert ROW[parts[1]] < ROW[own], f"{name} imports {used}"


def test_every_package_of_the_library_has_its_row() -> None:
    assert {name.split(".")[1] for name in MODULES if name.startswith("perfusion.")} == set(ROW)


def test_there_is_no_cycle() -> None:
    files = {file: imports.needed(file) - {file} for file in MODULES.values()}
    while leaves := [file for file, used in files.items() if not used & files.keys()]:
        for file in leaves:
            del files[file]
    assert not files, sorted(str(file.relative_to(imports.REPOSITORY)) for file in files)
