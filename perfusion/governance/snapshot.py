"""What a model was trained on, small enough to keep beside it: what fresh picks are compared with later.

Records of one user resemble each other, so what is told of records is kept as sums over each user's records: tests that
count users, not records, can be made from them.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from perfusion.errors import DataError
from perfusion.governance import drift

__all__ = ["FACTS", "Snapshot", "facts_of_users", "take_snapshot"]

#: What is told of each record, beside the phrases of its prompt.
FACTS = ("prompt characters", "phrases a prompt", "unseen words", "candidates", "pick share")
#: The most common phrases are watched one by one.
WATCHED_PHRASES = 20
MAX_USERS = 50_000
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Snapshot:
    """The training data of a model, in short.

    Attributes:
        profile: of `drift.profile`, over the users that have records.
        facts: one row a user: user_id, and for each fact and watched phrase the columns `NAME n`, `NAME sum` and
            `NAME squares` over the user's records.
        words: of the prompts of four records of five; the fifth tell how many words are unseen when nothing changed.
        latest: the last record's date.
        gauc: one row a held-out group, user_id and auc of the model; empty where that is not known.
    """

    profile: dict[str, Any]
    facts: pd.DataFrame
    words: frozenset[str]
    latest: pd.Timestamp
    gauc: pd.DataFrame

    @property
    def watched(self) -> list[str]:
        """The phrases that are watched."""
        return [name.removesuffix(" n") for name in self.facts if name.startswith("phrase ") and name.endswith(" n")]

    def save(self, folder: Path) -> None:
        """Write snapshot.json, facts.parquet and gauc.parquet."""
        folder.mkdir(parents=True, exist_ok=True)
        record = {"profile": self.profile, "words": sorted(self.words), "latest": self.latest.isoformat()}
        (folder / "snapshot.json").write_text(json.dumps(record, ensure_ascii=False))
        self.facts.to_parquet(folder / "facts.parquet", index=False)
        self.gauc.to_parquet(folder / "gauc.parquet", index=False)

    @classmethod
    def load(cls, folder: Path) -> Snapshot:
        """Read what `save` wrote.

        Raises:
            DataError: a file is absent or not of a snapshot.
        """
        try:
            record = json.loads((folder / "snapshot.json").read_text())
            return cls(
                record["profile"], pd.read_parquet(folder / "facts.parquet"), frozenset(record["words"]),
                pd.Timestamp(record["latest"]), pd.read_parquet(folder / "gauc.parquet"),
            )  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{folder}: no snapshot of training data ({error}); name a dataset to compare with: --reference FOLDER"
            ) from None


def take_snapshot(users: pd.DataFrame, groups: pd.DataFrame, gauc: pd.DataFrame | None = None) -> Snapshot:
    """The snapshot of a dataset.

    Args:
        users: user_id and features.
        groups: record_id, user_id, created_at, prompt, image_ids, picked; those trained and tested on.
        gauc: user_id and auc of held-out groups.

    Raises:
        DataError: there is no record.
    """
    if groups.empty:
        raise DataError("groups: no record to take a snapshot of")
    held_back = _held_back(groups["record_id"])
    words = frozenset(word for prompt in groups.loc[~held_back, "prompt"] for word in _words(prompt))
    profile = drift.profile(users[users["user_id"].isin(groups["user_id"])], groups)
    watched = list(profile["variables"]["prompt phrases"]["counts"])[:WATCHED_PHRASES]
    facts = facts_of_users(groups, words, watched, unseen_among=held_back)
    if len(facts) > MAX_USERS:
        facts = facts[facts["user_id"].map(_number).rank() <= MAX_USERS].reset_index(drop=True)
    none = pd.DataFrame({"user_id": pd.Series(dtype=str), "auc": pd.Series(dtype=float)})
    return Snapshot(profile, facts, words, groups["created_at"].max(), none if gauc is None else gauc)


def facts_of_users(
    groups: pd.DataFrame, words: frozenset[str], watched: Iterable[str], unseen_among: pd.Series | None = None
) -> pd.DataFrame:
    """Sums over each user's records, as in `Snapshot.facts`.

    Args:
        groups: records.
        words: known words.
        watched: phrases to look for, with or without "phrase " before them.
        unseen_among: (R,) records in which unseen words are counted; None: in all.
    """
    columns: dict[str, pd.Series] = dict(zip(FACTS, _facts(groups, words, unseen_among), strict=True))
    phrases = groups["prompt"].map(_phrases)
    for phrase in watched:
        text = phrase.removeprefix("phrase ")
        columns[f"phrase {text}"] = phrases.map(lambda found, text=text: text in found).astype(float)
    parts: dict[str, pd.Series] = {}
    for name, values in columns.items():
        by_user = values.groupby(groups["user_id"], sort=True)
        parts |= {f"{name} n": by_user.count(), f"{name} sum": by_user.sum()}
        parts[f"{name} squares"] = (values**2).groupby(groups["user_id"], sort=True).sum()
    return pd.DataFrame(parts).rename_axis("user_id").reset_index()


def _facts(groups: pd.DataFrame, words: frozenset[str], unseen_among: pd.Series | None) -> tuple[pd.Series, ...]:
    """(R,) of each of `FACTS`; NaN where it is not told."""
    prompts = groups["prompt"]
    unseen = prompts.map(lambda prompt: _share_unseen(_words(prompt), words))
    if unseen_among is not None:
        unseen = unseen.where(unseen_among)
    candidates = groups["image_ids"].map(len).astype(float)
    picks = groups["picked"].map(sum).astype(float)
    phrases = prompts.map(lambda prompt: len(_phrases(prompt))).astype(float)
    return prompts.str.len().astype(float), phrases, unseen, candidates, picks / candidates


def _share_unseen(found: list[str], known: frozenset[str]) -> float:
    return float(np.mean([word not in known for word in found])) if found else 0.0


def _words(prompt: str) -> list[str]:
    return _WORD.findall(prompt.lower())


def _phrases(prompt: str) -> set[str]:
    return {phrase for part in prompt.split(",") if (phrase := part.strip())}


def _held_back(names: pd.Series) -> pd.Series:
    """One record of five, by a hash of its name."""
    return names.map(lambda name: _number(name) % 5 == 0).astype(bool)


def _number(name: str) -> int:
    return zlib.crc32(name.encode())
