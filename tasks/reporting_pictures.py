"""Pictures on a page: bytes inside the page itself, and which of a run's pictures to show beside each other."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from tasks.reporting_record import ReportError, RunRecord
from tasks.reporting_words import ARMS

__all__ = ["ITEM", "contact_sheet", "data_uri", "picture_cell", "traits"]

#: What identifies one generation task: every arm drew it from the same noise.
ITEM = ("user_id", "prompt", "seed")
SHEET_PROMPTS, SHEET_USERS = 3, 4
_TYPES = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"RIFF": "image/webp"}


def data_uri(file: Path) -> str:
    """The file's bytes as a URI, so that the page needs no other file.

    Raises:
        ReportError: the file is absent or no picture.
    """
    if not file.exists():
        raise ReportError(f"{file}: picture is absent\nremedy: run the stage evaluate-generator again")
    content = file.read_bytes()
    kind = next((kind for magic, kind in _TYPES.items() if content.startswith(magic)), None)
    if kind is None:
        raise ReportError(f"{file}: neither PNG, JPEG nor WebP\nremedy: run the stage evaluate-generator again")
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def contact_sheet(record: RunRecord) -> dict[str, Any] | None:
    """Rows = merchants, columns = arms; the prompts with most merchants first, so that one prompt shows several tastes.

    Returns:
        {"arms": [{name, note}], "blocks": [{prompt, rows: [{user, traits, cells}]}]}; None without pictures.
    """
    pictures = record.pictures
    if pictures is None or pictures.empty:
        return None
    arms = [arm for arm in ARMS if (pictures["arm"] == arm).any()]
    users = pictures.groupby("prompt")["user_id"].nunique().rename("users").reset_index()
    prompts = users.sort_values(["users", "prompt"], ascending=[False, True])["prompt"].head(SHEET_PROMPTS)
    blocks = [_block(record, pictures[pictures["prompt"] == prompt], prompt, arms) for prompt in prompts]
    return {"arms": [{"name": ARMS[arm][0], "note": ARMS[arm][2]} for arm in arms], "blocks": blocks}


def _block(record: RunRecord, pictures: pd.DataFrame, prompt: str, arms: Sequence[str]) -> dict[str, Any]:
    rows = []
    for user, mine in list(pictures.groupby("user_id", sort=True))[:SHEET_USERS]:
        seed = mine["seed"].min()
        one = mine[mine["seed"] == seed]
        cells = [_first(record, one[one["arm"] == arm]) for arm in arms]
        rows.append({"user": user, "traits": traits(one), "cells": cells})
    return {"prompt": prompt, "rows": rows}


def _first(record: RunRecord, rows: pd.DataFrame) -> dict[str, Any] | None:
    return None if rows.empty else picture_cell(record, rows.iloc[0])


def picture_cell(record: RunRecord, row: pd.Series) -> dict[str, Any]:
    """One picture with the judge's number under it."""
    judge = "true_utility" if "true_utility" in row and pd.notna(row["true_utility"]) else "perfusion_rm"
    value = float(row[judge]) if judge in row and pd.notna(row[judge]) else None
    drawn = judge == "true_utility"  # only the planted marketplace, which is drawn, has a truth
    return {"uri": data_uri(record.picture_file(row["file"])), "value": value, "judge": judge, "drawn": drawn}


def traits(rows: pd.DataFrame) -> str:
    """What is known about the merchant, from the `slice_*` columns."""
    names = [name for name in rows if name.startswith("slice_")]
    return ", ".join(str(rows.iloc[0][name]) for name in names)
