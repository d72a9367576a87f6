"""The stages of the studies' pipeline: `python -m tasks.studies.stages FAMILY KEY` in the studies' folder.

Adapters of a few lines, as in `tasks.stages`; what a stage is to do stands in plan.json under plan, FAMILY and KEY.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perfusion.checkpoint import atomic_write, run_key
from perfusion.config import PLAIN, Params
from perfusion.errors import ConfigError
from tasks.process import cpu_environment, die_with_parent
from tasks.stage_run import StageRun, content_hash, resumable, value_at, whole, write_metrics
from tasks.stages import explain
from tasks.studies.pipeline import Stage, lane_threads, resolve
from tasks.workspace import open_workspace

if TYPE_CHECKING:
    from perfusion.data import GroupTable
    from perfusion.loop import TrainingRun

__all__ = ["STAGES", "StudyRun", "main"]

Metrics = dict[str, Any]


@dataclass(frozen=True)
class StudyRun:
    """A study's stage that is running.

    Attributes:
        stage: with its item of the plan.
        run: key, log and state, as a retraining's stage has them.
    """

    stage: Stage
    run: StageRun

    @property
    def item(self) -> dict[str, Any]:
        return self.stage.item

    @property
    def params(self) -> Params:
        return self.run.params

    @property
    def out(self) -> Path:
        return self.path(self.stage.outs[0])

    def path(self, name: str) -> Path:
        """A path of the pipeline."""
        return self.run.workspace.root / name

    def section(self, name: str) -> Any:
        """The item's section of parameters, e.g. a `RewardConfig`."""
        values = {**self.params.model_dump(mode="json"), name: self.item["section"]}
        return getattr(Params.model_validate(values), name)

    def training(self, name: str, section: Any, compute: Any = PLAIN) -> TrainingRun:
        """A resumable training from the item's seed; the retraining's own seed for the first."""
        from dataclasses import replace

        training = self.run.training(name, section.optimiser, compute)
        return replace(training, seed=self.params.seed + self.item["seed"], on_pictures=None)

    def tables(self, split: Path) -> dict[str, GroupTable]:
        """What training may see, as in `tasks.stages`."""
        from perfusion.data import load_tables

        return load_tables(self.path("data"), split, self.params.data.image_size, splits=("train", "valid"))


def view(run: StudyRun) -> Metrics:
    """Write a view of the split."""
    from perfusion.studies.views import kept_features, write_view

    features = run.item["features"]
    source = run.path(run.item["source"])
    if source.is_file():
        features = kept_features(source)
    with whole(run.out) as (out,):
        return dict(write_view(run.path("base/split"), out, run.item["kinds"], features, run.params.seed))


def backbone(run: StudyRun) -> Metrics:
    """Train the twin of another class of backbones on captioned pictures (Table 5)."""
    from perfusion.reward import pretrain_twin
    from perfusion.world import captioned_pictures

    section = run.section("clip")
    with whole(run.out) as (out,):
        size = run.params.data.image_size
        pictures = captioned_pictures(
            run.path("data"), run.path("base/valid"), section.pictures, run.params.seed, size
        )  # fmt: skip
        return dict(pretrain_twin(pictures, section, out, run.training("clip", section)))


def reward(run: StudyRun) -> Metrics:
    """Train a reward model: PerFusionRM, or the user-blind baseline."""
    from perfusion.reward import train_pickscore, train_reward

    name = run.item["trains"]
    section = run.section(name)
    with whole(run.out) as (out,):
        tables = run.tables(run.path(run.item["split"]))
        train: Any = train_reward if name == "reward" else train_pickscore
        return dict(train(tables, run.path(run.item["backbone"]), section, out, run.training(name, section)))


def score(run: StudyRun) -> Metrics:
    """Score every held-out group with one system."""
    from perfusion.studies.score_sets import score_set

    params = run.params
    rows = score_set(
        run.item["family"], params.evaluate, run.path("data"), run.path(run.item["split"]),
        run.path("base/backbones/clip"), run.path(run.item["model"]), image_size=params.data.image_size,
        twin=params.clip.path is None, seed=params.seed,
    )  # fmt: skip
    run.out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(run.out, rows.to_parquet(index=False))
    test = rows[rows["split"] == "test"]
    return {"map": float(test["ap"].mean()), "gauc": float(test["auc"].mean()), "groups": len(test)}


def coverage(run: StudyRun) -> Metrics:
    """Shuffle each feature, and find the smallest set of features that keeps the gain."""
    import pandas as pd

    from perfusion.studies.coverage import permutation_study

    params, blind = run.params, pd.read_parquet(run.path(run.item["blind"]))
    rows, minimum = permutation_study(
        run.path("data"), run.path("base/split"), run.path(run.item["model"]), blind,
        image_size=params.data.image_size, seed=params.seed, options=params.gates.interval_options(params.seed),
    )  # fmt: skip
    with whole(run.out) as (out,):
        rows.to_parquet(out / "permuted.parquet", index=False)
        atomic_write(out / "minimum.json", json.dumps({"minimum": minimum}, indent=1).encode())
    return {"features": len(minimum["features"]), "gain": minimum["gain"]}


