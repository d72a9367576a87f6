"""The CLIP backbone: PickScore, CLIP-H, OpenAI's, and the tiny twin of the same classes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, PreTrainedTokenizerBase

from perfusion.config import ClipConfig
from perfusion.reward import towers
from perfusion.reward.backbones import TwoTowers
from perfusion.reward.words import TEXT_LENGTH, build_tokenizer

__all__ = ["ClipBackbone", "clip_twin", "text_sizes", "twin_sizes"]


@dataclass(frozen=True)
class ClipBackbone(TwoTowers):
    """A CLIPModel with its helpers; scores exp(logit_scale) * cosine."""

    kind: ClassVar[str] = "clip"
    model_class: ClassVar[Any] = CLIPModel

    @property
    def width(self) -> int:
        return self.model.config.projection_dim

    def picture_start(self, pixel_values: Tensor) -> Tensor:
        return towers.picture_start(self.model, pixel_values)

    def picture_embeds(self, start: Tensor, knowledge: Tensor | None = None) -> Tensor:
        return towers.picture_embeds(self.model, start, knowledge)

    def prompt_embeds(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, knowledge: Tensor | None = None
    ) -> Tensor:
        return towers.prompt_embeds(self.model, input_ids, attention_mask, knowledge)


def twin_sizes(config: ClipConfig) -> dict[str, Any]:
    """Sizes of one encoder of any twin."""
    return {
        "hidden_size": config.width,
        "intermediate_size": 4 * config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "hidden_act": "gelu",
    }


def text_sizes(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The sizes of a twin's text tower that follow from its tokenizer, in transformers' names."""
    return {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": TEXT_LENGTH,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def clip_twin(texts: Iterable[str], image_size: int, config: ClipConfig) -> ClipBackbone:
    """An untrained tiny twin: the classes of the real backbone at the sizes of `config`.

    Weights come from torch's global generator: seed it before.
    """
    tokenizer = build_tokenizer(texts)
    clip = CLIPModel(
        CLIPConfig(
            text_config={**twin_sizes(config), **text_sizes(tokenizer)},
            vision_config={**twin_sizes(config), "image_size": image_size, "patch_size": config.patch},
            projection_dim=config.projection,
        )
    )
    processor = CLIPImageProcessor(
        size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size}
    )
    return ClipBackbone(clip, tokenizer, processor)
