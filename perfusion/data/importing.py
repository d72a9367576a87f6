"""What imports of public datasets share: rules that count, a quarantine, pictures stored once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from perfusion.data.pictures import stored_fault

__all__ = ["QUARANTINE", "Pictures", "Rule", "active_records", "examine", "is_inside", "ledger"]

QUARANTINE = pa.schema(
    [("file", pa.string()), ("row", pa.int64()), ("record_id", pa.string()), ("rule", pa.string()),
     ("value", pa.string())]
)  # fmt: skip


@dataclass(frozen=True)
class Rule:
    """One reason not to import a row; a row counts under the first that it breaks.

    Attributes:
        name: short and stable.
        says: what holds of an imported row.
        quarantined: the row is faulty and is listed in quarantine.parquet; False: sound, and of no use.
        broken: condition in SQL over the columns; empty where it takes other rows or the pictures to tell.
        value: SQL of the value to show.
    """

    name: str
    says: str
    quarantined: bool
    broken: str = ""
    value: str = "''"


@dataclass
class Pictures:
    """Pictures met so far.

    Attributes:
        stored: a picture's id -> the id under which its bytes are stored.
        contents: hash of the bytes -> that id.
        faults: id -> what was wrong with it where it was met.
        size: bytes of all that are stored.
    """

    stored: dict[str, str] = field(default_factory=dict)
    contents: dict[bytes, str] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    size: int = 0

    def add(self, image_id: str, digest: bytes, fault: str | None, size: int) -> bool:
        """Remember a picture; whether its bytes are new and have to be stored."""
        if fault is not None:
            self.faults.setdefault(image_id, fault)
            return False
        new = digest not in self.contents
        self.stored[image_id] = self.contents.setdefault(digest, image_id)
        self.size += size if new else 0
        return new


def examine(encoded: pa.Buffer | None) -> tuple[bytes, str | None, int]:
    """Hash of a picture's bytes, what is wrong with them, their number; nothing is copied."""
    if encoded is None or not encoded.size:
        return b"", "no bytes", 0
    return hashlib.blake2b(encoded, digest_size=16).digest(), stored_fault(encoded), encoded.size


def is_inside(path: object) -> bool:
    """Whether a path is relative and stays in its folder."""
    if not isinstance(path, str) or not path or "\0" in path or "\\" in path:
        return False
    return not PurePosixPath(path).is_absolute() and ".." not in PurePosixPath(path).parts


def ledger(rules: Sequence[Rule], rows: int, removed: Mapping[str, int]) -> list[dict[str, Any]]:
    """One line a rule, in the order they are applied: what it removed and what was left after it."""
    left = rows
    lines = []
    for rule in rules:
        left -= removed[rule.name]
        lines.append(
            {"rule": rule.name, "says": rule.says, "quarantined": rule.quarantined, "removed": removed[rule.name],
             "left": left}
        )  # fmt: skip
    return lines


def active_records(groups: pa.Table, least: int = 10) -> int:
    """Records of users with at least `least` of them (Sec. 5.1.1)."""
    counts = pc.value_counts(groups["user_id"]).field("counts").to_numpy()
    return int(counts[counts >= least].sum())
