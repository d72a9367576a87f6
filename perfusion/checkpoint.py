"""Training state on disk: written whole or not at all, refused when it belongs to another run."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perfusion.errors import WeightsError

__all__ = ["atomic_write", "load_training_state", "run_key", "save_training_state"]


def run_key(**parts: object) -> str:
    """A short key of everything a training run depends on (config, data hash, seed); a changed part changes the key."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def atomic_write(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader, or a crash, sees the old file or the new one and never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_training_state(path: Path, state: Mapping[str, Any]) -> None:
    """Save a (nested) mapping of tensors and plain values atomically."""
    import torch  # here, so that writing a file atomically does not cost a second of import

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        torch.save(dict(state), temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_training_state(path: Path, key: str) -> dict[str, Any] | None:
    """Read a state saved by `save_training_state`; None when there is none or it belongs to another run key.

    Only tensors and plain values are read (`weights_only=True`); nothing else is unpickled, and no code of it runs.

    Raises:
        WeightsError: the file is broken, or holds more than tensors and plain values.
    """
    if not path.exists():
        return None
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise WeightsError(
            f"{path}: not a training state that can be read safely ({reason}); delete it: the training starts anew"
        ) from error
    if not isinstance(state, dict):
        raise WeightsError(f"{path}: holds a {type(state).__name__}, want a state by name; delete it to start anew")
    return state if state.get("key") == key else None
