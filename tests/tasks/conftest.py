"""A run's work folder as the stages leave it, made from random scores by the real statistics."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from perfusion.evaluation.ranking import group_aucs, group_average_precision, ranking_report
from perfusion.governance.checks import above
from perfusion.governance.decision import at_least, decide
from perfusion.statistics import cluster_bootstrap, paired_difference, share_positive
from perfusion.world import render

USERS, GROUPS, CANDIDATES = 40, 6, 5
SKILL = {"random": 0.0, "clip": 0.7, "user_blind": 1.0, "wrong_user": 0.7, "perfusion_rm": 2.6}
ARMS = {"base": 0.0, "sft": 0.15, "dpo": 0.2, "perfusion": 2.2, "wrong_user": 0.9}
STYLES = ("minimalist", "romantic", "streetwear", "classic")
OPTIONS = {"resamples": 200}


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a work folder and returns the workspace around it."""

    def make(name: str = "run", *, seed: int = 0, truth: bool = True, skill: float = 1.0) -> Path:
        root = tmp_path / name
        _write_data(root)
        _write_reward(root, np.random.default_rng([seed, 1]), truth, skill)
        _write_generator(root, np.random.default_rng([seed, 2]), truth, skill)
        _write_gates(root)
        (root / "params.yaml").write_text(
            f"name: perfusion\nseed: {seed}\nreward:\n  optimiser: {{steps: 450, lr: 0.003}}\n"
        )
        write_json(
            root / "work/metrics/seconds.json", {"validate": 2.1, "reward": 75.3, "generator": 280.0, "clip": 91.0}
        )
        write_json(root / "work/outcome.json", {"status": "promoted", "reasons": [], "run_id": "0a1b2c"})
        log = [{"key": "k"}] + [
            {"run": "reward", "step": step, "of": 450, "metrics": {"loss": 2.4 / (1 + step / 90) + 0.8, "lr": 3e-3}}
            for step in range(10, 451, 10)
        ]
        (root / "work/logs").mkdir()
        (root / "work/logs/reward.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
        return root

    return make


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, default=float))


def _write_data(root: Path) -> None:
    rules = [{"table": "groups", "rule": "picture decodes", "failed": 3, "checked": 300, "remedy": "send it again",
              "says": "every picture decodes", "examples": [{"record_id": "r1", "value": "not an image"}]}]  # fmt: skip
    write_json(root / "work/metrics/validate.json", {
        "groups_in": 300, "quarantined": 3, "valid": 297, "rules": rules, "coverage": {"style": 1.0, "region": 0.97},
        "drift": None, "accepted": None,
    })  # fmt: skip
    write_json(root / "work/metrics/split.json", {
        "in": 297, "used": 270, "filtered": 15, "dropped": {"nothing picked": 10, "everything picked": 2},
        "splits": {"train": 200, "valid": 25, "test": 25, "cold": 20, "few": 15},
        "users": {"known": 38, "cold": 2, "few": 3},
        "table_one": {"users": 40, "prompts": 24, "samples": 270, "group_size": {"5": 270}, "group_size_mean": 5.0},
    })  # fmt: skip


def _write_reward(root: Path, random: np.random.Generator, truth: bool, skill: float) -> None:
    users = [f"m{u:05d}" for u in np.repeat(np.arange(USERS), GROUPS)]
    taste = random.normal(size=(len(users), CANDIDATES))
    picked = taste == taste.max(1, keepdims=True)
    valid = np.ones_like(picked)
    rows = pd.DataFrame({"record_id": [f"r{i}" for i in range(len(users))], "user_id": users, "split": "test",
                         "candidates": CANDIDATES, "picked": 1})  # fmt: skip
    metrics: dict[str, Any] = {}
    for name, level in SKILL.items():
        scores = level * (skill if name == "perfusion_rm" else 1.0) * taste + random.normal(size=taste.shape)
        metrics[name] = ranking_report(scores, picked, valid, users, split="test", **OPTIONS).to_dict()
        rows[f"ap_{name}"] = group_average_precision(scores, picked, valid)
        rows[f"auc_{name}"] = group_aucs(scores, picked, valid)
    reachable = 0.97 if truth else None
    closed = (metrics["perfusion_rm"]["gauc"] - metrics["user_blind"]["gauc"]) / (0.97 - metrics["user_blind"]["gauc"])
    gains = {
        metric: paired_difference(
            rows[f"{column}_perfusion_rm"], rows[f"{column}_user_blind"], users, **OPTIONS
        ).to_dict()
        for metric, column in (("map", "ap"), ("gauc", "auc"))
    }
    metrics |= {
        "floor_map": metrics["random"]["floor_map"],
        "user_blind_gauc": metrics["user_blind"]["gauc"],
        "reachable_gauc": reachable,
        "gap_closed": {"mean": closed, "low": closed - 0.05, "high": closed + 0.05} if truth else None,
        "gain_over_user_blind": gains,
        "references": {"reachable": {"map": 0.95, "gauc": 0.97}, "full_oracle": {"map": 0.98, "gauc": 0.99}}
        if truth
        else {},
    }
    write_json(root / "work/metrics/evaluate-reward.json", metrics)
    folder = root / "work/evaluation/reward"
    folder.mkdir(parents=True)
    rows.to_parquet(folder / "groups.parquet")
    bounds = {style: (None, None) if style == "classic" else (0.05, 0.15) for style in STYLES}
    pd.DataFrame([
        {"feature": "style", "value": style, "users": 10, "groups": 60, "gauc": 0.9, "user_blind_gauc": 0.8,
         "gain": 0.1, "gain_low": bounds[style][0], "gain_high": bounds[style][1]}
        for style in STYLES
    ]).to_parquet(folder / "slices.parquet")  # fmt: skip


