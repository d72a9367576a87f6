"""Pictures on a page: bytes inside the page itself, and which of a run's pictures to show beside each other."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from perfusion.seeding import derive_seed
from tasks.reporting_record import ReportError, RunRecord
from tasks.reporting_words import ARMS

__all__ = ["ITEM", "contact_sheet", "data_uri", "picture_cell", "traits"]

#: What identifies one generation task: every arm drew it from the same noise.
ITEM = ("user_id", "prompt", "seed")
SHEET_PROMPTS, SHEET_USERS, SHEET_ROWS = 2, 4, 10
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
    """Rows = merchants, columns = arms; prompts that several merchants asked first, so that one shows several tastes.

    Rows are chosen by name, never by merit.

    Returns:
        {"arms": [{name, note}], "blocks": [{prompt, rows: [{user, prompt, traits, cells}]}]}, where the last block may
        hold merchants with a prompt each (its own prompt is None); None without pictures.
    """
    pictures = record.pictures
    if pictures is None or pictures.empty:
        return None
    arms = [arm for arm in ARMS if (pictures["arm"] == arm).any()]
    blocks = _chosen(pictures)
    by_item = {item: part for item, part in pictures.groupby(list(ITEM))}  # noqa: C416 (a GroupBy is no mapping)
    return {
        "arms": [{"name": ARMS[arm][0], "note": ARMS[arm][2]} for arm in arms],
        "blocks": [
            {"prompt": prompt, "rows": [_row(record, by_item, item, arms) for item in rows.itertuples()]}
            for prompt, rows in blocks
        ],
    }


def _chosen(pictures: pd.DataFrame) -> list[tuple[str | None, pd.DataFrame]]:
    """Items to show, by prompt; the last block holds merchants whose prompt nobody else shown asked."""
    items = pictures.drop_duplicates(["user_id", "prompt"])[["user_id", "prompt", "seed"]]
    names = zip(items["user_id"], items["prompt"], strict=True)
    items = items.assign(turn=[derive_seed(0, user, prompt) for user, prompt in names]).sort_values("turn")
    asked = items.groupby("prompt").size().clip(upper=SHEET_USERS)
    shared = sorted(asked[asked > 1].index, key=lambda prompt: (-asked[prompt], prompt))[:SHEET_PROMPTS]
    blocks: list[tuple[str | None, pd.DataFrame]] = [
        (prompt, items[items["prompt"] == prompt].head(SHEET_USERS)) for prompt in shared
    ]
    left = max(0, SHEET_ROWS - sum(len(rows) for _, rows in blocks))
    others = items[~items["prompt"].isin(shared)].drop_duplicates("user_id").head(left)
    return [*blocks, (None, others)] if len(others) else blocks


def _row(record: RunRecord, by_item: Mapping[Any, pd.DataFrame], item: Any, arms: Sequence[str]) -> dict[str, Any]:
    one = by_item[(item.user_id, item.prompt, item.seed)]
    cells = [_first(record, one[one["arm"] == arm]) for arm in arms]
    return {"user": item.user_id, "prompt": item.prompt, "traits": traits(one), "cells": cells}


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
