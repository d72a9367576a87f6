"""From systems and seeds to the items of the studies' pipeline: plan.json, and which stages a study needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from pydantic import ValidationError

from perfusion.config import Params, ScorerName
from tasks.studies.systems import DRAWN, RANKED, STUDIES, VIEWS, Drawn, Ranked, View, ablated

__all__ = ["FAMILIES", "Measured", "Plan", "make_plan"]

#: Families of stages in the pipeline, each a foreach over the plan's section of that name.
FAMILIES = ("view", "backbone", "reward", "score", "coverage", "generator", "spo", "picture", "cost")
Items = dict[str, dict[str, dict[str, Any]]]
_CLIP, _DIFFUSION, _SPLIT = "base/backbones/clip", "base/backbones/diffusion", "base/split"
_BACKBONES = {"pickscore": "base/pickscore", "clip": _CLIP}
_EVALUATION = "base/evaluation/generator/pictures.parquet"


@dataclass(frozen=True)
class Measured:
    """Where a system's measurements are found.

    Attributes:
        system: its name.
        seed: number of the training seed, 0 the retraining's own.
        view: of whose test groups; "" is the split itself.
        file: below the studies' folder.
        arm: whose rows of the file; None takes all.
        stage: that makes the file; None where the retraining does.
    """

    system: str
    seed: int
    view: str
    file: str
    arm: str | None
    stage: str | None


@dataclass
class Plan:
    """What is to be made for all studies.

    Attributes:
        items: family -> key -> what the stage is told; plan.json.
        measured: study -> where its measurements are.
        missing: system -> why this version cannot run it.
        features: columns of the users.
    """

    items: Items
    measured: dict[str, list[Measured]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    features: tuple[str, ...] = ()

    def ranked(self) -> dict[str, Ranked]:
        """Every system that ranks, those without one of the dataset's features too."""
        extra = {ablated(name): _without(name) for name in self.features}
        return {**RANKED, **extra}

    def stages(self, study: str) -> set[str]:
        """The stages whose outputs a study's table reads."""
        made = {one.stage for one in self.measured[study] if one.stage is not None}
        further = {f"{family}@{key}" for family in STUDIES[study].stages for key in self.items[family]}
        return made | further


def make_plan(params: Params, features: tuple[str, ...], seeds: int) -> Plan:
    """The plan of all studies.

    Args:
        params: of the workspace.
        features: columns of the users' table but for the id.
        seeds: training seeds of each system, at least 1.
    """
    plan = Plan({family: {} for family in FAMILIES}, features=features)
    views = {**VIEWS, **{ablated(name): View(("without",), (name,)) for name in features}}
    for name, view in views.items():
        source = "work/coverage/full-0/minimum.json" if view.minimum else _SPLIT
        plan.items["view"][name] = {"kinds": list(view.kinds), "features": list(view.features), "source": source}
    for name, study in STUDIES.items():
        ranked = dict(study.ranked) | ({ablated(one): ("",) for one in features} if name == "coverage" else {})
        found = [*_ranked(plan, params, ranked, seeds), *_drawn(plan, params, study.drawn, seeds)]
        plan.measured[name] = found
    for seed in range(seeds):
        plan.items["coverage"][f"full-{seed}"] = {
            "model": plan.items["score"][f"full-{seed}"]["model"], "blind": f"work/score/pickscore-{seed}.parquet",
        }  # fmt: skip
    plan.items["cost"]["all"] = {"rounds": 3, "steps": 6, "pictures": 16}
    return plan


def _ranked(plan: Plan, params: Params, systems: Mapping[str, tuple[str, ...]], seeds: int) -> Iterator[Measured]:
    table = plan.ranked()
    for name, views in systems.items():
        system = table[name]
        if system.family != "random" and system.family not in get_args(ScorerName):
            plan.missing[name] = f"no scorer {system.family!r} in this version"
            continue
        if system.trains is not None and (why := _refused(params, system.trains, system.changes)):
            plan.missing[name] = why
            continue
        if system.kind and params.clip.path is not None:
            plan.missing[name] = "real weights of this class have a workspace of their own: set clip.kind and clip.path"
            continue
        for seed in range(1 if system.trains is None or system.once else seeds):
            model = _CLIP if system.trains is None else _reward(plan, params, name, system, seed)
            for view in views:
                key = f"{name}-{seed}" + (f"-on-{view}" if view else "")
                split = f"work/view/{view}" if view else _SPLIT
                plan.items["score"][key] = {"family": system.family, "model": model, "split": split}
                yield Measured(name, seed, view, f"work/score/{key}.parquet", None, f"score@{key}")


