"""The studies' pipeline with its templates filled in: what each stage reads and makes, as DVC resolves it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

__all__ = ["LANES", "PIPELINE", "Stage", "lane_threads", "resolve"]

PIPELINE = Path(__file__).with_name("pipeline.yaml")
#: Stages at a time: on two cores, two of one thread each do a third more than one of two threads.
LANES = 2
_FIELD = re.compile(r"\$\{(key|item\.\w+)\}")


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: family@key, DVC's name of it.
        item: what the plan tells it.
        deps: files and folders it reads.
        params: dotted names in params.yaml.
        outs: what it makes.
        needs: stages whose outputs it reads.
    """

    name: str
    item: dict[str, Any]
    deps: tuple[str, ...]
    params: tuple[str, ...]
    outs: tuple[str, ...]
    needs: frozenset[str] = frozenset()


def lane_threads(threads: int) -> int:
    """Threads of each of the stages that run at a time, when a stage of its own has `threads`."""
    return max(1, threads // LANES)


def resolve(items: Mapping[str, Mapping[str, dict[str, Any]]]) -> dict[str, Stage]:
    """Every stage of the pipeline for the items of a plan, each after those that it needs.

    Args:
        items: family -> key -> item.
    """
    templates = yaml.safe_load(PIPELINE.read_text())["stages"]
    stages = {}
    for family, template in templates.items():
        for key, item in items[family].items():
            stage = _filled(f"{family}@{key}", template["do"], key, item)
            stages[stage.name] = stage
    makers = {out: stage.name for stage in stages.values() for out in stage.outs}
    linked = {name: _linked(stage, makers) for name, stage in stages.items()}
    ordered: dict[str, Stage] = {}
    while len(ordered) < len(linked):
        ready = {n: s for n, s in linked.items() if n not in ordered and s.needs <= ordered.keys()}
        if not ready:
            raise ValueError(f"stages that wait for each other: {sorted(linked.keys() - ordered.keys())}")
        ordered |= ready
    return ordered


def _filled(name: str, template: Mapping[str, Any], key: str, item: dict[str, Any]) -> Stage:
    values = {"key": key, **{f"item.{field}": value for field, value in item.items()}}

    def fill(text: str) -> str:
        return _FIELD.sub(lambda found: str(values[found[1]]), text)

    deps = tuple(dict.fromkeys(fill(dep) for dep in template["deps"]))
    params = tuple(param for param in template["params"] if isinstance(param, str))
    return Stage(name, item, deps, params, tuple(fill(out) for out in template["outs"]))


def _linked(stage: Stage, makers: Mapping[str, str]) -> Stage:
    """The stage with what it needs; a file inside an output needs its maker too."""
    needs = {maker for out, maker in makers.items() for dep in stage.deps if dep == out or dep.startswith(f"{out}/")}
    return Stage(stage.name, stage.item, stage.deps, stage.params, stage.outs, frozenset(needs))
