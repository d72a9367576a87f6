"""Who imports whom, read from the source without running it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
LAYERS = ("perfusion", "tasks", "flows")


@cache
def modules() -> dict[str, Path]:
    """Dotted name -> file, for every module of the project."""
    files = [file for layer in LAYERS for file in sorted((REPOSITORY / layer).rglob("*.py"))]
    return {dotted(file): file for file in files}


def dotted(file: Path) -> str:
    parts = file.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(file: Path) -> list[str]:
    """Every dotted name that a file imports, anywhere in it; `from a import b` gives `a.b`."""
    return [name for node in _import_nodes(_tree(file)) for name in _names(node)]


@cache
def needed(file: Path, tree: ast.AST | None = None) -> frozenset[Path]:
    """The project's files whose code a file (or one function of it) runs by importing names from them.

    Names are followed through the packages that only pass them on, and imports for type checkers are left out.
    """
    known = modules()
    found: set[Path] = set()
    for node in _import_nodes(_tree(file) if tree is None else tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in LAYERS:
            found |= {_home(node.module, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {known[alias.name] for alias in node.names if alias.name in known}
    return frozenset(found)


def closure(files: set[Path]) -> set[Path]:
    """Those files and all that they need in turn."""
    seen: set[Path] = set()
    waiting = set(files)
    while waiting:
        file = waiting.pop()
        seen.add(file)
        waiting |= needed(file) - seen
    return seen


@cache
def _home(package: str, name: str) -> Path:
    """The file in which `from package import name` ends up."""
    known = modules()
    if f"{package}.{name}" in known:
        return known[f"{package}.{name}"]
    file = known[package]
    if file.name != "__init__.py":
        return file
    tree = _tree(file)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in known and name in (alias.name for alias in node.names):
            return _home(node.module, name)
        if isinstance(node, ast.Dict):  # packages that import on first use keep a table of homes
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == name and isinstance(value, ast.Constant):
                    return known[f"{package}.{value.value}"]
    return file


def _names(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif node.module and not node.level:
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _import_nodes(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements, without those under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            continue
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child
        yield from _import_nodes(child)


@cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(), str(file))