def _reward(plan: Plan, params: Params, name: str, system: Ranked, seed: int) -> str:
    """The folder of a trained reward model; the retraining's own where it is the same."""
    assert system.trains is not None
    if seed == 0 and not system.changes and not system.learns and not system.kind:
        return f"base/{system.trains}"
    section = _changed(params, system.trains, system.changes)
    split = f"work/view/{system.learns}" if system.learns else _SPLIT
    backbone = _CLIP if system.trains == "pickscore" else _BACKBONES[section["backbone"]]
    if system.kind:
        backbone = _tuned(plan, params, system.kind)
    plan.items["reward"][f"{name}-{seed}"] = {
        "trains": system.trains, "seed": seed, "section": section, "split": split, "backbone": backbone,
    }  # fmt: skip
    return f"work/reward/{name}-{seed}"


def _tuned(plan: Plan, params: Params, kind: str) -> str:
    """A backbone of another class, pretrained and tuned on the picks as the retraining's own is."""
    plan.items["backbone"][kind] = {"seed": 0, "section": _changed(params, "clip", {"kind": kind})}
    plan.items["reward"][f"pickscore_{kind}-0"] = {
        "trains": "pickscore", "seed": 0, "section": _changed(params, "pickscore", {}), "split": _SPLIT,
        "backbone": f"work/backbone/{kind}",
    }  # fmt: skip
    return f"work/reward/pickscore_{kind}-0"


def _drawn(plan: Plan, params: Params, systems: tuple[str, ...], seeds: int) -> Iterator[Measured]:
    for name in systems:
        system = DRAWN[name]
        if system.trains is not None and (why := _refused(params, system.trains, system.changes)):
            plan.missing[name] = why
            continue
        for seed in range(1 if system.trains is None or system.once else seeds):
            key = f"{name}-{seed}"
            if seed == 0 and system.arm is not None and not system.changes:
                yield Measured(name, seed, "", _EVALUATION, system.arm, None)
                continue
            plan.items["picture"][key] = _picture(plan, params, name, system, seed)
            yield Measured(name, seed, "", f"work/picture/{key}/pictures.parquet", None, f"picture@{key}")


def _picture(plan: Plan, params: Params, name: str, system: Drawn, seed: int) -> dict[str, Any]:
    """What draws: a trained system, or the backbone with other prompts, for which nothing is trained."""
    assert system.trains is not None
    section = _changed(params, system.trains, system.changes)
    item: dict[str, Any] = {"system": name, "trains": system.trains}
    if system.trains == "pmg":
        return {**item, "model": _DIFFUSION, "section": section}
    family = "spo" if system.trains == "spo" else "generator"
    start = "base/dpo" if system.trains == "generator" else _DIFFUSION
    training = {"trains": system.trains, "seed": seed, "section": section, "start": start}
    plan.items[family][f"{name}-{seed}"] = training
    return {**item, "model": f"work/{family}/{name}-{seed}"}


def _changed(params: Params, section: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """A section with changes, checked, every default written out."""
    values = params.model_dump(mode="json")
    values[section] = {**values[section], **changes}
    return dict(Params.model_validate(values).model_dump(mode="json")[section])


def _refused(params: Params, section: str, changes: Mapping[str, Any]) -> str:
    """Why this version cannot run a section with changes; "" when it can."""
    if section not in type(params).model_fields:
        return f"nothing in this version trains {section!r}"
    try:
        _changed(params, section, changes)
    except ValidationError as error:
        first = error.errors()[0]
        return f"this version does not know {'.'.join(map(str, first['loc']))} = {first.get('input')!r}"
    return ""


def _without(feature: str) -> Ranked:
    return Ranked(f"without {feature}", "perfusion_rm", "reward", learns=ablated(feature), once=True)
