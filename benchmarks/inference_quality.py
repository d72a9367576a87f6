"""What shortcuts of sampling cost in quality: paired with the exact sampler, on the same users, prompts and noise.

    python -m benchmarks.inference_quality --workspace DIR [--student DIR] [--pairs N] [--only NAME ...]

DIR is a folder in which a retraining ended: params.yaml, data/ and work/. A student that does not exist yet is trained
into its folder first (`perfusion.generation.distil`).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks.common import OUT, hardware
from benchmarks.inference import flops_over_plain
from perfusion import torchvision_guard
from perfusion.checkpoint import atomic_write
from perfusion.config import Params, load_params
from perfusion.statistics import paired_difference

#: option set -> arguments of the pipeline's call. "blind" gives the scale: what the user is worth.
OPTIONS: dict[str, dict[str, Any]] = {
    "blind": {},
    "personal unconditional": {"unconditional": "personal"},
    "pan_every 2": {"pan_every": 2},
    "pan_every 3": {"pan_every": 3},
    "pan_every 5": {"pan_every": 5},
    "encoder_every 2": {"encoder_every": 2},
    "encoder_every 3": {"encoder_every": 3},
    "deep_every 2": {"deep_every": 2},
    "deep_every 3": {"deep_every": 3},
    "pan_every 3, encoder_every 2": {"pan_every": 3, "encoder_every": 2},
    "10 steps": {"num_inference_steps": 10},
    "dpm, 10 steps": {"num_inference_steps": 10, "sampler": "dpm"},
    "dpm-sde, 10 steps": {"num_inference_steps": 10, "sampler": "dpm-sde"},
    "unipc, 10 steps": {"num_inference_steps": 10, "sampler": "unipc"},
    "bfloat16": {},
    "student": {},
}
_NOT_SCORES = {"item", "seed"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inference_quality", description=__doc__.split("\n")[0])
    parser.add_argument("--workspace", type=Path, required=True, help="folder with params.yaml, data/ and work/")
    parser.add_argument("--student", type=Path, help="folder of the distilled student; trained when it is absent")
    parser.add_argument("--pairs", type=int, help="(user, prompt) pairs; default: evaluate.pairs of the workspace")
    parser.add_argument("--only", nargs="+", choices=OPTIONS, help="these option sets alone")
    options = parser.parse_args()
    torchvision_guard.install()
    params = load_params(options.workspace / "params.yaml")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", params.threads)))
    if options.student is not None and not (options.student / "model_index.json").exists():
        train_student(options.workspace, params, options.student)
    chosen = options.only or [name for name in OPTIONS if name != "student" or options.student is not None]
    rows, seconds = pictures(options.workspace, params, chosen, options.student, options.pairs)
    table = differences(rows, chosen, params)
    report = {
        "hardware": hardware(), "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "items": int(rows["item"].nunique()), "users": int(rows["user_id"].nunique()), "seconds_per_picture": seconds,
        "exact": {name: float(rows.loc[rows["arm"] == "exact", name].mean()) for name in _metrics(rows)},
        "minus_exact": table, "flops_over_plain": {name: _flops(name, params) for name in ["exact", *chosen]},
    }  # fmt: skip
    OUT.mkdir(parents=True, exist_ok=True)
    atomic_write(OUT / "inference_quality.json", json.dumps(report, indent=1).encode())
    show(report)


def train_student(workspace: Path, params: Params, out: Path) -> None:
    """Distil the workspace's generator."""
    from perfusion.data import FeatureEncoder, load_tables
    from perfusion.generation.distil import distil
    from perfusion.loop import TrainingRun

    work = workspace / "work"
    encoder = FeatureEncoder.load(work / "generator" / "features.json")
    tables = load_tables(
        workspace / "data", work / "split", params.data.image_size, encoder=encoder, splits=("train", "valid")
    )  # as the encode stage reads them
    run = TrainingRun("distil", params.seed)
    metrics = distil(tables["train"], work / "encode", work / "generator", params.distil, out, run)
    print(f"student: {metrics}", file=sys.stderr)


