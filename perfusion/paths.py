"""Paths that somebody else wrote: they name a file inside a folder, or nothing."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

__all__ = ["escaping_link", "is_inside", "stays_inside"]

_DVC_CACHE = re.compile(r"/files/md5/[0-9a-f]{2}/[0-9a-f]{30}(\.dir)?$")


def is_inside(path: object) -> bool:
    """Whether a path, read as text, is relative and stays in its folder; no file is looked at."""
    if not isinstance(path, str) or not path or "\0" in path or "\\" in path:
        return False
    return not PurePosixPath(path).is_absolute() and ".." not in PurePosixPath(path).parts


def stays_inside(file: Path, root: Path) -> bool:
    """Whether a file, its symbolic links followed, is one of `root`'s own.

    Two stores keep a folder's files elsewhere under the hash of their bytes and put links in their place: DVC's cache,
    and the hub's (snapshots/REVISION beside blobs/). Links into those are the folder's own files.
    """
    real, home = file.resolve(), root.resolve()
    if real.is_relative_to(home) or _DVC_CACHE.search(real.as_posix()):
        return True
    return home.parent.name == "snapshots" and real.parent == home.parents[1] / "blobs"


def escaping_link(root: Path) -> tuple[Path, Path] | None:
    """The first file below `root` (in the order of names) that is not its own, and where it leads; None if all are."""
    for file in sorted(root.rglob("*")):
        if not stays_inside(file, root):
            return file, file.resolve()
    return None
