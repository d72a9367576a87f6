"""What a frozen backbone has to answer so that a reward model can be built around it: CLIP, SigLIP, ViLT (Sec. 5.6).

A backbone reads prompts and pictures with one encoder or two, and matches them. Users are heard in the encoders'
layers, so what comes before the first layer is the same for everybody and can be kept (`perfusion.reward.frozen`).

Legend: B groups, R rows (candidates of all groups), T tokens, L layers and D width of an encoder, P width of a joint
embedding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BatchEncoding, PreTrainedTokenizerBase

from perfusion.errors import ConfigError
from perfusion.model_folder import forget_calls
from perfusion.reward.losses import cosine_similarity

__all__ = ["VARIANTS", "Backbone", "PicturePreparation", "PlugIns", "Told", "TwoTowers", "nobody"]

Told = Callable[[str], Tensor | None]  # name of an encoder -> what it is told of the groups' users, (B, L, 2, D)
PlugIns = Mapping[str, tuple[str, ...]]  # name of a plug-in -> the encoders it serves

VARIANTS: dict[str, PlugIns] = {  # of two towers (Fig. 5)
    "full": {"text": ("text",), "vision": ("vision",)},
    "shared": {"both": ("text", "vision")},
    "vision_only": {"vision": ("vision",)},
    "text_only": {"text": ("text",)},
}


def nobody(encoder: str) -> None:
    """What an encoder is told when nobody asks."""
    return


@dataclass(frozen=True)
class PicturePreparation:
    """uint8 pictures -> what a vision tower takes: resize, rescale and normalise, on tensors.

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
class Backbone(ABC):
    """A model of transformers that scores a picture for a prompt, with what turns both into its inputs.

    Attributes:
        model: of `model_class`; its layers may be injectable or not.
        tokenizer, processor: None only inside a model whose helpers are not attached yet.
        kind: the name in configurations, transformers' `model_type`.
        variants: for each variant of PerFusionRM, its plug-ins (Fig. 5).
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    processor: Any
    kind: ClassVar[str]
    model_class: ClassVar[Any]
    variants: ClassVar[Mapping[str, PlugIns]]

    @property
    @abstractmethod
    def layers(self) -> dict[str, nn.ModuleList]:
        """The Transformer layers of each encoder, by the encoder's name."""

    @property
    @abstractmethod
    def sizes(self) -> dict[str, tuple[int, int]]:
        """(D, L) of each encoder."""

    @property
    @abstractmethod
    def side(self) -> int:
        """Pixels along the square pictures the model takes."""

    @property
    @abstractmethod
    def start_shape(self) -> tuple[int, int]:
        """(T, D) of what the first layer is given of one picture."""

    @property
    @abstractmethod
    def text_length(self) -> int:
        """Tokens a prompt may have; longer ones are cut."""

    @property
    @abstractmethod
    def log_scale(self) -> Tensor:
        """Logarithm of the factor of the match, a scalar: exp(log_scale) is the temperature of Eq. 8."""

    @abstractmethod
    def picture_start(self, pixel_values: Tensor) -> Tensor:
        """What the first layer is given of prepared pictures (R, 3, S, S), whoever looks: (R, T, D)."""

    @abstractmethod
    def scores(
        self, text: BatchEncoding | Tensor, image: Tensor, group: Tensor, told: Told = nobody,
        scale: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Scores of R candidates, (R,).

        Args:
            text: input_ids and attention_mask (B, T) of a prompt per group, or (B, P) embeddings, of two towers.
            image: (R, 3, S, S) prepared, (R, T, D) of `picture_start`, or (R, P) embeddings, of two towers.
            group: (R,) long, the group of each candidate.
            told: what the encoders are told; by default nothing, user-blind.
            scale: factor of the match; None takes exp(log_scale).
        """

    @property
    def prepare(self) -> PicturePreparation:
        """The picture preparation of `processor`, for square pictures."""
        return PicturePreparation(self.side, tuple(self.processor.image_mean), tuple(self.processor.image_std))

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    def tokens(self, prompts: Sequence[str]) -> BatchEncoding:
        """Tokens on the model's device, padded to the longest prompt and cut at the model's length."""
        tokens = self.tokenizer(
            list(prompts), padding=True, truncation=True, max_length=self.text_length, return_tensors="pt"
        )
        return tokens.to(self.device)

    def plug_ins(self, variant: str) -> PlugIns:
        """The plug-ins of a variant.

        Raises:
            ConfigError: this backbone has no such variant; says why.
        """
        if variant not in VARIANTS:
            raise ConfigError(f"variant = {variant!r}: known are {', '.join(VARIANTS)}")
        if variant not in self.variants:
            raise ConfigError(
                f"reward.variant = {variant!r}: a {self.kind} backbone reads prompt and picture in one encoder, so "
                f"there is one plug-in to give it and none to share or leave out; use {', '.join(self.variants)}"
            )
        return self.variants[variant]

    def save(self, folder: Path) -> None:
        """Write what `load_backbone` reads: weights, config, tokenizer and image processor."""
        self.model.save_pretrained(folder)
        forget_calls(self.tokenizer)
        self.tokenizer.save_pretrained(folder)
        self.processor.save_pretrained(folder)


@dataclass(frozen=True)
class TwoTowers(Backbone):
    """A backbone of a text and a vision tower that meet in a joint embedding: CLIP, SigLIP (Eq. 6)."""

    variants: ClassVar[Mapping[str, PlugIns]] = VARIANTS

    @property
    @abstractmethod
    def width(self) -> int:
        """P, width of the joint embedding."""

    @abstractmethod
    def prompt_embeds(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, knowledge: Tensor | None = None
    ) -> Tensor:
        """Embeddings of prompts (R, T), told `knowledge` (R, L, 2, D): (R, P), not normalised."""

    @abstractmethod
    def picture_embeds(self, start: Tensor, knowledge: Tensor | None = None) -> Tensor:
        """Embeddings of pictures of which `start` (R, T, D) is kept, told `knowledge`: (R, P), not normalised."""

    @property
    def layers(self) -> dict[str, nn.ModuleList]:
        return {"text": self.model.text_model.encoder.layers, "vision": self.model.vision_model.encoder.layers}

    @property
    def sizes(self) -> dict[str, tuple[int, int]]:
        config = self.model.config
        towers = {"text": config.text_config, "vision": config.vision_config}
        return {name: (tower.hidden_size, tower.num_hidden_layers) for name, tower in towers.items()}

    @property
    def side(self) -> int:
        return self.model.config.vision_config.image_size

    @property
    def start_shape(self) -> tuple[int, int]:
        tower = self.model.vision_model
        return tower.embeddings.num_positions, tower.config.hidden_size

    @property
    def text_length(self) -> int:
        return self.model.config.text_config.max_position_embeddings

    @property
    def log_scale(self) -> Tensor:
        return self.model.logit_scale

    def scores(
        self, text: BatchEncoding | Tensor, image: Tensor, group: Tensor, told: Told = nobody,
        scale: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """See `Backbone.scores`: each tower reads for itself, then `match`."""
        if not isinstance(text, Tensor):
            text = self.prompt_embeds(**text, knowledge=told("text"))
        if image.ndim == 4:
            image = self.picture_start(image)
        if image.ndim == 3:
            knowledge = told("vision")
            image = self.picture_embeds(image, None if knowledge is None else knowledge[group])
        return self.match(text[group], image, self.log_scale.exp() if scale is None else scale)

    def match(self, text: Tensor, image: Tensor, scale: Tensor) -> Tensor:
        """scale * cosine of embeddings (R, P), (R,) (Eq. 6)."""
        return scale * cosine_similarity(text, image)
