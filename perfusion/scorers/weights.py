"""Weights of scorers: where their files are, whether they are the right ones, and what is in them. Tensors alone."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors.torch import load_file
from torch import Tensor, nn

from perfusion.config import ScorerWeights
from perfusion.errors import WeightsError
from perfusion.model_folder import UNREADABLE, first_line
from perfusion.paths import stays_inside

__all__ = ["Source", "file_hash", "load_weights", "locate", "read_state"]

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Source:
    """Where the published weights of a model come from.

    Attributes:
        parameter: key of the parameter file that names them, e.g. "evaluate.weights.hpsv2".
        repository: hub id or address of the publisher.
        files: names its weights may have, the preferred one first.
    """

    parameter: str
    repository: str
    files: tuple[str, ...]

    @property
    def remedy(self) -> str:
        """What to do when they are not there."""
        return f"download {self.files[0]} of {self.repository} and set {self.parameter}, or unset it to use the twin"


def locate(weights: ScorerWeights, source: Source) -> Path:
    """The local file of these weights: `weights.path` itself, one in that folder, or one fetched from the hub.

    Raises:
        WeightsError: nothing there, or another hash than asked for; names the path and the remedy.
    """
    path = Path(weights.path)
    if path.is_file():
        found = path
    elif path.is_dir():
        held = [path / name for name in source.files if (path / name).is_file()]
        if not held:
            raise WeightsError(f"{path}: none of {', '.join(source.files)} in this folder; {source.remedy}")
        found = held[0]
        if not stays_inside(found, path):
            raise WeightsError(f"{found}: a link to {found.resolve()}, outside this folder; {source.remedy}")
    else:
        found = _fetch(weights.path, source)
    if weights.sha256 is not None and (real := file_hash(found)) != weights.sha256.lower():
        raise WeightsError(
            f"{found}: sha256 is {real}, {source.parameter}.sha256 asks for {weights.sha256}; fetch the file again, or "
            "correct the parameter if the change is meant"
        )
    return found


def _fetch(name: str, source: Source) -> Path:
    if _HUB_ID.fullmatch(name) is None:
        raise WeightsError(f"{name}: no such file or folder, and not a hub id (owner/name); {source.remedy}")
    problem = ""
    for file in source.files:
        try:
            return Path(hf_hub_download(name, file))
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            problem = first_line(error)
    raise WeightsError(f"{name}: no such file or folder, and the hub does not give it ({problem}); {source.remedy}")


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_state(path: Path, source: Source) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name: of safetensors, or of torch's format read without running any code.

    What trainers wrap around them is taken off: an outer `state_dict`, and the prefix `module.` of distributed runs.

    Raises:
        WeightsError: unreadable, refused by the safe reader, or not tensors by name.
    """
    try:
        found = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except UNREADABLE as error:
        raise WeightsError(
            f"{path}: no weights that can be read safely ({first_line(error)}); {source.remedy}"
        ) from error
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise WeightsError(f"{path}: not tensors by name; {source.remedy}")
    return {name.removeprefix("module."): value.float() for name, value in found.items()}


def load_weights(model: nn.Module, state: dict[str, Tensor], path: Path, source: Source) -> None:
    """Put a state dict into a model, every tensor of both accounted for.

    Raises:
        WeightsError: names what is missing, unexpected or of another shape.
    """
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:400]
        raise WeightsError(f"{path}: not the weights of this model ({reason}); {source.remedy}") from error
