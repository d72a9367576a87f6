"""dvc.yaml, the stages' adapters and the flow tell of the same graph, and a stage depends on all the code it runs."""

from __future__ import annotations

import ast
from pathlib import Path

import imports
import pytest
import yaml

from flows import retrain
from perfusion.config import load_params
from tasks import stages

GRAPH = yaml.safe_load((imports.REPOSITORY / "dvc.yaml").read_text())["stages"]
PLUMBING = (  # what the screen says, and what is refused, changes no result
    "perfusion/errors.py", "perfusion/progress.py", "perfusion/paths.py", "perfusion/model_folder.py",
)  # fmt: skip


def test_the_flow_runs_the_stages_of_dvc_yaml_in_their_order() -> None:
    assert tuple(GRAPH) == retrain.STAGES == tuple(stages.STAGES)


def test_every_stage_runs_its_own_adapter() -> None:
    assert {name: stage["cmd"] for name, stage in GRAPH.items()} == {name: f"${{run}} {name}" for name in GRAPH}


def test_every_stage_reports_metrics_under_its_name() -> None:
    assert {name: stage["metrics"] for name, stage in GRAPH.items()} == {n: [f"work/metrics/{n}.json"] for n in GRAPH}


def test_stages_come_after_what_they_read() -> None:
    made: set[str] = set()
    for name, stage in GRAPH.items():
        read = {dep for dep in stage["deps"] if dep.startswith("work/")}
        unmade = {dep for dep in read if not any(dep == out or dep.startswith(f"{out}/") for out in made)}
        assert not unmade, f"{name} reads {unmade} before a stage makes it"
        made |= set(stage["outs"])


@pytest.mark.parametrize("name", GRAPH)
def test_a_stage_depends_on_all_the_code_it_runs(name: str) -> None:
    """Else editing that code would leave an outdated result in the cache."""
    needed = {str(file.relative_to(imports.REPOSITORY)) for file in _code_of(name)}
    needed = {file for file in needed if file.startswith("perfusion/") and file not in PLUMBING}
    deps = GRAPH[name]["deps"]
    uncovered = sorted(file for file in needed if not any(file == dep or file.startswith(f"{dep}/") for dep in deps))
    assert not uncovered, f"add to the deps of {name} in dvc.yaml: {uncovered}"


@pytest.mark.parametrize("name", GRAPH)
def test_a_stage_depends_on_no_file_that_is_gone_or_unused(name: str) -> None:
    needed = {str(file.relative_to(imports.REPOSITORY)) for file in _code_of(name)}
    code = [dep for dep in GRAPH[name]["deps"] if dep.startswith(("perfusion/", "tasks/"))]
    unused = [dep for dep in code if not any(file == dep or file.startswith(f"{dep}/") for file in needed)]
    assert not unused, f"remove from the deps of {name} in dvc.yaml: {unused}"


@pytest.mark.parametrize("name", GRAPH)
def test_the_sample_parameters_hold_what_a_stage_reads(name: str) -> None:
    """DVC refuses a stage whose parameter is not written in params.yaml, default or not."""
    written = yaml.safe_load((imports.REPOSITORY / "params.yaml").read_text())
    for path in GRAPH[name]["params"]:
        value = written
        for part in path.split("."):
            assert part in value, f"params.yaml lacks {path}, which {name} depends on"
            value = value[part]


def test_the_sample_parameters_are_the_defaults_of_the_program() -> None:
    assert load_params(imports.REPOSITORY / "params.yaml").name == "perfusion"


def _code_of(stage: str) -> set[Path]:
    """All files of the project that a stage's adapter reaches, through the helpers it calls."""
    file = imports.REPOSITORY / "tasks" / "stages.py"
    functions = {node.name: node for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)}
    waiting = {stages.STAGES[stage].__name__}
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        seen.add(name)
        used = {node.id for node in ast.walk(functions[name]) if isinstance(node, ast.Name)}
        waiting |= (used & functions.keys()) - seen
    return imports.closure(set().union(*(imports.needed(file, functions[name]) for name in seen)))
