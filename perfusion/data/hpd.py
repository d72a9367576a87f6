"""Human Preference Dataset v1 (Wu et al., 2023, arXiv 2303.14420) in the dataset layout: true groups, one pick each.

Its public form is preference_train.json and preference_test.json beside preference_images/: lists of {human_preference:
place of the preferred picture, prompt, id, file_path: list of paths, user_hash, contain_name}. Users are the hashes;
there are no other features, no dates and no ties: one picture of a group is picked. The published division into train
and test is not kept; the split stage makes its own.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from perfusion.data.picturefiles import Group, Source, import_groups, read_entries, rules, says_something
from perfusion.errors import DataError
from perfusion.paths import is_inside

__all__ = ["RULES", "import_hpd"]

FIELDS = ("human_preference", "prompt", "id", "file_path", "user_hash")
FILES = ("preference_train.json", "preference_test.json")
PUBLISHED = datetime(2023, 3, 25)
RULES = rules("human_preference is the place of a picture of the entry, from 0")


def import_hpd(
    source: Path | str,
    out: Path | str,
    *,
    split: Literal["record", "prompt", "user"] = "record",
    replace: bool = False,
) -> dict[str, Any]:
    """Turn HPD v1 into a dataset; whole or not at all. The lists are held in memory, pictures a group at a time.

    Args:
        source: the unzipped folder, or one of its lists.
        out: the folder to create.
        split: how the records are meant to be split (`data.split_by`); recorded, with what each way would leak.
        replace: put the dataset in the place of an older one.

    Returns:
        What import.json holds: see `import_groups`.

    Raises:
        DataError: no list is there, one cannot be read, or no entry is left; `out` holds files; the disk is full.
    """
    place = Path(source)
    files = [place] if place.is_file() else [place / name for name in FILES if (place / name).is_file()]
    if not files:
        raise DataError(f"{source}: neither {' nor '.join(FILES)} is here; name the unzipped folder or the list")
    groups = [
        _group(file.name, row, f"{file.stem}-{entry.get('id')}", entry)
        for file in files
        for row, entry in enumerate(read_entries(file, FIELDS))
    ]
    root = place.parent if place.is_file() else place
    return import_groups(Source("import-hpd", root, files, PUBLISHED, RULES), groups, out, split, replace, {})


def _group(file: str, row: int, record_id: str, entry: dict[str, Any]) -> Group:
    """An entry as a group record."""
    group = Group(file, row, record_id)
    fields: list[Any] = [entry.get(name) for name in FIELDS]
    choice, prompt, number, paths, user = fields
    odd = [
        name
        for name, fits in (
            ("human_preference", isinstance(choice, int) and not isinstance(choice, bool)),
            ("prompt", isinstance(prompt, str)),
            ("id", isinstance(number, int | str)),
            ("file_path", isinstance(paths, list)),
            ("user_hash", isinstance(user, str) and bool(user.strip())),
        )
        if not fits
    ]
    if odd:
        return group.breaks("fields", ", ".join(f"{name}: {entry.get(name)!r}" for name in odd))
    if not says_something(prompt):
        return group.breaks("prompt", prompt)
    if len(paths) < 2 or not all(map(is_inside, paths)) or len(set(paths)) < len(paths):
        return group.breaks("paths", paths)
    if not 0 <= choice < len(paths):
        return group.breaks("choice", f"{choice} of {len(paths)}")
    group.user_id, group.prompt, group.paths = user, prompt, paths
    group.picked = [place == choice for place in range(len(paths))]
    return group
