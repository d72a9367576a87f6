"""Public datasets that are lists of groups beside files with pictures (HPD, ImageReward) in the dataset layout.

An adaptor reads its lists into `Group`s; what follows is the same for all: groups are judged one after another, the
pictures of sound ones are read a group at a time and stored once, under a name made of their bytes.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from perfusion.data.importing import QUARANTINE, Pictures, Rule, active_records, examine, ledger
from perfusion.data.layout import GROUP_SCHEMA, ImageWriter, new_folder, read_parquet, write_rows
from perfusion.data.leakage import leakage
from perfusion.errors import DataError
from perfusion.paths import stays_inside
from perfusion.progress import Progress

__all__ = ["Group", "Source", "import_groups", "read_entries", "rules", "says_something"]

_BATCH = 256  # pictures written at a time


@dataclass
class Group:
    """One group as its list tells it.

    Attributes:
        file, row: where it stands; row counts from 0.
        record_id, user_id, prompt: of the record.
        paths: of the candidates' pictures, relative to the source's folder.
        picked: (n,) which of them were picked.
        rule, value: the first rule it breaks and the value to show; "" while it breaks none.
    """

    file: str
    row: int
    record_id: str
    user_id: str = ""
    prompt: str = ""
    paths: Sequence[str] = ()
    picked: Sequence[bool] = ()
    rule: str = ""
    value: str = ""

    def breaks(self, rule: str, value: object) -> Group:
        """The same group, set aside."""
        self.rule, self.value = rule, str(value)[:200]
        return self


@dataclass(frozen=True)
class Source:
    """What is known of a public dataset.

    Attributes:
        name: of the import, in progress lines.
        root: folder that paths of pictures start from.
        files: the lists.
        published: the date that its records bear: none of these datasets says when a group was made.
        rules: in the order they are applied, see `rules`.
    """

    name: str
    root: Path
    files: Sequence[Path]
    published: datetime
    rules: Sequence[Rule]


def rules(choice: str) -> tuple[Rule, ...]:
    """The rules of an import; `choice` says what holds of the labels."""
    return (
        Rule("fields", "the entry has its fields, each of its type", True),
        Rule("prompt", "the prompt has a letter or a digit", True),
        Rule("paths", "it names two pictures or more, none twice, each by a path inside the folder", True),
        Rule("choice", choice, True),
        Rule("contradictory", "entries of one list with the same id agree", True),
        Rule("repeated", "the entry comes for the first time", False),
        Rule("no_comparison", "a picture is picked and another is not", False),
        Rule("absent", "every picture's file is there", True),
        Rule("picture", "every picture is whole", True),
        Rule("same_bytes", "its pictures differ in their bytes", False),
    )


def read_entries(file: Path, wanted: Sequence[str]) -> list[dict[str, Any]]:
    """The entries of a list: a .json file that holds a list of objects, or a .parquet file.

    Raises:
        DataError: the file cannot be read or holds something else, or a field of `wanted` is in none of its entries.
    """
    if file.suffix == ".parquet":
        entries = read_parquet(file).to_pylist()
    else:
        try:
            entries = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"{file}: not a readable JSON file ({error}); fetch it again") from None
    if not isinstance(entries, list):
        raise DataError(f"{file}: holds one {type(entries).__name__}, want a list of entries; name the annotation file")
    objects = [entry for entry in entries if isinstance(entry, dict)]
    found = sorted({str(name) for entry in objects for name in entry})
    absent = [name for name in wanted if name not in found]
    if entries and absent:
        raise DataError(f"{file}: no entry has {', '.join(absent)}; entries hold {', '.join(found[:20]) or 'nothing'}")
    return [entry if isinstance(entry, dict) else {} for entry in entries]


def says_something(prompt: object) -> bool:
    """Whether a prompt is text with a letter or a digit in it."""
    return isinstance(prompt, str) and any(character.isalnum() for character in prompt)


def import_groups(
    source: Source, groups: Sequence[Group], out: Path | str, split: str, replace: bool, notes: Mapping[str, Any]
) -> dict[str, Any]:
    """Write groups and their pictures as a dataset; whole or not at all.

    Args:
        source: where they come from.
        groups: in the order of the lists; those that break a rule of their own say so already.
        out: the folder to create: users.parquet, groups.parquet, images/, quarantine.parquet, import.json.
        split: how the records are meant to be split; recorded.
        replace: put the dataset in the place of an older one.
        notes: further items of the report.

    Returns:
        What import.json holds: source, entries, rules (as of `import_pickapic`), records, users,
        records_of_active_users, pictures, bytes, published, split, leakage, seconds, and the notes.

    Raises:
        DataError: no group is left; `out` holds files; the disk is full. Nothing is written then.
    """
    began = time.monotonic()
    _judge_repeats(groups)
    with new_folder(out, replace) as built:
        pictures = Pictures()
        with ImageWriter(built / "images") as writer:
            image_ids = _store(source, groups, pictures, writer)
        counts = Counter(group.rule for group in groups)
        removed = {rule.name: counts[rule.name] for rule in source.rules}
        kept = [(group, ids) for group, ids in zip(groups, image_ids, strict=True) if not group.rule]
        if not kept:
            raise DataError(f"{source.root}: no entry of {len(groups)} is left to import; removed by rule: {removed}")
        table = pa.table(
            [[group.record_id for group, _ in kept], [group.user_id for group, _ in kept],
             [source.published] * len(kept), [group.prompt for group, _ in kept], [ids for _, ids in kept],
             [list(group.picked) for group, _ in kept]],
            schema=GROUP_SCHEMA,
        )  # fmt: skip
        users = pc.unique(table["user_id"])
        write_rows(built / "groups.parquet", GROUP_SCHEMA, [table])
        write_rows(built / "users.parquet", pa.schema([("user_id", pa.string())]), [pa.table({"user_id": users})])
        write_rows(built / "quarantine.parquet", QUARANTINE, [_quarantine(source.rules, groups)])
        report = {
            "source": [str(file.relative_to(source.root)) for file in source.files],
            "entries": len(groups),
            "rules": ledger(source.rules, len(groups), removed),
            "records": len(kept),
            "users": len(users),
            "records_of_active_users": active_records(table),
            "pictures": len(pictures.contents),
            "bytes": pictures.size,
            "published": source.published.date().isoformat(),
            "split": split,
            "leakage": leakage(table),
            "seconds": round(time.monotonic() - began, 2),
            **notes,
        }
        (built / "import.json").write_text(json.dumps(report, indent=1))
    return report


def _judge_repeats(groups: Iterable[Group]) -> None:
    """Entries of one name: all are set aside if they differ, all but the first if they do not."""
    named: dict[str, list[Group]] = {}
    for group in groups:
        if not group.rule:
            named.setdefault(group.record_id, []).append(group)
    for same in named.values():
        first = same[0]
        agree = all(_content(group) == _content(first) for group in same)
        for group in same[1:] if agree else same:
            if len(same) > 1:
                group.breaks("repeated" if agree else "contradictory", group.record_id)
        if not first.rule and len(set(first.picked)) < 2:
            first.breaks("no_comparison", "")


def _content(group: Group) -> tuple[object, ...]:
    return group.user_id, group.prompt, list(group.paths), list(group.picked)


def _store(source: Source, groups: Sequence[Group], pictures: Pictures, writer: ImageWriter) -> list[list[str]]:
    """Store the pictures of sound groups that are not stored yet; the ids of each group's, [] where it is set aside."""
    find, progress = _finder(source.root), Progress(source.name, max(1, len(groups)))
    waiting: list[tuple[str, bytes]] = []
    found = []
    for number, group in enumerate(groups, 1):
        found.append([] if group.rule else _candidates(group, find, pictures, waiting))
        if len(waiting) >= _BATCH or (waiting and number == len(groups)):
            ids, data = zip(*waiting, strict=True)
            writer.write(pa.record_batch([pa.array(ids), pa.array(data, pa.binary())], schema=ImageWriter.schema))
            waiting.clear()
        progress.show(number, {"pictures": len(pictures.contents)})
    return found


