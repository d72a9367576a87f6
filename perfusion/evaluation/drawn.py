"""Items drawn with every arm, and every scorer on every picture.

Shapes: I items (user, prompt, seed), A arms.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from perfusion.evaluation.arms import Arm
from perfusion.progress import Progress
from perfusion.scorers import Scorer
from perfusion.scorers.true_utility import TrueUtility

__all__ = ["Drawn", "costs", "draw", "judge_pictures", "peak_mib", "score_column", "score_pictures"]

_SCORE_BATCH = 64


@dataclass(frozen=True)
class Drawn:
    """One arm's pictures.

    Attributes:
        pixels: (I, 3, S, S) uint8.
        seconds: for one picture.
    """

    pixels: Tensor
    seconds: float


def draw(
    arms: Mapping[str, Arm], items: pd.DataFrame, users: pd.DataFrame, batch: int, told: bool = True
) -> dict[str, Drawn]:  # fmt: skip
    """Draw every item with every arm, and with the `perfusion` arm once more for another user: "wrong_user".

    Args:
        arms: by name.
        items: of `choose_items`.
        users: users.parquet.
        batch: pictures at a time; a picture does not depend on its batch, because every picture has its own noise.
        told: whether progress is.
    """
    plan = {name: (arm, "user_id") for name, arm in arms.items()}
    if "perfusion" in arms:
        plan["wrong_user"] = (arms["perfusion"], "wrong_user_id")
    progress = Progress("evaluate-generator draw", len(plan) * len(items))
    known = users.set_index("user_id", drop=False)
    drawn = {}
    for number, (name, (arm, column)) in enumerate(plan.items()):
        began, parts = time.perf_counter(), []
        for start in range(0, len(items), batch):
            part = items.iloc[start : start + batch]
            rows = known.loc[part[column]].reset_index(drop=True)
            parts.append(arm(part["prompt"].tolist(), rows, part["seed"].tolist()))
            if told:
                progress.show(number * len(items) + start + len(part), {})
        drawn[name] = Drawn(torch.cat(parts), (time.perf_counter() - began) / len(items))
    return drawn


def score_pictures(
    drawn: Mapping[str, Drawn], items: pd.DataFrame, users: pd.DataFrame, scorers: Mapping[str, Scorer],
    judge: TrueUtility | None, first: int = 0, told: bool = True,
) -> pd.DataFrame:  # fmt: skip
    """Every scorer on every picture, always for the item's own user, whoever it was drawn for.

    Args:
        first: the number of the first item.
        told: whether progress is.

    Returns:
        A rows for each item: the item's columns, `item`, `arm`, `file`, one column a scorer, and the judge's columns.
    """
    names = list(drawn)
    pixels = torch.stack([drawn[name].pixels for name in names], dim=1)  # (I, A, 3, S, S)
    scores = {name: _scored(scorer, items, pixels, users, told) for name, scorer in scorers.items()}
    tables = []
    for place, arm in enumerate(names):
        table = items.reset_index(drop=True).assign(item=range(first, first + len(items)), arm=arm)
        table["file"] = [f"pictures/{number:05d}-{arm}.png" for number in table["item"]]
        for name, values in scores.items():
            table[name] = values[:, place].numpy()
        if judge is not None:
            table = table.join(judge_pictures(judge, table, pixels[:, place]))
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def judge_pictures(judge: TrueUtility, table: pd.DataFrame, pixels: Tensor) -> pd.DataFrame:
    """The planted truth's columns for one arm's pictures, (I, 3, S, S)."""
    return judge.judge(table["user_id"].tolist(), table["prompt"].tolist(), pixels)


def peak_mib() -> float:
    """The largest memory of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def costs(drawn: Mapping[str, Drawn], memory: float | None = None) -> dict[str, float]:
    """What drawing took: seconds a picture of each arm, and the largest memory of the process that drew, MiB.

    Args:
        memory: of that process; None for this one's so far.
    """
    seconds = {f"seconds_per_picture_{name}": arm.seconds for name, arm in drawn.items()}
    memory = peak_mib() if memory is None else memory
    return {"seconds_per_picture": drawn["perfusion"].seconds, "memory_mib": memory, **seconds}


def score_column(scorer: Scorer, items: pd.DataFrame, pixels: Tensor, users: pd.DataFrame) -> Tensor:
    """One scorer's (I,) numbers for one picture of each item, (I, 3, S, S)."""
    return _scored(scorer, items, pixels[:, None], users)[:, 0]


def _scored(
    scorer: Scorer, items: pd.DataFrame, pixels: Tensor, users: pd.DataFrame, told: bool = True
) -> Tensor:  # fmt: skip
    """(I, A) scores of (I, A, 3, S, S); a personal scorer encodes the items' users by its own features."""
    prompts = items["prompt"].tolist()
    codes = None
    if scorer.encoder is not None:
        codes = scorer.encoder.transform(users.set_index("user_id", drop=False).loc[items["user_id"]])
    progress = Progress(f"evaluate-generator {scorer.name}", len(pixels))
    parts = []
    for start in range(0, len(pixels), _SCORE_BATCH):
        rows = slice(start, start + _SCORE_BATCH)
        parts.append(scorer.score(prompts[rows], pixels[rows], None if codes is None else codes[rows]))
        if told:
            progress.show(min(start + _SCORE_BATCH, len(pixels)), {})
    return torch.cat(parts)
