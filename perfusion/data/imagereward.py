"""ImageRewardDB (Xu et al., 2023, arXiv 2304.05977) in the dataset layout: true groups with ranks and ties.

Public forms, all taken:

- lists of groups, {id, prompt, generations: list of paths, ranking: list of ranks}: data/test.json of the repository;
- lists of pictures, {image_path, prompt_id, prompt, rank, ...}: the train_1.json beside the pictures of each folder,
  and metadata-train.parquet and its siblings. Rows of one prompt_id are a group.

Rank 1 is best; ranks may be shared and may skip. **Ranks become picks by one rule**: a candidate is picked if fewer
than `top` others have a better rank. With top = 1 those are all that share the best rank. A group whose candidates are
then all picked, as when all ranks are equal, holds no comparison and is dropped and counted.

Who ranked is not published: every record belongs to one user. So the dataset can train and judge what is blind to the
user, and says nothing about personal taste.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from perfusion.data.picturefiles import Group, Source, import_groups, read_entries, rules, says_something
from perfusion.errors import DataError
from perfusion.paths import is_inside

__all__ = ["RULES", "import_imagereward", "ranks_to_picks"]

GROUP_FIELDS = ("id", "prompt", "generations", "ranking")
PICTURE_FIELDS = ("prompt_id", "prompt", "image_path", "rank")
PUBLISHED = datetime(2023, 4, 12)
USER = "annotators"
RULES = rules("there is a rank for each picture, a whole number from 1 (the best)")


def ranks_to_picks(ranks: list[int], top: int = 1) -> list[bool]:
    """Which candidates are picked: those with fewer than `top` others of a better rank; ties share their fate.

    Args:
        ranks: 1 is best; may be shared and may skip.
        top: 1 or more.
    """
    return [sum(other < rank for other in ranks) < top for rank in ranks]


def import_imagereward(
    source: Path | str,
    out: Path | str,
    *,
    top: int = 1,
    split: Literal["record", "prompt", "user"] = "record",
    replace: bool = False,
) -> dict[str, Any]:
    """Turn ImageRewardDB into a dataset; whole or not at all. The lists are held in memory, pictures a group at a time.

    Args:
        source: the folder with pictures and lists anywhere below it (metadata-*.parquet are read and the .json lists
            left alone where both are there), or one list in that folder.
        out: the folder to create.
        top: see `ranks_to_picks`.
        split: how the records are meant to be split (`data.split_by`); recorded, with what each way would leak.
        replace: put the dataset in the place of an older one.

    Returns:
        What import.json holds: see `import_groups`; with "top", and "tied_records": those with several picked.

    Raises:
        DataError: no list is there, one cannot be read, or no entry is left; top < 1; `out` holds files; the disk is
            full.
    """
    if top < 1:
        raise DataError(f"top = {top}: at least the best rank has to be picked; want 1 or more")
    place = Path(source)
    files = [place] if place.is_file() else sorted(place.rglob("metadata-*.parquet")) or sorted(place.rglob("*.json"))
    if not files:
        raise DataError(f"{source}: neither metadata-*.parquet nor a .json list is here; name the folder or the list")
    groups = [group for file in files for group in _groups(file, top)]
    notes = {"top": top, "tied_records": 0}
    root = place.parent if place.is_file() else place
    known = Source("import-imagereward", root, files, PUBLISHED, RULES)
    for group in groups:
        notes["tied_records"] += not group.rule and 1 < sum(group.picked) < len(group.picked)
    return import_groups(known, groups, out, split, replace, notes)


def _groups(file: Path, top: int) -> Iterator[Group]:
    entries = read_entries(file, ("prompt",))
    if any("generations" in entry for entry in entries):
        entries = read_entries(file, GROUP_FIELDS)
        for row, entry in enumerate(entries):
            name, prompt, paths, ranks = (entry.get(field) for field in GROUP_FIELDS)
            yield _group(file, row, name, prompt, paths, ranks, top)
        return
    by_prompt: dict[object, list[tuple[int, dict[str, Any]]]] = {}
    for row, entry in enumerate(read_entries(file, PICTURE_FIELDS)):
        name = entry.get("prompt_id")
        by_prompt.setdefault(name if isinstance(name, int | str) else None, []).append((row, entry))
    for name, rows in by_prompt.items():
        prompts = {str(entry.get("prompt")): entry.get("prompt") for _, entry in rows}
        paths, ranks = ([entry.get(key) for _, entry in rows] for key in ("image_path", "rank"))
        group = _group(file, rows[0][0], name, rows[0][1].get("prompt"), paths, ranks, top)
        yield group.breaks("contradictory", list(prompts)) if len(prompts) > 1 and not group.rule else group


def _group(file: Path, row: int, name: object, prompt: object, paths: object, ranks: object, top: int) -> Group:
    """An entry, or the rows of one prompt, as a group record."""
    group = Group(file.name, row, f"{file.stem}-{name}", USER)
    if not isinstance(name, int | str) or not isinstance(paths, list) or not isinstance(ranks, list):
        return group.breaks("fields", f"id {name!r}, pictures {paths!r}, ranks {ranks!r}")
    if not isinstance(prompt, str) or not says_something(prompt):
        return group.breaks("prompt", prompt)
    if len(paths) < 2 or not all(map(is_inside, paths)) or len(set(paths)) < len(paths):
        return group.breaks("paths", paths)
    whole = all(isinstance(rank, int) and not isinstance(rank, bool) and rank >= 1 for rank in ranks)
    if len(ranks) != len(paths) or not whole:
        return group.breaks("choice", f"{ranks} of {len(paths)} pictures")
    group.prompt, group.paths, group.picked = prompt, paths, ranks_to_picks(ranks, top)
    return group
