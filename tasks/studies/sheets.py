"""A contact sheet of a study: the same users, prompts and noise, drawn by each of its systems."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from perfusion.evaluation.images import ContactSheet, draw_sheet, to_png
from tasks.studies.place import Studies
from tasks.studies.systems import DRAWN

__all__ = ["study_sheet"]

_ROWS = 6


def study_sheet(studies: Studies, name: str) -> bytes | None:
    """The sheet as PNG, from each system's first seed; None for a study that draws nothing."""
    measured = [one for one in studies.plan.measured[name] if one.seed == 0 and one.system in DRAWN]
    if not measured:
        return None
    tables, folders = {}, {}
    for one in measured:
        file = studies.place.root / one.file
        rows = pd.read_parquet(file)
        tables[one.system] = (rows if one.arm is None else rows[rows["arm"] == one.arm]).set_index("item")
        folders[one.system] = file.parent
    first = next(iter(tables.values()))
    items = first.drop_duplicates("user_id").head(_ROWS).index.tolist()
    judge = "true_utility" if "true_utility" in first else "perfusion_rm"
    pictures = [[_picture(folders[name] / rows.loc[item, "file"]) for name, rows in tables.items()] for item in items]
    captions = [[f"{rows.loc[item, judge]:+.2f}" for rows in tables.values()] for item in items]
    labels = [[f"{first.loc[item, 'user_id']}: {first.loc[item, 'prompt']}"] for item in items]
    sheet = ContactSheet(
        title=f"The same prompt and noise; below each picture: {judge.replace('_', ' ')}",
        columns=[[DRAWN[name].title] for name in tables], rows=labels, pictures=pictures, captions=captions,
    )  # fmt: skip
    return to_png(draw_sheet(sheet))


def _picture(file: Path) -> Tensor | None:
    """(3, S, S) uint8; None where this item's picture was not kept."""
    if not file.exists():
        return None
    with Image.open(file) as image:
        return torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8).view(
            image.height, image.width, 3
        ).permute(2, 0, 1)  # fmt: skip
