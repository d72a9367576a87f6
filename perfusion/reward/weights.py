"""Backbones from disk or hub, checked; and the tiny twin of each kind."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import cast

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import AutoImageProcessor, AutoTokenizer

from perfusion.config import ClipConfig
from perfusion.errors import WeightsError
from perfusion.model_folder import check_model_folder, reading
from perfusion.reward.backbones import Backbone, TwoTowers
from perfusion.reward.clip import ClipBackbone, clip_twin
from perfusion.reward.siglip import SiglipBackbone, siglip_twin
from perfusion.reward.vilt import ViltBackbone, vilt_twin

__all__ = ["KINDS", "load_backbone", "load_clip", "load_towers", "twin", "weights_hash"]

KINDS: dict[str, type[Backbone]] = {"clip": ClipBackbone, "siglip": SiglipBackbone, "vilt": ViltBackbone}
_TWINS: dict[str, Callable[[Iterable[str], int, ClipConfig], Backbone]] = {
    "clip": clip_twin, "siglip": siglip_twin, "vilt": vilt_twin,
}  # fmt: skip
_CHUNK = 1 << 20


def twin(texts: Iterable[str], image_size: int, config: ClipConfig) -> Backbone:
    """An untrained tiny twin of `config.kind`: the classes of the real backbone at the sizes of `config`.

    Args:
        texts: whose words its tokenizer knows.
        image_size: pixels along its pictures.
    """
    return _TWINS[config.kind](texts, image_size, config)


def load_clip(path: str | Path, sha256: str | None = None, processor: str | Path | None = None) -> ClipBackbone:
    """`load_backbone` of a CLIP model; any other kind is a WeightsError."""
    return cast(ClipBackbone, load_backbone(path, sha256, processor, ("clip",)))


def load_towers(path: str | Path, sha256: str | None = None, processor: str | Path | None = None) -> TwoTowers:
    """`load_backbone` of a model that embeds prompts and pictures apart; any other kind is a WeightsError."""
    return cast(TwoTowers, load_backbone(path, sha256, processor, ("clip", "siglip")))


def load_backbone(
    path: str | Path, sha256: str | None = None, processor: str | Path | None = None,
    kinds: Collection[str] = tuple(KINDS),
) -> Backbone:  # fmt: skip
    """Load a backbone with its tokenizer and image processor, in evaluation mode.

    Args:
        path: a directory, or a hub id such as "yuvalkirstain/PickScore_v1", "google/siglip-base-patch16-224" or
            "dandelin/vilt-b32-finetuned-coco".
        sha256: expected hash (see `weights_hash`); None skips the check.
        processor: directory or hub id of tokenizer and image processor when they are kept apart from the weights.
        kinds: those of `KINDS` that will do.

    Raises:
        WeightsError: nothing there, incomplete, of no known or another kind, or another hash; names path and remedy.
    """
    folder = _resolve(path)
    if sha256 is not None and weights_hash(folder) != sha256.lower():
        raise WeightsError(
            f"{folder}: weights have sha256 {weights_hash(folder)}, clip.sha256 asks for {sha256}; fetch them again, "
            "or correct the parameter if the change is meant"
        )
    with reading(f"{folder}/config.json", "fetch it again, or point clip.path at another folder"):
        kind = json.loads((folder / "config.json").read_text()).get("model_type")
    if kind not in kinds:
        raise WeightsError(
            f"{folder}: config.json says model_type {kind!r}, need {' or '.join(map(repr, kinds))} here; "
            "set clip.path and clip.kind to the same model"
        )
    helpers = folder if processor is None else _resolve(processor, weights=False)
    built = KINDS[kind]
    with reading(
        f"{path}: as a {built.model_class.__name__} with tokenizer and image processor",
        "Point clip.path at a folder written by save_pretrained, and clip.processor at the one with tokenizer.json and "
        "preprocessor_config.json if they are apart",
    ):
        model = built.model_class.from_pretrained(folder, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(helpers, trust_remote_code=False)
        images = AutoImageProcessor.from_pretrained(helpers, trust_remote_code=False)
    return built(model.eval(), tokenizer, images)


def weights_hash(folder: Path) -> str:
    """SHA-256 of the weights: of the file's bytes, or of all shards' in the order of their names.

    Raises:
        WeightsError: no weights in the folder.
    """
    files = _weight_files(folder)
    if not files:
        raise WeightsError(f"{folder}: no *.safetensors or pytorch_model*.bin; point clip.path at a complete download")
    digest = hashlib.sha256()
    for file in files:
        with open(file, "rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def _weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))


def _resolve(path: str | Path, weights: bool = True) -> Path:
    """The local folder of a directory or hub id, checked for config and weights."""
    folder = Path(path)
    if not folder.is_dir():
        folder = _download(str(path))
    check_model_folder(folder)
    if not weights:
        return folder
    if not (folder / "config.json").is_file() or not _weight_files(folder):
        found = ", ".join(sorted(item.name for item in folder.iterdir())[:8]) or "nothing"
        raise WeightsError(
            f"{folder}: need config.json and model.safetensors, found {found}; point clip.path at a folder written by "
            "save_pretrained, or unset it to train the tiny twin"
        )
    return folder


def _download(name: str) -> Path:
    remedy = "give clip.path an existing folder, download the model there once, or unset it to train the tiny twin"
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise WeightsError(f"{name}: no such folder, and not a hub id (owner/name); {remedy}")
    patterns = ["*.json", "*.txt", "spiece.model", "model*.safetensors", "pytorch_model*.bin"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise WeightsError(f"{name}: no such folder, and the hub does not give it ({error}); {remedy}") from error