def _write_generator(root: Path, random: np.random.Generator, truth: bool, skill: float) -> None:
    folder = root / "work/evaluation/generator"
    folder.mkdir(parents=True)
    rows = []
    for user in range(24):
        prompt = ("dress, v-neck, slim-fit", "coat, long sleeves, round-neck")[user % 2]
        style = user % len(STYLES)
        for arm, level in ARMS.items():
            told = {"perfusion": style + round(skill) - 1, "wrong_user": style + 1}.get(arm, user % 7)
            codes = np.array([[0 if user % 2 == 0 else 2, 0, 2, 0, told % 8, (told * 3) % 5, told % 4, told % 3]])
            file = f"{arm}-{user:03d}.png"
            Image.fromarray(render(codes)[0]).save(folder / file)
            noise = random.normal(scale=0.4)
            scores = {"true_utility": level * (skill if arm == "perfusion" else 1.0) + noise} if truth else {}
            rows.append({"arm": arm, "user_id": f"m{user:05d}", "prompt": prompt, "seed": 7, "file": file, **scores,
                         "perfusion_rm": 10 + level + noise, "aesthetic[twin]": 5 + noise / 9,
                         "slice_style": STYLES[style]})  # fmt: skip
    table = pd.DataFrame(rows)
    table.to_parquet(folder / "pictures.parquet")
    scorers = [name for name in ("true_utility", "perfusion_rm", "aesthetic[twin]") if name in table]
    wide = {arm: part.set_index("user_id") for arm, part in table.groupby("arm")}
    arms = {
        arm: {name: cluster_bootstrap(part[name], part.index, **OPTIONS).to_dict() for name in scorers}
        for arm, part in wide.items()
    }
    pairs = {
        f"{left} - {right}": {
            name: paired_difference(wide[left][name], wide[right][name], wide[left].index, **OPTIONS).to_dict()
            for name in scorers
        }
        for left, right in (("perfusion", "base"), ("perfusion", "dpo"), ("dpo", "base"), ("perfusion", "wrong_user"))
    }
    judge = scorers[0]
    swap = share_positive(wide["perfusion"][judge] - wide["wrong_user"][judge], wide["perfusion"].index)
    metrics = {"arms": arms, "paired": pairs, "user_swap_win_rate": swap.to_dict(), "pairs": 24}
    write_json(root / "work/metrics/evaluate-generator.json", metrics)


def _write_gates(root: Path) -> None:
    groups = pd.read_parquet(root / "work/evaluation/reward/groups.parquet")
    gain = paired_difference(groups["ap_perfusion_rm"], groups["ap_user_blind"], groups["user_id"], **OPTIONS)
    gates = [
        decide("data", [at_least("valid group records", 297, 100)], {"valid": 297}, {"min_groups": 100}),
        decide(
            "reward", [above("MAP gain over tuned PickScore", gain)], {"map_gain": gain.to_dict()}, {"confidence": 0.95}
        ),
        decide("load", [at_least("equal outputs", 1.0, 1.0)], {}, {}),
        decide("promotion", [above("true utility of PerFusion minus base", gain)], {"items": 24}, {}),
    ]
    write_json(root / "work/metrics/gates.json", {gate.gate: gate.to_dict() for gate in gates})
