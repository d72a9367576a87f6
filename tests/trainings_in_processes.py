"""Short trainings of the reward models and of the generator, shared by the processes of a launcher or in one.

`accelerate launch --multi_gpu --num_processes 2 tests/trainings_in_processes.py HOME OUT` runs `train_all` in two;
tests call it for one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from small_generator import SIZE, TWIN, generator, group_table, make_home, preferences

from perfusion.config import ClipConfig, OptimiserConfig, PickScoreConfig, RewardConfig
from perfusion.distributed import ALONE, Processes, joined
from perfusion.generation.train import train_dpo, train_generator
from perfusion.loop import TrainingRun
from perfusion.reward import train_pickscore, train_reward, twin

__all__ = ["HALF", "STEPS", "TRAININGS", "make_models", "train_all", "train_one"]

STEPS, HALF = 6, 3
#: (stage, micro-batches a step) of every training.
TRAININGS = (("pickscore", 2), ("reward", 2), ("dpo", 3), ("generator", 2))
TABLES = {"train": group_table(), "valid": group_table(6)}


def make_models(home: Path) -> None:
    """Backbones of random or hardly trained weights, encoded pictures, and a DPO arm."""
    make_home(home)
    torch.manual_seed(0)
    shape = ClipConfig(width=16, layers=1, heads=2, patch=8, projection=8)
    twin(sorted({phrase for prompt in TABLES["train"].prompts for phrase in prompt.split(", ")}), SIZE, shape).save(
        home / "clip"
    )


def train_one(
    home: Path, out: Path, stage: str, micro_batches: int, processes: Processes, steps: int = STEPS,
    state: Path | None = None,
) -> list[dict[str, float]]:  # fmt: skip
    """Train `stage` into `out`; the metrics of every step, where this process logs."""
    curve: list[dict[str, float]] = []
    optimiser = OptimiserConfig(
        steps=steps, lr=3e-3, accumulate=micro_batches, schedule="constant", log_every=1, grad_clip=0.05
    )  # fmt: skip
    log: Callable[[int, dict[str, float]], None] = lambda step, metrics: curve.append({"step": step, **metrics})  # noqa: E731
    run = TrainingRun(stage, 0, state, "key", processes=processes, on_metrics=log if processes.leads else None)
    arm: dict[str, Any] = {"optimiser": optimiser, "batch_groups": 3}
    if stage == "pickscore":
        train_pickscore(TABLES, home / "clip", PickScoreConfig(evaluate_every=4, **arm), out, run)
    elif stage == "reward":
        config = RewardConfig(
            evaluate_every=4, embedding_dim=4, adaptive_hidden=8, feature_dropout=0.2, keep="last", **arm
        )
        train_reward(TABLES, home / "clip", config, out, run)
    elif stage == "generator":
        config = generator(unknown_dropout=0.3, user_lr_factor=3.0, terminal_groups=1, **arm)
        train_generator(TABLES, home / "encode", home / "diffusion", home / "dpo", config, TWIN.sampling, out, run)
    else:
        train_dpo(TABLES, home / "encode", home / "diffusion", preferences(**arm), out, run)
    return curve


def train_all(home: Path, out: Path, processes: Processes) -> None:
    """Every training whole, one from the state in HOME/state, and half of one that leaves its state in OUT/state.

    Only the first process writes to `out`: a folder and a curve, NAME.json, for each.
    """

    def do(name: str, stage: str, micro_batches: int, **options: Any) -> None:
        folder = out / name if processes.leads else out / f"discarded-{processes.rank}"
        curve = train_one(home, folder, stage, micro_batches, processes, **options)
        if processes.leads:
            (out / f"{name}.json").write_text(json.dumps(curve))

    for stage, micro_batches in TRAININGS:
        do(f"{stage}-{micro_batches}", stage, micro_batches)
    for stage in ("reward", "generator"):
        do(f"{stage}-resumed", stage, 2, state=home / "state")
        do(f"{stage}-half", stage, 2, steps=HALF, state=out / "state")


if __name__ == "__main__":
    torch.set_num_threads(1)
    with joined() as shared:
        assert shared != ALONE
        train_all(Path(sys.argv[1]), Path(sys.argv[2]), shared)
