"""Views of a split: the same records with some of what is known left out, so that one thing can be compared alone.

A view is a folder like the split's own (users.parquet, groups.parquet with a column `split`); nobody who reads it has
to know that it is one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pandas as pd

from perfusion.data.layout import read_groups, read_users, write_table
from perfusion.errors import DataError
from perfusion.seeding import derive_seed

__all__ = ["CAPS", "ViewKind", "kept_features", "pair_groups", "thin_records", "write_view"]

ViewKind = Literal["without", "keep", "pairs", "thinned"]
#: Training records that a user of the thinned view keeps at most; None keeps all.
CAPS: tuple[int | None, ...] = (0, 1, 2, 4, 8, None)


def write_view(split_dir: Path, out_dir: Path, kinds: list[ViewKind], features: list[str], seed: int) -> dict[str, int]:
    """Write a view of the split in `split_dir`.

    Args:
        split_dir: users.parquet and groups.parquet with a column `split`.
        out_dir: folder of the view.
        kinds: what is done, in this order. "without": the users' columns `features` go; "keep": the others go;
            "pairs": see `pair_groups`; "thinned": see `thin_records`.
        features: columns of users.parquet.
        seed: of everything drawn.

    Returns:
        {"features": columns left, "groups": records left}.

    Raises:
        DataError: a feature is no column of users.parquet.
    """
    users = read_users(split_dir / "users.parquet")
    groups = read_groups(split_dir / "groups.parquet", extra=("split",))
    absent = sorted(set(features) - set(users.columns))
    if absent:
        raise DataError(f"{split_dir / 'users.parquet'}: no column {absent[0]!r}; there are {list(users.columns)}")
    for kind in kinds:
        if kind == "pairs":
            groups = pair_groups(groups, seed)
        elif kind == "thinned":
            groups = thin_records(groups, seed)
        else:
            gone = [c for c in users.columns if c != "user_id" and (c in features) == (kind == "without")]
            users = users.drop(columns=gone)
    write_table(out_dir / "users.parquet", users)
    write_table(out_dir / "groups.parquet", groups)
    return {"features": len(users.columns) - 1, "groups": len(groups)}


def kept_features(file: Path) -> list[str]:
    """The features that a coverage study found to be enough (see `perfusion.studies.coverage`)."""
    return list(json.loads(file.read_text())["minimum"]["features"])


def pair_groups(groups: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The same records with two candidates: a picked one and, at random, one that was not picked.

    Of several picked ones one is drawn. Records without both kinds stay as they are: nothing is learnt from them.
    """
    rows = [
        _pair(record, images, picks, seed)
        for record, images, picks in zip(groups["record_id"], groups["image_ids"], groups["picked"], strict=True)
    ]
    images, picks = ([row[part] for row in rows] for part in (0, 1))
    columns = {"image_ids": pd.Series(images, index=groups.index), "picked": pd.Series(picks, index=groups.index)}
    return groups.assign(**columns)


def _pair(record: str, images: list[str], picks: list[bool], seed: int) -> tuple[list[str], list[bool]]:
    chosen = [place for place, pick in enumerate(picks) if pick]
    others = [place for place, pick in enumerate(picks) if not pick]
    if not chosen or not others:
        return list(images), list(picks)
    best = chosen[derive_seed(seed, "pair", "picked", record) % len(chosen)]
    other = others[derive_seed(seed, "pair", "other", record) % len(others)]
    places = sorted((best, other))  # the order of the group, so that position says nothing new
    return [images[place] for place in places], [place == best for place in places]


def thin_records(groups: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Leave each user at most a number of training records drawn from `CAPS`; other splits keep theirs.

    The number is drawn by the user's name alone, so that users with few and with many records differ in nothing else.
    """
    training = groups["split"] == "train"
    turn = pd.Series([derive_seed(seed, "thin", record) for record in groups["record_id"]], index=groups.index)
    rank = turn[training].groupby(groups.loc[training, "user_id"]).rank(method="first") - 1
    caps = {user: CAPS[derive_seed(seed, "cap", user) % len(CAPS)] for user in groups["user_id"].unique()}
    most = groups["user_id"].map(lambda user: len(groups) if caps[user] is None else caps[user])
    return groups[~training | (rank.reindex(groups.index) < most)]
