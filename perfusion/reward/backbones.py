"""CLIP backbones: real ones from a directory or the hub, and the tiny twin of the same classes."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from torch.nn import functional
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    BatchEncoding,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from perfusion.config import ClipConfig
from perfusion.errors import WeightsError

__all__ = ["Backbone", "PicturePreparation", "build_tokenizer", "load_clip", "twin", "weights_hash"]

_SPECIAL = (
    "<pad>",
    "<unk>",
    "<start>",
    "<end>",
)  # not id 2 for <end>: transformers reads eos_token_id 2 as a legacy mark
_TEXT_LENGTH = 32
_CHUNK = 1 << 20


@dataclass(frozen=True)
class PicturePreparation:
    """uint8 pictures -> what the vision tower takes: CLIP's resize, rescale and normalise, on tensors.

    Attributes:
        size: side of the tower's input in pixels.
        mean, std: per channel, of values in [0, 1].
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, pixels: Tensor) -> Tensor:
        """(R, 3, H, W) uint8 -> (R, 3, size, size) float32, on the same device."""
        values = pixels.float() / 255.0
        if values.shape[-2:] != (self.size, self.size):
            values = functional.interpolate(
                values, size=(self.size, self.size), mode="bicubic", antialias=True, align_corners=False
            ).clamp_(0.0, 1.0)
        mean = torch.tensor(self.mean, device=pixels.device)[:, None, None]
        std = torch.tensor(self.std, device=pixels.device)[:, None, None]
        return values.sub_(mean).div_(std)


@dataclass(frozen=True)
class Backbone:
    """A CLIP model with what turns prompts and pictures into its inputs."""

    clip: CLIPModel
    tokenizer: PreTrainedTokenizerBase
    processor: CLIPImageProcessor

    @property
    def prepare(self) -> PicturePreparation:
        """The picture preparation of `processor`, for square pictures."""
        vision: Any = self.clip.config.vision_config
        return PicturePreparation(vision.image_size, tuple(self.processor.image_mean), tuple(self.processor.image_std))

    def tokens(self, prompts: Sequence[str]) -> BatchEncoding:
        """Tokens on the model's device, padded to the longest prompt and cut at the tower's length."""
        text: Any = self.clip.config.text_config
        tokens = self.tokenizer(
            list(prompts), padding=True, truncation=True, max_length=text.max_position_embeddings, return_tensors="pt"
        )
        return tokens.to(self.clip.device)

    def save(self, folder: Path) -> None:
        """Write config.json, model.safetensors, tokenizer.json and preprocessor_config.json: what `load_clip` reads."""
        self.clip.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        self.processor.save_pretrained(folder)


def build_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A word-level tokenizer that knows the words of `texts`; commas and spaces separate, case is ignored."""
    words = sorted({word for text in texts for word in re.split(r"[,\s]+", text.lower()) if word})
    vocabulary = {word: index for index, word in enumerate((*_SPECIAL, *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[,\s]+"), behavior="removed")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[(name, vocabulary[name]) for name in ("<start>", "<end>")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<start>", eos_token="<end>",
        model_max_length=_TEXT_LENGTH,
    )  # fmt: skip


def twin(texts: Iterable[str], image_size: int, config: ClipConfig) -> Backbone:
    """An untrained tiny twin: the classes of the real backbone at the sizes of `config`.

    Weights come from torch's global generator: seed it before.
    """
    tokenizer = build_tokenizer(texts)
    sizes = {
        "hidden_size": config.width,
        "intermediate_size": 4 * config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "hidden_act": "gelu",
    }
    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": _TEXT_LENGTH,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    clip = CLIPModel(
        CLIPConfig(
            text_config={**sizes, **text},
            vision_config={**sizes, "image_size": image_size, "patch_size": config.patch},
            projection_dim=config.projection,
        )
    )
    processor = CLIPImageProcessor(
        size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size}
    )
    return Backbone(clip, tokenizer, processor)


def load_clip(path: str | Path, sha256: str | None = None, processor: str | Path | None = None) -> Backbone:
    """Load a CLIP model with its tokenizer and image processor, in evaluation mode.

    Args:
        path: a directory, or a hub id such as "yuvalkirstain/PickScore_v1".
        sha256: expected hash (see `weights_hash`); None skips the check.
        processor: directory or hub id of tokenizer and image processor when they are kept apart from the weights.

    Raises:
        WeightsError: nothing there, incomplete, not a CLIP model, or another hash; names the path and the remedy.
    """
    folder = _resolve(path)
    if sha256 is not None and weights_hash(folder) != sha256.lower():
        raise WeightsError(
            f"{folder}: weights have sha256 {weights_hash(folder)}, clip.sha256 asks for {sha256}; fetch them again, "
            "or correct the parameter if the change is meant"
        )
    kind = json.loads((folder / "config.json").read_text()).get("model_type")
    if kind != "clip":
        raise WeightsError(f"{folder}: config.json says model_type {kind!r}; need a CLIPModel ('clip')")
    helpers = folder if processor is None else _resolve(processor, weights=False)
    try:
        clip = CLIPModel.from_pretrained(folder, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(helpers)
        images = AutoImageProcessor.from_pretrained(helpers)
    except (OSError, ValueError, SafetensorError) as error:
        raise WeightsError(
            f"{path}: cannot be loaded as a CLIP model with tokenizer and image processor: {error}\n"
            "Point clip.path at a folder written by save_pretrained, and clip.processor at the one with "
            "tokenizer.json and preprocessor_config.json if they are apart"
        ) from error
    return Backbone(clip.eval(), tokenizer, images)


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
    patterns = ["*.json", "*.txt", "model*.safetensors", "pytorch_model*.bin"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise WeightsError(f"{name}: no such folder, and the hub does not give it ({error}); {remedy}") from error
