"""What imports of public datasets share: rules that count, a quarantine, pictures stored once."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from perfusion.data.pictures import stored_fault

__all__ = ["QUARANTINE", "Bookmark", "Pictures", "Rule", "active_records", "examine", "ledger"]

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


class Bookmark:
    """What is known after each shard, on disk: a later process goes on from the last one that was finished.

    Args:
        folder: of the bookmark's files; made unless an earlier process made it.

    Attributes:
        shards: finished.
        parts: whole image parts then.
        pictures: met until then.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder
        self.shards = self.parts = 0
        self.pictures = Pictures()
        while (file := self._file(self.shards)).is_file():
            found = json.loads(file.read_text())
            self.pictures.stored |= found["stored"]
            self.pictures.contents |= {bytes.fromhex(digest): name for digest, name in found["contents"].items()}
            self.pictures.faults |= found["faults"]
            self.pictures.size, self.parts = found["size"], found["parts"]
            self.shards += 1
        self._mark()

    def finish(self, parts: int) -> None:
        """The next shard is read and its pictures stand in the first `parts` parts."""
        stored, contents, faults = self._known
        now = self.pictures
        found = {
            "stored": dict(islice(now.stored.items(), stored, None)),
            "contents": {digest.hex(): name for digest, name in islice(now.contents.items(), contents, None)},
            "faults": dict(islice(now.faults.items(), faults, None)),
            "size": now.size,
            "parts": parts,
        }
        file = self._file(self.shards)
        file.with_suffix(".new").write_text(json.dumps(found))
        file.with_suffix(".new").replace(file)
        self.shards, self.parts = self.shards + 1, parts
        self._mark()

    def remove(self) -> None:
        """Nothing is left to go on with."""
        shutil.rmtree(self._folder)

    def _file(self, shard: int) -> Path:
        return self._folder / f"{shard:05d}.json"

    def _mark(self) -> None:
        """Remember how much is on disk: what comes later stands behind it, as dictionaries keep their order."""
        self._known = len(self.pictures.stored), len(self.pictures.contents), len(self.pictures.faults)


def examine(encoded: pa.Buffer | None) -> tuple[bytes, str | None, int]:
    """Hash of a picture's bytes, what is wrong with them, their number; nothing is copied."""
    if encoded is None or not encoded.size:
        return b"", "no bytes", 0
    return hashlib.blake2b(encoded, digest_size=16).digest(), stored_fault(encoded), encoded.size


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
