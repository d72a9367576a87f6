"""Plant one of every defect that validation must find, in records that were clean.

The names of the defects are those of the validation rules that each of them breaks.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from datetime import datetime

import numpy as np
import pandas as pd
from PIL import Image

from perfusion.errors import DataError
from perfusion.seeding import derive_seed

__all__ = ["GROUP_DEFECTS", "plant"]

Images = Iterable[tuple[str, bytes]]
Row = dict[str, object]

_TOO_MANY = 40  # candidates, more than any limit in use
_LONG_PROMPT = "dress, " * 400


def _first(row: Row, count: int = 1) -> list[str]:
    ids = row["image_ids"]
    assert isinstance(ids, list)
    return ids[:count]


def _with_candidates(row: Row, image_ids: list[str | None]) -> Row:
    return {**row, "image_ids": image_ids, "picked": [place == 0 for place in range(len(image_ids))]}


# Each entry turns one clean group into one that breaks the rule it is named after.
GROUP_DEFECTS = {
    "user_known": lambda row: {**row, "user_id": "m-nobody"},
    "user_id_present": lambda row: {**row, "user_id": None},
    "record_id_present": lambda row: {**row, "record_id": None},
    "prompt_present": lambda row: {**row, "prompt": None},
    "prompt_words": lambda row: {**row, "prompt": ", ,"},
    "prompt_length": lambda row: {**row, "prompt": _LONG_PROMPT},
    "created_at_present": lambda row: {**row, "created_at": None},
    "created_at_range": lambda row: {**row, "created_at": datetime(1970, 1, 20)},
    "image_ids_present": lambda row: {**row, "image_ids": None},
    "candidates none": lambda row: _with_candidates(row, []),
    "candidates many": lambda row: _with_candidates(row, [f"{_first(row)[0]}-{place}" for place in range(_TOO_MANY)]),
    "picked_present": lambda row: {**row, "picked": None},
    "picked_complete": lambda row: {**row, "picked": [None, *list(row["picked"])[1:]]},
    "picked_length": lambda row: {**row, "picked": [*row["picked"], False]},
    "picked_length short": lambda row: {**row, "picked": list(row["picked"])[:-1]},
    "image_id_present": lambda row: _with_candidates(row, [None, *_first(row, 9)[1:]]),
    "image_once": lambda row: _with_candidates(row, [_first(row)[0], *_first(row, 9)[:-1]]),
    "image_stored": lambda row: _with_candidates(row, ["never-stored", *_first(row, 9)[1:]]),
    "image_stored traversal": lambda row: _with_candidates(row, ["../../etc/passwd", *_first(row, 9)[1:]]),
}
# Defects of a stored picture; the group that shows it breaks image_readable (or image_unambiguous).
_PICTURE_DEFECTS = ("undecodable", "truncated", "empty", "bomb", "ambiguous")


def plant(
    users: pd.DataFrame, groups: pd.DataFrame, images: Images, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame, Iterator[tuple[str, bytes]], list[dict[str, str]]]:
    """Spoil a few records of a clean dataset.

    Args:
        users, groups, images: the clean dataset; at least 40 groups and 4 users are needed.
        seed: decides which records are spoiled.

    Returns:
        users, groups and images with defects, and what was planted: {"table", "rule", "id"} of each, where `id` is a
        record, user or image id. The rule's first word is the name of the validation rule.

    Raises:
        DataError: the dataset is too small to hold every defect in a record of its own.
    """
    picture_users = len(_PICTURE_DEFECTS)
    needed = len(GROUP_DEFECTS) + picture_users + 2
    if len(groups) < 2 * needed or len(users) < 4:
        raise DataError(
            f"{len(groups)} groups of {len(users)} users: dirt needs {2 * needed} groups and 4 users; add users"
        )
    random = np.random.default_rng(derive_seed(seed, "world", "dirt"))
    chosen = iter(random.permutation(len(groups))[:needed].tolist())
    rows: list[Row] = [dict(row) for row in groups.to_dict("records")]
    planted: list[dict[str, str]] = []
    for rule, spoil in GROUP_DEFECTS.items():
        place = next(chosen)
        planted.append({"table": "groups", "rule": rule, "id": str(rows[place]["record_id"])})
        rows[place] = spoil(rows[place])
    spoiled: dict[str, str] = {}
    for defect in _PICTURE_DEFECTS:
        row = rows[next(chosen)]
        spoiled[_first(row)[0]] = defect
        rule = "image_unambiguous" if defect == "ambiguous" else "image_readable"
        planted.append({"table": "groups", "rule": f"{rule} {defect}", "id": str(row["record_id"])})
        planted.append({"table": "images", "rule": f"image_{defect}", "id": _first(row)[0]})
    repeated, shared = rows[next(chosen)], rows[next(chosen)]
    rows += [dict(repeated), {**shared, "prompt": "top, v-neck"}]
    planted.append({"table": "groups", "rule": "record_repeated", "id": str(repeated["record_id"])})
    planted.append({"table": "groups", "rule": "record_id_unique", "id": str(shared["record_id"])})
    users, found = _spoil_users(users)
    return users, pd.DataFrame(rows, columns=groups.columns), _spoil_images(images, spoiled), planted + found


def _spoil_users(users: pd.DataFrame) -> tuple[pd.DataFrame, list[dict[str, str]]]:
    """New users, so that no clean group loses its own: no name, an infinite number, twice the same, an unseen one."""
    last = users.iloc[-1].to_dict()
    new = [
        {**last, "user_id": None},
        {**last, "user_id": "m-infinite", "followers_log10": float("inf")},
        {**last, "user_id": "m-twice"},
        {**last, "user_id": "m-twice"},
        {**last, "user_id": "m-unseen", "style": "steampunk"},
    ]
    planted = [
        {"table": "users", "rule": "user_id_present", "id": "None"},
        {"table": "users", "rule": "feature_finite", "id": "m-infinite"},
        {"table": "users", "rule": "user_repeated", "id": "m-twice"},
        {"table": "users", "rule": "unseen category", "id": "m-unseen"},
    ]
    return pd.concat([users, pd.DataFrame(new, columns=users.columns)], ignore_index=True), planted


def _spoil_images(images: Images, spoiled: dict[str, str]) -> Iterator[tuple[str, bytes]]:
    for image_id, data in images:
        defect = spoiled.get(image_id)
        if defect == "undecodable":
            yield image_id, b"this was never a picture"
        elif defect == "truncated":
            yield image_id, data[: len(data) // 2]
        elif defect == "empty":
            yield image_id, b""
        elif defect == "bomb":
            yield image_id, _bomb()
        else:
            yield image_id, data
        if defect == "ambiguous":
            yield image_id, _other()


def _bomb() -> bytes:
    """A few kilobytes that decode to 400 megapixels."""
    buffer = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(buffer, "PNG", compress_level=9)
    return buffer.getvalue()


def _other() -> bytes:
    """A picture that is nobody's garment."""
    buffer = io.BytesIO()
    Image.new("RGB", (48, 48), (10, 200, 90)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
