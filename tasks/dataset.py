"""The dataset of a workspace: present, and what it is said to be.

A fresh clone has no data and no remote: `data.dvc` records in its `meta` the command that makes the sample and the
canonical hash of what must come out. The hash is of decoded content, because the bytes of parquet and PNG files depend
on the versions of the libraries that write them.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from perfusion.checkpoint import atomic_write
from perfusion.errors import DataError
from tasks.process import cpu_environment, die_with_parent
from tasks.workspace import REPOSITORY, Workspace

__all__ = ["content_of", "ensure_data", "noted_content"]


def ensure_data(workspace: Workspace, tell: Callable[[str], None]) -> str:
    """See that the workspace's dataset is there and is the pinned one, and return its canonical content hash.

    Args:
        workspace: whose data.
        tell: called with a line about each thing done.

    Raises:
        DataError: it is absent and cannot be had, or its content is not what data.dvc pins.
    """
    home = _home(workspace)
    meta = _meta(home / "data.dvc") if home is not None else {}
    if not workspace.data.is_dir() or (home is not None and _fetching(home).exists()):
        _obtain(workspace, home, meta, tell)
    found = content_of(workspace, tell)
    pinned = meta.get("content_hash")
    if pinned is not None and found != pinned:
        raise DataError(
            f"{workspace.data}: content hash {found} is not the {pinned} that data.dvc pins\n"
            "remedy: to have the pinned data back, move the folder away and run again; to train on this data, name it: "
            "make retrain DATA=folder, or put its hash into meta.content_hash of data.dvc"
        )
    return found


def content_of(workspace: Workspace, tell: Callable[[str], None]) -> str:
    """The canonical content hash of the workspace's dataset; computed where a file was touched since the last time."""
    found = _known_hash(workspace)
    if found is None:
        from perfusion.data import content_hash

        tell(f"hashing the content of {workspace.data}")
        found = content_hash(workspace.data)
        note = {"content_hash": found, "files": _fingerprint(workspace.data)}
        atomic_write(workspace.verified_data, json.dumps(note).encode())
    return found


def _home(workspace: Workspace) -> Path | None:
    """The folder whose data.dvc tells of this dataset: the workspace's own, or the repository's where it borrows."""
    for root in (workspace.root, REPOSITORY):
        if (root / "data.dvc").exists() and workspace.data.resolve() == (root / "data").resolve():
            return root
    return None


def _meta(data_dvc: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(data_dvc.read_text()).get("meta") or {})


def _obtain(workspace: Workspace, home: Path | None, meta: dict[str, Any], tell: Callable[[str], None]) -> None:
    """Take the data from DVC's cache or remote where it is there, else make it by the recorded command."""
    command = meta.get("command")
    if home is not None:
        verb = "checkout" if _is_cached(home) else "pull" if _has_remote(home) else None
        if verb is not None and _fetch(verb, home, tell):
            return
        if workspace.data.is_dir():
            raise DataError(
                f"{workspace.data}: dvc was interrupted while it put the data here, and cannot finish it now\n"
                f"remedy: move the folder away and run again; or, if it is whole, remove {_fetching(home)}"
            )
    if home is None or command is None:
        raise DataError(
            f"{workspace.data}: no such folder, and nothing says how to make it\n"
            "remedy: name a dataset folder with DATA=folder, or make a sample: `perfusion data sample --out data`"
        )
    tell(f"making the sample dataset: {command}")
    program, *arguments = shlex.split(command)
    code = _run([str(Path(sys.executable).parent / program), *arguments], home, tell)
    if code != 0 or not workspace.data.is_dir():
        shutil.rmtree(home / "data", ignore_errors=True)
        raise DataError(f"`{command}` (meta.command of {home / 'data.dvc'}) ended with exit code {code}")


def _fetch(verb: str, home: Path, tell: Callable[[str], None]) -> bool:
    """Have DVC put the data in its place; whether it did. It writes file by file: a note stays until all are there."""
    atomic_write(_fetching(home), b"dvc was putting data/ in its place; the next run lets it go on\n")
    done = _run([sys.executable, "-m", "dvc", verb, "data.dvc"], home, tell) == 0
    if done:
        _fetching(home).unlink()
    return done


def _fetching(home: Path) -> Path:
    return home / "work" / "state" / "data-incomplete"


def _is_cached(home: Path) -> bool:
    """Whether the version that data.dvc names is in DVC's cache, as after `dvc add data`."""
    (out,) = yaml.safe_load((home / "data.dvc").read_text())["outs"]
    if "md5" not in out:
        return False
    command = [sys.executable, "-m", "dvc", "cache", "dir"]
    cache = subprocess.run(command, cwd=home, capture_output=True, text=True)
    file = Path(cache.stdout.strip(), "files", "md5", out["md5"][:2], out["md5"][2:])
    return cache.returncode == 0 and file.exists()


def _has_remote(home: Path) -> bool:
    command = [sys.executable, "-m", "dvc", "remote", "list"]
    listed = subprocess.run(command, cwd=home, capture_output=True, text=True)
    return listed.returncode == 0 and bool(listed.stdout.strip())


def _run(command: list[str], home: Path, tell: Callable[[str], None]) -> int:
    process = subprocess.Popen(
        command, cwd=home, env={**os.environ, **cpu_environment(1)}, text=True, errors="replace",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, preexec_fn=partial(die_with_parent, os.getpid()),
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        for line in process.stdout:
            tell(line.rstrip())
    return process.returncode


def noted_content(workspace: Workspace) -> str | None:
    """The content hash with which the last run began; None where none came so far."""
    file = workspace.verified_data
    return str(json.loads(file.read_text())["content_hash"]) if file.exists() else None


def _known_hash(workspace: Workspace) -> str | None:
    """The hash computed earlier, if no file has been touched since."""
    if not workspace.verified_data.exists():
        return None
    note = json.loads(workspace.verified_data.read_text())
    return str(note["content_hash"]) if note["files"] == _fingerprint(workspace.data) else None


def _fingerprint(folder: Path) -> dict[str, list[int]]:
    """Size and modification time of every file."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(f.relative_to(folder)): [f.stat().st_size, f.stat().st_mtime_ns] for f in files}