def generator(run: StudyRun) -> Metrics:
    """Train a generator, or an ablation of PerFusion."""
    from perfusion.generation import train_dpo, train_generator, train_sft

    name, params = run.item["trains"], run.params
    section = run.section(name)
    training = run.training(name, section, params.compute)
    encoded, diffusion = run.path("base/encode"), run.path("base/backbones/diffusion")
    with whole(run.out) as (out,):
        tables = run.tables(run.path("base/split"))
        if name == "generator":
            start, sampling = run.path(run.item["start"]), params.diffusion.sampling
            return dict(train_generator(tables, encoded, diffusion, start, section, sampling, out, training))
        train = {"sft": train_sft, "dpo": train_dpo}[name]
        return dict(train(tables, encoded, diffusion, section, out, training))


def spo(run: StudyRun) -> Metrics:
    """Train SPO: step-aware preference, judged by the tuned PickScore."""
    from perfusion.generation import train_spo
    from perfusion.reward import load_clip
    from perfusion.scorers import PickScore

    params, section = run.params, run.section("spo")
    preference = PickScore(load_clip(run.path("base/pickscore")), params.clip.path is None).score
    with whole(run.out) as (out,):
        tables = run.tables(run.path("base/split"))
        training = run.training("spo", section, params.compute)
        encoded, diffusion = run.path("base/encode"), run.path("base/backbones/diffusion")
        return dict(train_spo(tables, encoded, diffusion, preference, section, out, training))


def picture(run: StudyRun) -> Metrics:
    """Draw the evaluation's items with one system, and judge them."""
    from perfusion.data import read_groups
    from perfusion.evaluation.arms import load_arm
    from perfusion.evaluation.style import build_style
    from perfusion.reward import load_clip
    from perfusion.studies.picture_sets import picture_set

    params, style = run.params, None
    if run.item["trains"] == "pmg":
        groups = read_groups(run.path("base/split/groups.parquet"), extra=("split",))
        clip = load_clip(run.path("base/backbones/clip"))
        style = build_style(run.path("data"), groups, clip, run.section("pmg"), params.data.image_size)
    arm = load_arm(
        run.path("base/backbones/diffusion"), run.path(run.item["model"]), run.path("base/generator"),
        params.evaluate.steps, style,
    )  # fmt: skip
    with whole(run.out) as (out,):
        return picture_set(
            run.item["system"], arm, run.path("data"), run.path("base/split"), run.path("base/backbones/clip"),
            run.path("base/pickscore"), run.path("base/reward"), out, image_size=params.data.image_size,
            twin=params.clip.path is None, config=params.evaluate, seed=params.seed,
        )  # fmt: skip


def cost(run: StudyRun) -> Metrics:
    """Time training steps and pictures of three systems, side by side."""
    from perfusion.data import read_users
    from perfusion.studies.costs import cost_study

    params, split = run.params, run.path("base/split")
    rows = cost_study(
        run.tables(split), read_users(split / "users.parquet"), run.path("base/encode"),
        run.path("base/backbones/diffusion"), run.path("base/dpo"), run.path("base/generator"), params, **run.item,
    )  # fmt: skip
    with whole(run.out) as (out,):
        rows.to_parquet(out / "costs.parquet", index=False)
    return {f"{row.system}.{row.what}": row.seconds for row in rows.itertuples()}


STAGES: dict[str, Callable[[StudyRun], Metrics]] = {
    "view": view,
    "backbone": backbone,
    "reward": reward,
    "score": score,
    "coverage": coverage,
    "generator": generator,
    "spo": spo,
    "picture": picture,
    "cost": cost,
}


def main(arguments: list[str] | None = None) -> int:
    """Run one stage of the studies in the current folder; returns 0, 1 for a defect, or 2 for what it explains."""
    parser = argparse.ArgumentParser(prog="python -m tasks.studies.stages", description="Run one stage of a study.")
    parser.add_argument("family", choices=STAGES)
    parser.add_argument("key")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an explained failure too")
    options = parser.parse_args(arguments)
    die_with_parent()
    place = open_workspace(Path.cwd())
    name = f"{options.family}@{options.key}"
    try:
        os.environ.update(cpu_environment(lane_threads(place.params().threads)))
        run = _begin(options.family, options.key)
        place.metrics(name).parent.mkdir(parents=True, exist_ok=True)
        write_metrics(place.metrics(name), STAGES[options.family](run))
        shutil.rmtree(run.run.state, ignore_errors=True)
    except Exception as error:
        return explain(place, name, error, options.debug)
    return 0


def _begin(family: str, key: str) -> StudyRun:
    """The stage with its item, its key of everything that it depends on, and its log."""
    place = open_workspace(Path.cwd())
    stages = resolve(json.loads((place.root / "plan.json").read_text())["plan"])
    if f"{family}@{key}" not in stages:
        raise ConfigError(
            f"{place.root / 'plan.json'}: no {family} {key!r}; run `perfusion benchmark` to write the plan"
        )
    stage, params = stages[f"{family}@{key}"], place.params()
    values = params.model_dump(mode="json")
    sections = {name: value_at(values, name) for name in stage.params}
    deps = {dep: content_hash(place.root / dep) for dep in stage.deps}
    name = f"{family}@{key}"
    run_id = run_key(stage=stage.name, item=stage.item, params=sections, deps=deps)
    return StudyRun(stage, resumable(name, place, params, run_id))


if __name__ == "__main__":
    sys.exit(main())
