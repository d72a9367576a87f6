"""docs/paper_index.md is true both ways: what it names exists and says so; what says so is named there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from perfusion.config import Params

REPOSITORY = Path(__file__).resolve().parents[2]
INDEX = REPOSITORY / "docs" / "paper_index.md"
EQUATIONS, TABLES, FIGURES = 19, 7, 7
CODE = re.compile(r"`([^`]+)`")
NUMBERED = re.compile(r"\(Eq\. ([\d,\- and]+)\)")


def numbers(text: str) -> set[int]:
    """The numbers of "2-6", "3, 5" or "3 and 5"."""
    found: set[int] = set()
    for part in re.split(r",| and ", text):
        first, _, last = part.strip().partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def rows(section: str) -> list[list[str]]:
    """The cells of the table under a heading of the index."""
    text = INDEX.read_text().split(f"## {section}\n")[1].split("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def names(cell: str) -> list[str]:
    return CODE.findall(cell)


EQUATION_ROWS = rows("Equations")
OTHER_ROWS = rows("Tables") + rows("Figures") + rows("Other parts of the method")


@cache
def definitions(file: Path) -> dict[str, ast.AST]:
    """Qualified name -> function or class defined in a file."""

    def walk(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, ast.AST]]:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield prefix + node.name, node
                if isinstance(node, ast.ClassDef):
                    yield from walk(node.body, f"{prefix}{node.name}.")

    return dict(walk(ast.parse(file.read_text()).body, ""))


def find(dotted: str) -> ast.AST | None:
    """The definition of "package.module.Class.method"; an assignment or a whole module counts as well."""
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        for file in (
            (REPOSITORY / Path(*parts[:cut])).with_suffix(".py"),
            REPOSITORY / Path(*parts[:cut], "__init__.py"),
        ):
            if file.exists():
                rest = ".".join(parts[cut:])
                tree = ast.parse(file.read_text())
                return definitions(file).get(rest) if rest and not _assigned(tree, rest) else tree
    return None


def _assigned(tree: ast.Module, name: str) -> bool:
    targets = [t for node in tree.body if isinstance(node, ast.Assign) for t in node.targets]
    targets += [node.target for node in tree.body if isinstance(node, ast.AnnAssign)]
    return any(isinstance(target, ast.Name) and target.id == name for target in targets)


def first_line(node: ast.AST) -> str:
    assert isinstance(node, ast.FunctionDef | ast.ClassDef)
    return (ast.get_docstring(node) or "").split("\n\n")[0]


def numbered_code() -> Iterator[tuple[str, set[int]]]:
    """(dotted name, equations) of every function and class of the library whose docstring opens with a number."""
    for file in sorted((REPOSITORY / "perfusion").rglob("*.py")):
        if file.name == "config.py":  # parameters are the index's last column
            continue
        module = ".".join(file.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
        for name, node in definitions(file).items():
            said = NUMBERED.findall(first_line(node))
            if said:
                yield f"{module}.{name}", set().union(*map(numbers, said))


def test_every_numbered_thing_of_the_paper_has_a_row() -> None:
    told = set().union(*(numbers(row[0]) for row in EQUATION_ROWS))
    assert told == set(range(1, EQUATIONS + 1))
    assert [row[0] for row in rows("Tables")] == [f"Table {n}" for n in range(1, TABLES + 1)]
    assert [row[0] for row in rows("Figures")] == [f"Fig. {n}" for n in range(1, FIGURES + 1)]


@pytest.mark.parametrize("row", EQUATION_ROWS, ids=lambda row: f"Eq. {row[0]}")
def test_every_function_named_exists_and_carries_its_number(row: list[str]) -> None:
    assert names(row[2]), "an equation without a function"
    for name in names(row[2]):
        node = find(name)
        assert isinstance(node, ast.FunctionDef | ast.ClassDef), f"{name} does not exist"
        said = set().union(*map(numbers, NUMBERED.findall(first_line(node))))
        assert numbers(row[0]) & said, f"{name} does not say (Eq. {row[0]}) in its first docstring line"


@pytest.mark.parametrize("row", EQUATION_ROWS, ids=lambda row: f"Eq. {row[0]}")
def test_every_equation_has_a_test(row: list[str]) -> None:
    assert names(row[3])


@pytest.mark.parametrize("row", EQUATION_ROWS + OTHER_ROWS, ids=lambda row: row[0])
def test_every_test_and_parameter_named_exists(row: list[str]) -> None:
    for name in names(row[3]):
        file, _, test = name.partition("::")
        assert (REPOSITORY / file).is_file(), f"{file} does not exist"
        assert not test or test in definitions(REPOSITORY / file), f"{file} has no {test}"
    for key in names(row[4]):
        assert _parameter(key), f"there is no parameter {key}"


def _parameter(key: str) -> bool:
    section: Any = Params
    for part in key.split("."):
        if part not in getattr(section, "model_fields", {}):
            return False
        section = section.model_fields[part].annotation
    return True


@pytest.mark.parametrize("row", OTHER_ROWS, ids=lambda row: row[0])
def test_what_stands_beside_a_table_or_figure_exists_or_is_said_to_be_missing(row: list[str]) -> None:
    found = names(row[2])
    assert found or "not built" in row[2] or "no code" in row[2]
    for name in found:
        assert find(name) is not None, f"{name} does not exist"


def test_every_number_in_the_code_is_in_the_index() -> None:
    named = {name: numbers(row[0]) for row in EQUATION_ROWS for name in names(row[2])}
    by_number: dict[int, set[str]] = {}
    for row in EQUATION_ROWS:
        for number in numbers(row[0]):
            by_number.setdefault(number, set()).update(names(row[2]))
    assert named
    for name, said in numbered_code():
        for number in said:
            known = by_number.get(number, set())
            assert any(name == one or name.startswith(f"{one}.") for one in known), (
                f"{name} (Eq. {number}) is not named"
            )


@pytest.mark.parametrize(
    ("text", "expected"), [("2-6", {2, 3, 4, 5, 6}), ("3, 5", {3, 5}), ("3 and 5", {3, 5}), ("9", {9})]
)
def test_numbers_are_read(text: str, expected: set[int]) -> None:
    assert numbers(text) == expected
