"""Which pictures stand on a contact sheet, and what is written beside them: chosen by name, never by merit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from perfusion.evaluation.arms import Arm
from perfusion.evaluation.images import ContactSheet, draw_sheet
from perfusion.evaluation.picture_metrics import headline_judge
from perfusion.seeding import derive_seed

__all__ = ["merchants_sheet", "traits", "users_sheet"]

#: arm -> heading, in the order of the columns.
COLUMNS = {"base": "Base", "dpo": "DPO", "perfusion": "PerFusion"}
_SEEDS = 3  # rows of the merchants' sheet
_TRAITS = 4  # features shown of a user
_SEED_BITS = 31


def users_sheet(rows: pd.DataFrame, pixels: Mapping[str, Tensor], count: int) -> Image.Image:
    """Rows = users with their prompt, columns = base, DPO, PerFusion from the same noise; the judge's score below.

    Args:
        rows: of `score_pictures`.
        pixels: arm -> (I, 3, S, S).
        count: rows of the sheet: the first items, one of each user.
    """
    arms = [arm for arm in COLUMNS if arm in pixels]
    judge = headline_judge(rows)
    first = rows[rows["arm"] == arms[0]].drop_duplicates("user_id").head(count)
    scores = rows.set_index(["item", "arm"])[judge]
    items = first["item"].tolist()
    return draw_sheet(ContactSheet(
        title=f"The same prompt and noise; below each picture: {judge.replace('_', ' ')}",
        columns=[[COLUMNS[arm]] for arm in arms],
        rows=[_label(row) for _, row in first.iterrows()],
        pictures=[[pixels[arm][item] for arm in arms] for item in items],
        captions=[[f"{scores[item, arm]:+.2f}" for arm in arms] for item in items],
    ))  # fmt: skip


def merchants_sheet(
    arms: Mapping[str, Arm], items: pd.DataFrame, users: pd.DataFrame, count: int, seed: int
) -> Image.Image:
    """One prompt for several users: columns = users, the base first; rows = noise.

    Args:
        arms: `base` and `perfusion`.
        items: of `with_slices`; the prompt that most users asked, the users by how different they are.
        users: users.parquet.
        count: users at most.
        seed: of the noise.
    """
    prompt = items.groupby("prompt")["user_id"].nunique().sort_index().idxmax()
    chosen = _most_different(items.drop_duplicates("user_id"), count)
    seeds = [derive_seed(seed, number) % 2**_SEED_BITS for number in range(_SEEDS)]
    known = users.set_index("user_id", drop=False)
    columns = [("base", arms["base"], chosen.index[0])] + [(user, arms["perfusion"], user) for user in chosen.index]
    drawn = []
    for _, arm, user in columns:
        people = known.loc[[user] * _SEEDS].reset_index(drop=True)
        drawn.append(arm([prompt] * _SEEDS, people, seeds))
    pixels = torch.stack(drawn, dim=1)  # (seeds, columns, 3, S, S)
    return draw_sheet(ContactSheet(
        title=f'One prompt, {len(chosen)} merchants: "{prompt}"',
        columns=[["Base"], *([str(user), *traits(row)] for user, row in chosen.iterrows())],
        rows=[[f"noise {number + 1}", "the same in the whole row"] for number in range(_SEEDS)],
        pictures=[list(row) for row in pixels],
        captions=[["" for _ in columns] for _ in seeds],
    ))  # fmt: skip


def traits(row: pd.Series) -> list[str]:
    """What is known about an item's user, from the `slice_*` columns in the order of the users' table."""
    names = [name for name in row.index if name.startswith("slice_")][:_TRAITS]
    return [str(row[name]) for name in names]


def _label(row: pd.Series) -> Sequence[str]:
    return [f"{row['user_id']}: {row['prompt']}", ", ".join(traits(row))]


def _most_different(people: pd.DataFrame, count: int) -> pd.DataFrame:
    """Greedily the users who share fewest features with those already chosen; index = user_id."""
    people = people.set_index("user_id")
    features = people[[name for name in people if name.startswith("slice_")]]
    chosen = [features.index[0]]
    while len(chosen) < min(count, len(features)):
        shared = sum((features == features.loc[user]).sum(axis=1) for user in chosen)
        chosen.append(shared.drop(chosen).idxmin() if len(features.columns) else features.index[len(chosen)])
    return people.loc[chosen]
