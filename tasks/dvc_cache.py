"""DVC's store of files by content: what it holds of an output, and a folder put into it by copies.

DVC names a file by its MD5, and a folder by the MD5 of the list of its files (with ".dir" after it), which is stored as
a file too. Everything here hashes the bytes anew: neither DVC's memory of hashes nor a file's time is believed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from perfusion.errors import DataError
from tasks.workspace import Workspace

__all__ = ["Cache", "cache_of", "differences", "folder_files", "folder_md5", "keep_data"]

_DIR = ".dir"


@dataclass(frozen=True)
class Cache:
    """A cache folder of DVC 3, as `dvc cache dir` names it.

    Attributes:
        folder: holds files/md5.
    """

    folder: Path

    def place(self, md5: str) -> Path:
        """Where the object of a hash lies, or would."""
        return self.folder / "files" / "md5" / md5[:2] / md5[2:]

    def missing(self, md5: str) -> list[str]:
        """The hashes of an output's objects that are not here: of its list, or of files in it."""
        if not self.place(md5).is_file():
            return [md5]
        if not md5.endswith(_DIR):
            return []
        return [file for file in sorted(set(self.listing(md5).values())) if not self.place(file).is_file()]

    def listing(self, md5: str) -> dict[str, str]:
        """A stored folder's files, relative path -> MD5.

        Raises:
            DataError: the stored list is not what its name says.
        """
        content = self.place(md5).read_bytes()
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5.removesuffix(_DIR):
            raise DataError(
                f"{self.place(md5)}: its content does not give its name: the cache is damaged\n"
                "remedy: delete this file and fetch it again (`dvc fetch`), or take it from a backup"
            )
        return {entry["relpath"]: entry["md5"] for entry in json.loads(content)}

    def check_out(self, md5: str, path: Path) -> None:
        """Copy an output to a path where nothing is; copies, so that writing there never reaches the cache."""
        files = {path / name: file for name, file in self.listing(md5).items()} if md5.endswith(_DIR) else {path: md5}
        for place, file in files.items():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.place(file), place)

    def keep(self, folder: Path) -> str:
        """Copy a folder's files into the cache, as far as they are not there, and return the folder's hash.

        Copies, never links: whoever writes to the folder later must not write into the cache.

        Args:
            folder: of files; links to files are followed.
        """
        files = folder_files(folder)
        for name, md5 in files.items():
            if not self.place(md5).is_file():
                with self._new(md5) as part:
                    shutil.copyfile(folder / name, part)
                    if _md5(part) != md5:
                        raise DataError(
                            f"{folder / name}: changed while it was copied; run again when nobody writes it"
                        )
        whole = folder_md5(files)
        if not self.place(whole).is_file():
            with self._new(whole) as part:
                part.write_bytes(_listed(files))
        return whole

    def _new(self, md5: str) -> _NewObject:
        return _NewObject(self.place(md5))


class _NewObject:
    """A temporary file that becomes the object `place`, read-only, when the block ends well, and vanishes otherwise."""

    def __init__(self, place: Path) -> None:
        self.place = place
        place.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=place.parent, prefix=".part-")
        os.close(descriptor)
        self.part = Path(name)

    def __enter__(self) -> Path:
        return self.part

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.part.chmod(0o444)
            self.part.replace(self.place)
        else:
            self.part.unlink(missing_ok=True)


def cache_of(root: Path) -> Cache | None:
    """The cache of the DVC project at `root`; None where there is no such project (any more)."""
    if not (root / ".dvc").is_dir():
        return None
    from dvc.config import Config

    folder = Config(str(root / ".dvc"))["cache"].get("dir") or root / ".dvc" / "cache"
    return Cache((root / folder).resolve())


def keep_data(workspace: Workspace, expected: str) -> None:
    """Put a copy of the workspace's dataset into its DVC cache, so that versions made from it can be restored.

    Args:
        workspace: with data.
        expected: the data's hash in dvc.lock.

    Raises:
        DataError: the data are no longer those.
    """
    if (cache := cache_of(workspace.root)) is None:
        raise DataError(
            f"{workspace.root}: is no DVC project, so that its data cannot be kept; `perfusion retrain` makes it one"
        )
    if not cache.missing(expected):
        return
    if (found := cache.keep(workspace.data)) != expected:
        raise DataError(
            f"{workspace.data}: is {found} by DVC's hash, but this run trained on {expected}: it changed meanwhile, "
            "and what was trained on cannot be kept\n"
            "remedy: let nobody write to the dataset while a run goes on; run again"
        )


def folder_files(folder: Path) -> dict[str, str]:
    """Every file under a folder, relative path -> MD5; compiled Python is left out, as .dvcignore does."""
    paths = {path.relative_to(folder): path for path in _files(folder)}
    return {name.as_posix(): _md5(path) for name, path in sorted(paths.items())}


def folder_md5(files: dict[str, str]) -> str:
    """DVC's hash of a folder with these files (relative path -> MD5)."""
    return hashlib.md5(_listed(files), usedforsecurity=False).hexdigest() + _DIR


def differences(path: Path, md5: str, listing: dict[str, str] | None = None) -> list[str]:
    """In what a file or folder is not the one of this hash, one line each; empty when it is, byte for byte.

    Args:
        path: of the file or folder.
        md5: DVC's hash of it.
        listing: a folder's files as they should be, to tell which of them differ.
    """
    if not path.exists():
        return [f"missing: {path}"]
    if not md5.endswith(_DIR):
        return [] if path.is_file() and _md5(path) == md5 else [f"different: {path}"]
    found = folder_files(path) if path.is_dir() else {}
    if folder_md5(found) == md5:
        return []
    wanted = listing or {}
    names = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
    return [f"different: {path / name}" for name in names] if wanted else [f"different: {path}"]


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def _listed(files: dict[str, str]) -> bytes:
    """The list as DVC writes it: by path, keys in order."""
    return json.dumps([{"md5": files[name], "relpath": name} for name in sorted(files)], sort_keys=True).encode()


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