def pictures(
    workspace: Path, params: Params, chosen: list[str], student: Path | None, pairs: int | None
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Every arm's pictures, judged: one row a picture, and seconds a picture by arm."""
    from perfusion.data import read_groups, read_users
    from perfusion.evaluation.arms import PipelineArm
    from perfusion.evaluation.drawn import draw, score_pictures
    from perfusion.evaluation.items import choose_items
    from perfusion.evaluation.ratings import training_ratings
    from perfusion.generation import PerFusionPipeline
    from perfusion.scorers import ScorerSources, build_scorers
    from perfusion.scorers.true_utility import TrueUtility
    from perfusion.world import load_truth

    work, data, config = workspace / "work", workspace / "data", params.evaluate
    users = read_users(work / "split" / "users.parquet")
    groups = read_groups(work / "split" / "groups.parquet", extra=("split",))
    items = choose_items(groups[groups["split"] == "test"], pairs or config.pairs, config.pictures, params.seed)
    pipe = PerFusionPipeline.from_pretrained(work / "generator")

    def arm(name: str) -> PipelineArm:
        if name == "student":
            return PipelineArm(PerFusionPipeline.from_pretrained(student), personal=True)
        if name == "bfloat16":
            half = PerFusionPipeline.from_pretrained(work / "generator", dtype=torch.bfloat16)
            return PipelineArm(half, personal=True)
        call = dict(OPTIONS.get(name, {}))
        return PipelineArm(pipe, name != "blind", call.pop("num_inference_steps", None), call)

    drawn = draw({name: arm(name) for name in ["exact", *chosen]}, items, users, config.batch_pictures)
    rated = training_ratings(data, groups, params.data.image_size, params.seed)
    sources = ScorerSources(
        work / "backbones" / "clip", work / "pickscore", work / "reward", params.clip.path is None, *rated
    )  # fmt: skip
    truth = load_truth(data)
    judge = None if truth is None else TrueUtility(truth)
    rows = score_pictures(drawn, items, users, build_scorers(config, sources), judge)
    exact = drawn["exact"].pixels.float()
    for name, result in drawn.items():
        change = (result.pixels.float() - exact).abs().mean((1, 2, 3)).numpy()
        rows.loc[rows["arm"] == name, "change"] = change  # mean absolute difference of pixels, of 255
    return rows, {name: result.seconds for name, result in drawn.items()}


def differences(rows: pd.DataFrame, chosen: list[str], params: Params) -> dict[str, Any]:
    """arm -> metric -> the mean difference to the exact sampler, with its interval over users."""
    tables = {str(arm): part.set_index("item").sort_index() for arm, part in rows.groupby("arm", sort=False)}
    exact, options = tables["exact"], params.gates.interval_options(params.seed)
    return {
        name: {
            metric: paired_difference(tables[name][metric], exact[metric], exact["user_id"], **options).to_dict()
            for metric in _metrics(rows)
        }
        for name in chosen
    }


def show(report: Mapping[str, Any]) -> None:
    """Print the table, as Markdown; a difference whose interval leaves zero out is bold."""
    metrics = list(report["exact"])
    print(f"\n### Shortcuts of sampling, minus the exact sampler\n\n{report['hardware']}, {report['date'][:10]}")
    print(f"\n{report['items']} pictures an option, for {report['users']} users\n")
    print(f"| options | FLOPs over plain | s a picture | {' | '.join(metrics)} |")
    print("|---" * (3 + len(metrics)) + "|")
    for name, flops in report["flops_over_plain"].items():
        found = report["minus_exact"].get(name)
        cells = [f"{report['exact'][m]:.4g}" if found is None else _cell(found[m]) for m in metrics]
        print(f"| {name} | {flops:.2f} | {report['seconds_per_picture'][name]:.3f} | {' | '.join(cells)} |")


def _cell(interval: Mapping[str, Any]) -> str:
    mean, low, high = (np.nan if interval[key] is None else interval[key] for key in ("mean", "low", "high"))
    text = f"{mean:+.3g} [{low:+.3g}, {high:+.3g}]"
    return text if not (low > 0 or high < 0) else f"**{text}**"


def _metrics(rows: pd.DataFrame) -> list[str]:
    return [name for name in rows.select_dtypes("number") if name not in _NOT_SCORES]


def _flops(name: str, params: Params) -> float:
    """FLOPs a picture over plain guidance of as many steps as the exact sampler takes, on SD1.5's architecture."""
    call, steps = dict(OPTIONS.get(name, {})), params.diffusion.sampling.steps
    call.pop("sampler", None)
    taken = call.pop("num_inference_steps", steps)
    return flops_over_plain(name, call, taken) * taken / steps


if __name__ == "__main__":
    main()
