"""Every model of the paper: whether its real weights are given here, and where they come from otherwise."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from perfusion.config import Params

__all__ = ["ModelRow", "weights_table"]


@dataclass(frozen=True)
class ModelRow:
    """One model.

    Attributes:
        model: its name in the paper.
        state: "present": its files are here; "asked": named, but not here: the hub is asked for it; "twin": not named,
            a small stand-in of the same class is used.
        where: the path or hub id that is named; None for a twin.
        sha256: of each weights file that is here, in the order of names; empty when none is.
        download: file or folder and repository to fetch.
        parameter: what to set to it.
    """

    model: str
    state: Literal["present", "asked", "twin"]
    where: str | None
    sha256: tuple[str, ...]
    download: str
    parameter: str


def weights_table(params: Params) -> list[ModelRow]:
    """A row for each scorer, reward backbone and generator backbone of the paper. Reads every byte of what is here."""
    from perfusion.scorers.clip_h import CLIP_H
    from perfusion.scorers.hpsv1 import HPSV1
    from perfusion.scorers.hpsv2 import HPSV2, HPSV21
    from perfusion.scorers.imagereward import IMAGEREWARD
    from perfusion.scorers.pickscore import FROZEN_PICKSCORE

    evaluate = params.evaluate
    kinds = {"clip": "yuvalkirstain/PickScore_v1", "siglip": "google/siglip-base-patch16-224",
             "vilt": "dandelin/vilt-b32-finetuned-coco"}  # fmt: skip
    kind = params.clip.kind
    rows = [
        _row("Aesthetics, embedding", evaluate.aesthetic_clip, "openai/clip-vit-large-patch14",
             "evaluate.aesthetic_clip"),
        _row("Aesthetics, head", evaluate.aesthetic_head,
             "sac+logos+ava1-l14-linearMSE.pth of christophschuhmann/improved-aesthetic-predictor",
             "evaluate.aesthetic_head"),
        _row("CLIP Score", evaluate.clip_score_clip, "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
             "evaluate.clip_score_clip"),
    ]  # fmt: skip
    named = {"CLIP-H": CLIP_H, "ImageReward": IMAGEREWARD, "HPS v1": HPSV1, "HPS v2": HPSV2, "HPS v2.1": HPSV21,
             "PickScore, frozen": FROZEN_PICKSCORE}  # fmt: skip
    for model, source in named.items():
        given = {str(name): weights for name, weights in evaluate.weights.items()}.get(
            source.parameter.removeprefix("evaluate.weights.")
        )
        download = f"{source.files[0]} of {source.repository}"
        files = source.files
        rows.append(_row(model, None if given is None else given.path, download, source.parameter, files))
    for name, repository in kinds.items():
        path = params.clip.path if name == kind else None
        parameter = f"clip.path with clip.kind: {name}"
        rows.append(_row(f"reward backbone {name}", path, repository, parameter))
    rows.append(_row("Stable Diffusion 1.5", params.diffusion.path, "stable-diffusion-v1-5/stable-diffusion-v1-5",
                     "diffusion.path"))  # fmt: skip
    return rows


def _row(model: str, path: str | None, download: str, parameter: str, files: tuple[str, ...] = ()) -> ModelRow:
    if path is None:
        return ModelRow(model, "twin", None, (), download, parameter)
    found = _files(Path(path), files)
    if not found:
        return ModelRow(model, "asked", path, (), download, parameter)
    from perfusion.scorers.weights import file_hash

    return ModelRow(model, "present", path, tuple(file_hash(file) for file in found), download, parameter)


def _files(path: Path, files: tuple[str, ...]) -> list[Path]:
    """The weights files that `path` holds: itself, the first of `files` in it, or what model folders hold."""
    if path.is_file():
        return [path]
    if files:
        return [path / name for name in files if os.path.isfile(path / name)][:1]
    return sorted(path.glob("**/*.safetensors")) or sorted(path.glob("**/*.bin"))
