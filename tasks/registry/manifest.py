"""What a model version consists of: the SHA-256 of each of its files, taken once when it is registered."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

__all__ = ["changed_files", "file_hashes", "manifest_digest"]

# Written into the folder by whoever loads the model: MLflow's note of the name it was loaded by, Python's byte code.
_BY_LOADING = ("registered_model_meta", "__pycache__")


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file under `folder` by its relative path, except what loading a model leaves there.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such model folder")
    names = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    files = [name for name in names if not set(name.parts) & set(_BY_LOADING)]
    with ThreadPoolExecutor() as pool:  # hashing lets other threads run: a large model's files are read side by side
        hashes = pool.map(_sha256, (folder / name for name in files))
        return {name.as_posix(): digest for name, digest in zip(files, hashes, strict=True)}


def manifest_digest(hashes: dict[str, str]) -> str:
    """One SHA-256 for a whole manifest, independent of the order of its files."""
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def changed_files(recorded: dict[str, str], found: dict[str, str]) -> list[str]:
    """One line for every file that is missing, extra or different; empty when the bytes are those recorded."""
    lines = [f"missing: {name}" for name in sorted(recorded.keys() - found.keys())]
    lines += [f"extra: {name}" for name in sorted(found.keys() - recorded.keys())]
    lines += [
        f"different: {name} is {found[name][:12]}, recorded {recorded[name][:12]}"
        for name in sorted(recorded.keys() & found.keys())
        if recorded[name] != found[name]
    ]
    return lines


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
