"""The studies' pipeline, its adapters and its data tell of the same things, and a stage depends on all its code."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import get_args

import imports
import pytest
import yaml

from perfusion.config import load_params
from perfusion.studies.views import ViewKind
from tasks.studies import stages
from tasks.studies.builders import BUILDERS
from tasks.studies.paper import PAPER
from tasks.studies.pipeline import PIPELINE, resolve
from tasks.studies.place import BASE
from tasks.studies.plan import FAMILIES, make_plan
from tasks.studies.systems import DRAWN, RANKED, STUDIES, VIEWS

PIPE = yaml.safe_load(PIPELINE.read_text())["stages"]
GRAPH = yaml.safe_load((imports.REPOSITORY / "dvc.yaml").read_text())["stages"]
PLUMBING = ("perfusion/errors.py", "perfusion/progress.py", "perfusion/paths.py", "perfusion/model_folder.py")
PARAMS = load_params(imports.REPOSITORY / "params.yaml")
ADAPTERS = imports.REPOSITORY / "tasks" / "studies" / "stages.py"


def test_pipeline_adapters_and_plan_have_the_same_families() -> None:
    assert tuple(PIPE) == tuple(stages.STAGES) == FAMILIES
    assert {name: stage["do"]["cmd"] for name, stage in PIPE.items()} == {n: f"${{run}} {n} ${{key}}" for n in PIPE}
    assert {name: stage["foreach"] for name, stage in PIPE.items()} == {name: f"${{plan.{name}}}" for name in PIPE}


def test_every_study_has_a_builder_and_knows_its_systems() -> None:
    assert STUDIES.keys() == BUILDERS.keys()
    for study in STUDIES.values():
        assert study.ranked.keys() <= RANKED.keys()
        assert set(study.drawn) <= DRAWN.keys()
        assert {view for views in study.ranked.values() for view in views} <= {"", *VIEWS}
        assert study.base in GRAPH
    assert {kind for view in VIEWS.values() for kind in view.kinds} <= set(get_args(ViewKind))


def test_the_papers_rows_are_rows_of_ours() -> None:
    for table, rows in PAPER.items():
        if table in ("table2", "table5"):
            assert rows.keys() <= STUDIES[table].ranked.keys()
        if table == "table3":
            assert rows.keys() == set(STUDIES[table].drawn)


def test_nothing_is_read_before_it_is_made() -> None:
    found = resolve(make_plan(PARAMS, ("style",), 2).items)
    made = {out for stage in found.values() for out in stage.outs}
    for stage in found.values():
        for dep in stage.deps:
            inside = any(dep == out or dep.startswith(f"{out}/") for out in made)
            assert inside or dep == "data" or dep.split("/")[0] in ("base", "perfusion"), dep
            if dep.startswith("base/"):
                assert dep.split("/")[1] in BASE


def test_what_the_retraining_made_is_not_made_again() -> None:
    plan = make_plan(PARAMS, ("style",), 3)
    assert plan.items["score"]["full-0"]["model"] == "base/reward"
    assert plan.items["score"]["pickscore-0"]["model"] == "base/pickscore"
    assert not {"full-0", "pickscore-0"} & plan.items["reward"].keys()
    assert not {"sft-0", "dpo-0", "perfusion-0"} & plan.items["generator"].keys()
    assert {"full-1", "full-2"} <= plan.items["reward"].keys()


def test_more_seeds_leave_what_fewer_seeds_made_as_it_was() -> None:
    few, many = (make_plan(PARAMS, ("style",), seeds).items for seeds in (1, 3))
    for family, items in few.items():
        assert items.items() <= many[family].items()


def test_every_parameter_of_a_stage_exists() -> None:
    values = PARAMS.model_dump(mode="json")
    for template in PIPE.values():
        for name in template["do"]["params"]:
            value = values
            for part in name.split(".") if isinstance(name, str) else ():
                assert part in value, name
                value = value[part]


@pytest.mark.parametrize("name", PIPE)
def test_a_stage_depends_on_all_the_code_it_runs_and_no_more(name: str) -> None:
    needed = {str(file.relative_to(imports.REPOSITORY)) for file in _code_of(name)}
    needed = {file for file in needed if file.startswith("perfusion/") and file not in PLUMBING}
    deps = [dep for dep in PIPE[name]["do"]["deps"] if dep.startswith("perfusion")]
    uncovered = sorted(file for file in needed if not any(file == dep or file.startswith(f"{dep}/") for dep in deps))
    assert not uncovered, f"add to the deps of {name} in {PIPELINE.name}: {uncovered}"
    unused = [dep for dep in deps if not any(file == dep or file.startswith(f"{dep}/") for file in needed)]
    assert not unused, f"remove from the deps of {name} in {PIPELINE.name}: {unused}"


def _code_of(family: str) -> set[Path]:
    """All files that an adapter reaches, with the methods of `StudyRun` that it calls."""
    tree = ast.parse(ADAPTERS.read_text())
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    (run,) = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    methods = {node.name: node for node in run.body if isinstance(node, ast.FunctionDef)}
    nodes = [functions[family]]
    called = {node.attr for node in ast.walk(functions[family]) if isinstance(node, ast.Attribute)}
    nodes += [methods[name] for name in called & methods.keys()]
    needed = set().union(*(imports.needed(ADAPTERS, node) for node in nodes))
    if "section" in called:
        needed.add(imports.REPOSITORY / "perfusion" / "config.py")
    return imports.closure(needed)