def _candidates(
    group: Group, find: Callable[[str], Path | None], pictures: Pictures, waiting: list[tuple[str, bytes]]
) -> list[str]:
    """Ids of a group's pictures, the new ones added to those that wait to be stored; the group is judged by them."""
    files = [find(path) for path in group.paths]
    absent = [path for path, file in zip(group.paths, files, strict=True) if file is None]
    if absent:
        group.breaks("absent", ", ".join(absent))
        return []
    encoded = [pa.py_buffer(file.read_bytes()) for file in files if file is not None]
    facts = [examine(data) for data in encoded]
    broken = [f"{path}: {fault}" for path, (_, fault, _) in zip(group.paths, facts, strict=True) if fault]
    ids = [digest.hex() for digest, _, _ in facts]
    if broken:
        group.breaks("picture", "; ".join(broken))
        return []
    if len(set(ids)) < len(ids):
        group.breaks("same_bytes", ", ".join(group.paths))
        return []
    for image_id, data, known in zip(ids, encoded, facts, strict=True):
        if pictures.add(image_id, *known):
            waiting.append((image_id, data.to_pybytes()))
    return ids


def _finder(root: Path) -> Callable[[str], Path | None]:
    """Where a picture's file is: at its path, or else anywhere below under its name, if there is one of that name.

    A link that leads out of `root` is not there.
    """
    index: dict[str, Path | None] = {}

    def find(path: str) -> Path | None:
        direct = root / path
        if direct.is_file():
            return direct if stays_inside(direct, root) else None
        if not index:
            for folder, _, names in os.walk(root):
                for name in names:
                    index[name] = None if name in index else Path(folder, name)
            index.setdefault("", None)
        found = index.get(PurePosixPath(path).name)
        return found if found is not None and stays_inside(found, root) else None

    return find


def _quarantine(known: Sequence[Rule], groups: Sequence[Group]) -> pa.Table:
    faulty = {rule.name for rule in known if rule.quarantined}
    rows = [
        {"file": group.file, "row": group.row, "record_id": group.record_id, "rule": group.rule, "value": group.value}
        for group in groups
        if group.rule in faulty
    ]
    return pa.Table.from_pylist(rows, schema=QUARANTINE)
