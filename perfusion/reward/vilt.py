"""The ViLT backbone (Table 5): one encoder over the tokens of prompt and picture together, and its tiny twin.

There is one encoder, so there is one plug-in, and nothing of a prompt or a picture can be embedded apart from the
other: a pair costs a pass through the encoder.

transformers' own embedding of a picture draws the order of its patches at random. The order carries no meaning, but it
moves the last digits; here patches stay in their places, so that a score is a function of what is scored.

Legend: R rows (candidates), B groups, T tokens of a picture (class token and patches), S tokens of a prompt, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import BatchEncoding, ViltConfig, ViltForImageAndTextRetrieval, ViltImageProcessor
from transformers.masking_utils import create_bidirectional_mask

from perfusion.config import ClipConfig
from perfusion.errors import ConfigError
from perfusion.reward.backbones import Backbone, PlugIns, Told, nobody
from perfusion.reward.clip import twin_sizes
from perfusion.reward.words import TEXT_LENGTH, build_tokenizer

__all__ = ["ViltBackbone", "vilt_twin"]


@dataclass(frozen=True)
class ViltBackbone(Backbone):
    """A ViltForImageAndTextRetrieval with its helpers; scores its rank output, whose scale is its own."""

    kind: ClassVar[str] = "vilt"
    model_class: ClassVar[Any] = ViltForImageAndTextRetrieval
    variants: ClassVar[Mapping[str, PlugIns]] = {"full": {"joint": ("joint",)}}

    @property
    def layers(self) -> dict[str, nn.ModuleList]:
        return {"joint": self.model.vilt.encoder.layer}

    @property
    def sizes(self) -> dict[str, tuple[int, int]]:
        return {"joint": (self.model.config.hidden_size, self.model.config.num_hidden_layers)}

    @property
    def side(self) -> int:
        return self.model.config.image_size

    @property
    def start_shape(self) -> tuple[int, int]:
        return self.model.vilt.embeddings.position_embeddings.shape[1], self.model.config.hidden_size

    @property
    def text_length(self) -> int:
        return self.model.config.max_position_embeddings

    @property
    def log_scale(self) -> Tensor:
        """0: the rank output comes with its scale."""
        return torch.zeros((), device=self.device)

    def picture_start(self, pixel_values: Tensor) -> Tensor:
        """Class token and patches in their places, with positions and the picture's type: (R, T, D)."""
        embeddings = self.model.vilt.embeddings
        patches = embeddings.patch_embeddings(pixel_values).flatten(2).transpose(1, 2)
        tokens = torch.cat([embeddings.cls_token.expand(len(patches), -1, -1), patches], dim=1)
        tokens = embeddings.dropout(tokens + embeddings.position_embeddings)
        return tokens + embeddings.token_type_embeddings.weight[1]

    def scores(
        self, text: BatchEncoding | Tensor, image: Tensor, group: Tensor, told: Told = nobody,
        scale: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """See `Backbone.scores`: scale * rank output of each pair of prompt and picture.

        Raises:
            ConfigError: an embedding is given, which there is none of.
        """
        if isinstance(text, Tensor) or image.ndim == 2:
            raise ConfigError("vilt reads prompt and picture together and has no embeddings: pass tokens and pictures")
        start = self.picture_start(image) if image.ndim == 4 else image
        vilt, seen = self.model.vilt, text["attention_mask"]
        words = vilt.embeddings.text_embeddings(input_ids=text["input_ids"])
        words = words + vilt.embeddings.token_type_embeddings.weight[0]
        hidden = torch.cat([words[group], start], dim=1)  # (R, S + T, D)
        present = torch.cat([seen[group], seen.new_ones(start.shape[:2])], dim=1)
        mask = create_bidirectional_mask(config=vilt.config, inputs_embeds=hidden, attention_mask=present)
        knowledge = told("joint")
        options = {} if knowledge is None else {"knowledge": knowledge[group]}
        for layer in vilt.encoder.layer:
            hidden = layer(hidden, mask, **options)[0]
        rank = self.model.rank_output(vilt.pooler(vilt.layernorm(hidden)))[:, 0]
        return rank if scale is None else scale * rank


def vilt_twin(texts: Iterable[str], image_size: int, config: ClipConfig) -> ViltBackbone:
    """An untrained tiny twin: the classes of the real backbone at the sizes of `config`.

    Weights come from torch's global generator: seed it before.
    """
    tokenizer = build_tokenizer(texts)
    model = ViltForImageAndTextRetrieval(
        ViltConfig(
            **twin_sizes(config), vocab_size=len(tokenizer), max_position_embeddings=TEXT_LENGTH,
            pad_token_id=tokenizer.pad_token_id, image_size=image_size, patch_size=config.patch,
            initializer_range=config.width**-0.5,
        )
    )  # fmt: skip
    with torch.no_grad():  # transformers leaves them at zero, where all patches are in one place
        model.vilt.embeddings.position_embeddings.normal_(std=model.config.initializer_range)
    processor = ViltImageProcessor(size={"shortest_edge": image_size}, size_divisor=config.patch)  # type: ignore[call-arg]
    return ViltBackbone(model, tokenizer, processor)
