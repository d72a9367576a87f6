"""What systems cost, measured side by side in one process: seconds of a training step and of a picture (Table 4).

Only ratios within a run mean something: rounds of all systems alternate, so that whatever else the machine does falls
on each of them alike, and ratios are taken within a round.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from perfusion.config import Params, PreferenceConfig
from perfusion.data import GroupTable
from perfusion.evaluation.arms import Arm, load_arm
from perfusion.generation import train_dpo, train_generator, train_sft
from perfusion.loop import TrainingRun

__all__ = ["SYSTEMS", "cost_study", "ratios", "step_seconds"]

#: Systems of Table 4; the first is what the others are compared with.
SYSTEMS = ("diffusion", "dpo", "perfusion")
_GROUPS = 6  # groups of a PerFusion step; the other systems take as many pictures


def cost_study(
    tables: Mapping[str, GroupTable], users: pd.DataFrame, encoded_dir: Path, diffusion_dir: Path, dpo_dir: Path,
    generator_dir: Path, params: Params, *, rounds: int, steps: int, pictures: int,
) -> pd.DataFrame:  # fmt: skip
    """Time training steps on the same number of pictures, and the drawing of pictures.

    Args:
        tables: of a dataset.
        users: its users.parquet.
        encoded_dir, diffusion_dir, dpo_dir, generator_dir: folders of the retraining's stages.
        params: sections `sft`, `dpo`, `generator`; batches are set to the same number of pictures.
        rounds: how often all systems take their turn.
        steps: training steps a turn; the first is not counted.
        pictures: drawn a turn.

    Returns:
        One row a round, system and `what` ("train" or "draw"): `seconds` of a training step, or of a picture.
    """
    arms = {
        "diffusion": load_arm(diffusion_dir, diffusion_dir / "unet", generator_dir, params.evaluate.steps),
        "dpo": load_arm(diffusion_dir, dpo_dir, generator_dir, params.evaluate.steps),
        "perfusion": load_arm(diffusion_dir, generator_dir, generator_dir, params.evaluate.steps),
    }
    training = _trainings(tables, encoded_dir, diffusion_dir, dpo_dir, params, steps)
    rows = []
    for turn in range(rounds):
        for system in SYSTEMS:
            rows.append({"round": turn, "system": system, "what": "train", "seconds": step_seconds(training[system])})
            drawn = _seconds_per_picture(arms[system], tables["train"], users, pictures)
            rows.append({"round": turn, "system": system, "what": "draw", "seconds": drawn})
    return pd.DataFrame(rows)


def ratios(rows: pd.DataFrame) -> pd.DataFrame:
    """Each system's time over the first system's, within each round: columns `what`, `system`, `round`, `ratio`."""
    table = rows.pivot_table(index=["what", "round"], columns="system", values="seconds")
    relative = table.div(table[SYSTEMS[0]], axis=0)
    return relative.stack().rename("ratio").reset_index()


def step_seconds(train: Callable[[TrainingRun, Path], object]) -> float:
    """Median seconds of a training step, by the clock at which steps report; the first is left out.

    Args:
        train: runs a training that logs every step, into a folder.
    """
    told: list[float] = []
    run = TrainingRun("cost", 0, on_metrics=lambda step, metrics: told.append(time.perf_counter()))
    with tempfile.TemporaryDirectory() as folder:
        train(run, Path(folder))
    return float(pd.Series(told).diff().iloc[1:].median())


def _trainings(
    tables: Mapping[str, GroupTable], encoded_dir: Path, diffusion_dir: Path, dpo_dir: Path, params: Params, steps: int
) -> dict[str, Callable[[TrainingRun, Path], object]]:
    """A short training of each system, all with the same number of pictures a step."""
    size = round(float(tables["train"].valid.sum(1).double().mean()))

    def short(section: Any, groups: int) -> Any:
        optimiser = section.optimiser.model_copy(update={"steps": steps, "log_every": 1, "accumulate": 1})
        update: dict[str, Any] = {"optimiser": optimiser, "batch_groups": groups, "terminal_groups": 0}
        return section.model_copy(update=update)

    sft: PreferenceConfig = short(params.sft, _GROUPS * size)
    dpo: PreferenceConfig = short(params.dpo, _GROUPS * size // 2)
    perfusion = short(params.generator, _GROUPS)

    def diffusion(run: TrainingRun, out: Path) -> object:
        return train_sft(tables, encoded_dir, diffusion_dir, sft, out, run)

    def pairs(run: TrainingRun, out: Path) -> object:
        return train_dpo(tables, encoded_dir, diffusion_dir, dpo, out, run)

    def group(run: TrainingRun, out: Path) -> object:
        sampling = params.diffusion.sampling
        return train_generator(tables, encoded_dir, diffusion_dir, dpo_dir, perfusion, sampling, out, run)

    return {"diffusion": diffusion, "dpo": pairs, "perfusion": group}


def _seconds_per_picture(arm: Arm, table: GroupTable, users: pd.DataFrame, pictures: int) -> float:
    """Seconds for one of several pictures drawn together, for the users and prompts of the first groups."""
    rows = [row % len(table) for row in range(pictures)]
    asked = [table.user_ids[int(table.user_index[row])] for row in rows]
    people = users.set_index("user_id", drop=False).loc[asked].reset_index(drop=True)
    began = time.perf_counter()
    arm([table.prompts[row] for row in rows], people, list(range(pictures)))
    return (time.perf_counter() - began) / pictures
