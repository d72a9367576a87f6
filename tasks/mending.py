"""What a killed run leaves in a workspace, and what has to be done about it before the next one.

DVC rewrites dvc.lock, and its table of who reads and writes what, in place: a process killed while it does leaves a
part of the file. DVC then refuses every command until somebody deletes it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import psutil
import yaml

__all__ = ["mend_dvc", "remove_parts"]

_PART = re.compile(r"\..+\.(\d+)\.part")  # of `perfusion.checkpoint.atomic_write`


def mend_dvc(root: Path) -> None:
    """Remove what DVC could not go on from. For whoever holds the workspace, before DVC is asked anything.

    A torn dvc.lock goes as a whole: what it told is in DVC's cache of runs too, and stages come back from there. The
    table of locks goes where it is torn, and where no dvc is alive that wrote an entry: after a restart of the machine,
    or of a container, another process may have the number of one that was killed.

    Args:
        root: folder of dvc.yaml.
    """
    lock, table = root / "dvc.lock", root / ".dvc" / "tmp" / "rwlock"
    if lock.exists() and not _is_whole(lock):
        lock.unlink()
    if table.exists() and not any(map(_is_dvc, _owners(table))):
        table.unlink()


def _is_whole(lock: Path) -> bool:
    """Whether a dvc.lock ends where it should and every stage has all that DVC writes of one."""
    text = lock.read_text(errors="replace")
    try:
        stages = yaml.safe_load(text)["stages"].values()
        files = [entry for stage in stages for part in ("deps", "outs") for entry in stage.get(part, ())]
        sections = [section for stage in stages for section in stage.get("params", {}).values()]
        named = all(stage["cmd"] for stage in stages) and all(isinstance(section, dict) for section in sections)
        return text.endswith("\n") and named and all(map(_is_told_of, files))
    except (yaml.YAMLError, KeyError, TypeError, AttributeError):
        return False


def _is_told_of(entry: dict[str, Any]) -> bool:
    return bool(entry["path"] and entry["md5"]) and isinstance(entry["size"], int)


def _owners(table: Path) -> list[int]:
    """The processes that a table of locks names; none where it is torn."""
    try:
        told = json.loads(table.read_text())
        written = list(told.get("write", {}).values())
        read = [entry for entries in told.get("read", {}).values() for entry in entries]
        return [int(entry["pid"]) for entry in written + read]
    except (ValueError, KeyError, TypeError, AttributeError):
        return []


def _is_dvc(pid: int) -> bool:
    try:
        return any("dvc" in word for word in psutil.Process(pid).cmdline())
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def remove_parts(work: Path) -> None:
    """Remove the temporary files of writers that were killed; those of living processes stay.

    Args:
        work: the folder in which they lie, or in whose folders.
    """
    for file in (*work.glob(".*.part"), *work.glob("*/.*.part")):
        named = _PART.fullmatch(file.name)
        if named is not None and file.is_file() and not psutil.pid_exists(int(named[1])):
            file.unlink()
