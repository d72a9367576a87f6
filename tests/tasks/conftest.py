"""A run's work folder as the stages leave it, made from random scores by the real statistics."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from perfusion.data import FeatureEncoder, GroupTable
from perfusion.evaluation.picture_metrics import generator_metrics
from perfusion.evaluation.reward import feature_slices, group_rows, reward_metrics
from perfusion.governance.checks import above
from perfusion.governance.decision import at_least, decide
from perfusion.statistics import paired_difference
from perfusion.world import render

USERS, ITEMS, GROUPS, CANDIDATES = 40, 24, 6, 5
SKILL = {"random": 0.0, "clip": 0.7, "user_blind": 1.0, "wrong_user": 0.7, "perfusion_rm": 2.6}
ARMS = {"base": 0.0, "sft": 0.15, "dpo": 0.2, "perfusion": 2.2, "wrong_user": 0.9}
STYLES = ("minimalist", "romantic", "streetwear", "classic")
CEILINGS = {"user_blind_oracle": 1.3, "reachable": 3.4, "full_oracle": 9.0}
OPTIONS = {"confidence": 0.95, "resamples": 200, "seed": 0, "min_clusters": 20}


@pytest.fixture(scope="session")
def made_runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that gives the one folder of a kind of run; not to be written to."""
    place = tmp_path_factory.mktemp("runs")

    @cache
    def made(seed: int, truth: bool, skill: float) -> Path:
        return write_run(place / f"{seed}-{truth}-{skill}", seed, truth, skill)

    return made


@pytest.fixture
def make_run(tmp_path: Path, made_runs: Callable[..., Path]) -> Callable[..., Path]:
    """A function that gives a workspace of one's own, as a run leaves it."""

    def make(name: str = "run", *, seed: int = 0, truth: bool = True, skill: float = 1.0) -> Path:
        return Path(shutil.copytree(made_runs(seed, truth, skill), tmp_path / name))

    return make


def write_run(root: Path, seed: int, truth: bool, skill: float) -> Path:
    """Write a workspace's work folder and parameters, and return the workspace."""
    _write_data(root)
    _write_reward(root, np.random.default_rng([seed, 1]), truth, skill)
    _write_generator(root, np.random.default_rng([seed, 2]), truth, skill)
    _write_gates(root)
    (root / "params.yaml").write_text(f"name: perfusion\nseed: {seed}\nreward: {{cross_layers: 2}}\n")
    write_json(root / "work/metrics/seconds.json", {"validate": 2.1, "reward": 75.3, "generator": 280.0, "clip": 91.0})
    versions = {"perfusion-reward": 3, "perfusion-generator": 3}
    outcome = {"status": "promoted", "reasons": [], "run_id": "0a1b2c", "versions": versions}
    write_json(root / "work/outcome.json", outcome)
    log = [{"key": "k"}] + [
        {"run": "reward", "step": step, "of": 450, "metrics": {"loss": 2.4 / (1 + step / 90) + 0.8, "lr": 3e-3}}
        for step in range(10, 451, 10)
    ]
    (root / "work/logs").mkdir()
    (root / "work/logs/reward.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    return root


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
    tables, scores, references = {}, {}, {}
    for split, users in (("test", USERS), ("cold", 24), ("few", 4)):
        table, taste = _groups(split, users, random)
        tables[split] = table
        scores[split] = {
            name: _noisy(level * (skill if name == "perfusion_rm" else 1.0), taste, random)
            for name, level in SKILL.items()
        }
        if truth and split == "test":
            references[split] = {name: _noisy(level, taste, random).numpy() for name, level in CEILINGS.items()}
    rows = group_rows(tables, scores, references)
    metrics = reward_metrics(tables, scores, rows, references.get("test", {}), OPTIONS)
    folder = root / "work/evaluation/reward"
    folder.mkdir(parents=True)
    rows.to_parquet(folder / "groups.parquet")
    people = pd.DataFrame({"user_id": [user_name(u) for u in range(USERS)], "style": np.resize(STYLES, USERS)})
    feature_slices(rows, people, OPTIONS).to_parquet(folder / "slices.parquet")
    write_json(root / "work/metrics/evaluate-reward.json", metrics)


def _groups(split: str, users: int, random: np.random.Generator) -> tuple[GroupTable, torch.Tensor]:
    """Groups without pictures, and what their users think of the candidates, (G, N)."""
    count = users * GROUPS
    taste = torch.from_numpy(random.normal(size=(count, CANDIDATES)))
    table = GroupTable(
        pixels=torch.zeros(1, 3, 1, 1, dtype=torch.uint8),
        image_index=torch.zeros(count, CANDIDATES, dtype=torch.int64),
        valid=torch.ones(count, CANDIDATES, dtype=torch.bool), picked=taste == taste.amax(1, keepdim=True),
        user_index=torch.arange(users).repeat_interleave(GROUPS), users=torch.zeros(users, 1, dtype=torch.int64),
        prompts=["dress"] * count, record_ids=[f"{split}-{row}" for row in range(count)],
        user_ids=[user_name(u) for u in range(users)], encoder=FeatureEncoder.fit(pd.DataFrame({"user_id": ["m"]})),
        image_ids=["i"],
    )  # fmt: skip
    return table, taste


def _noisy(level: float, taste: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
    return level * taste + torch.from_numpy(random.normal(size=tuple(taste.shape)))


def _write_generator(root: Path, random: np.random.Generator, truth: bool, skill: float) -> None:
    folder = root / "work/evaluation/generator"
    (folder / "pictures").mkdir(parents=True)
    rows = []
    for user in range(ITEMS):
        prompt = ("dress, v-neck, slim-fit", "coat, long sleeves, round-neck")[user % 2]
        style = user % len(STYLES)
        for arm, level in ARMS.items():
            told = {"perfusion": style + round(skill) - 1, "wrong_user": style + 1}.get(arm, user % 7)
            codes = np.array([[0 if user % 2 == 0 else 2, 0, 2, 0, told % 8, (told * 3) % 5, told % 4, told % 3]])
            file = f"pictures/{user:05d}-{arm}.png"
            Image.fromarray(render(codes)[0]).save(folder / file)
            noise = random.normal(scale=0.4)
            scores = {"true_utility": level * (skill if arm == "perfusion" else 1.0) + noise} if truth else {}
            rows.append({"item": user, "arm": arm, "user_id": user_name(user), "prompt": prompt, "seed": 7,
                         "file": file, **scores, "perfusion_rm": 10 + level + noise, "aesthetic[twin]": 5 + noise / 9,
                         "slice_style": STYLES[style]})  # fmt: skip
    table = pd.DataFrame(rows)
    table.to_parquet(folder / "pictures.parquet")
    Image.fromarray(render(np.zeros((1, 8), dtype=int))[0]).save(folder / "merchants_sheet.png")
    costs = {"seconds_per_picture": 0.4, "memory_mib": 900.0}
    metrics = generator_metrics(table, OPTIONS, costs, dict.fromkeys(ARMS, 0.3))
    write_json(root / "work/metrics/evaluate-generator.json", metrics)


def user_name(number: int) -> str:
    return f"m{number:05d}"


def _write_gates(root: Path) -> None:
    groups = pd.read_parquet(root / "work/evaluation/reward/groups.parquet")
    groups = groups[groups["split"] == "test"]
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
