"""The SigLIP backbone (Table 5): two towers trained with a sigmoid loss, and its tiny twin.

It differs from CLIP in four ways: pictures have no class token and are read by a head that attends to all patches;
prompts are padded to full length and seen whole, padding included, as in its training; the last token is read; and the
match has a bias beside the scale, which no comparison within a group can see.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import BatchEncoding, SiglipConfig, SiglipImageProcessor, SiglipModel
from transformers.masking_utils import create_bidirectional_mask

from perfusion.config import ClipConfig
from perfusion.reward.backbones import TwoTowers
from perfusion.reward.clip import text_sizes, twin_sizes
from perfusion.reward.towers import all_layers, layers_of_one_token
from perfusion.reward.words import build_tokenizer

__all__ = ["SiglipBackbone", "siglip_twin"]

# Where the twin's training begins: a scale of 10 as SigLIP's, but no bias, as its pairs are not one in 32,000 true.
_LOG_SCALE, _BIAS = 2.302585092994046, 0.0


@dataclass(frozen=True)
class SiglipBackbone(TwoTowers):
    """A SiglipModel with its helpers; scores exp(logit_scale) * cosine + logit_bias (Eq. 6)."""

    kind: ClassVar[str] = "siglip"
    model_class: ClassVar[Any] = SiglipModel

    @property
    def width(self) -> int:
        return self.model.config.vision_config.hidden_size

    @property
    def log_scale(self) -> Tensor:
        return self.model.logit_scale[0]

    def tokens(self, prompts: Sequence[str]) -> BatchEncoding:
        """Tokens on the model's device, all of the model's length and without a mask, as in SigLIP's training."""
        tokens = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=self.text_length, return_tensors="pt"
        )
        return BatchEncoding({"input_ids": tokens["input_ids"]}).to(self.device)

    def picture_start(self, pixel_values: Tensor) -> Tensor:
        return self.model.vision_model.embeddings(pixel_values)

    def picture_embeds(self, start: Tensor, knowledge: Tensor | None = None) -> Tensor:
        tower = self.model.vision_model
        hidden = all_layers(tower.encoder.layers, start, None, knowledge)
        return tower.head(tower.post_layernorm(hidden))

    def prompt_embeds(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, knowledge: Tensor | None = None
    ) -> Tensor:
        tower = self.model.text_model
        start = tower.embeddings(input_ids)
        mask: Any = create_bidirectional_mask(config=tower.config, inputs_embeds=start, attention_mask=attention_mask)
        seen = None if attention_mask is None else attention_mask.bool()
        read = torch.full((len(start),), start.shape[1] - 1, device=start.device)
        hidden = layers_of_one_token(tower.encoder.layers, start, mask, seen, read, knowledge)
        return tower.head(tower.final_layer_norm(hidden))

    def match(self, text: Tensor, image: Tensor, scale: Tensor) -> Tensor:
        """scale * cosine + logit_bias of embeddings (R, P), (R,) (Eq. 6)."""
        return super().match(text, image, scale) + self.model.logit_bias


def siglip_twin(texts: Iterable[str], image_size: int, config: ClipConfig) -> SiglipBackbone:
    """An untrained tiny twin: the classes of the real backbone at the sizes of `config`.

    Weights come from torch's global generator: seed it before. The joint embedding is as wide as the towers.
    """
    tokenizer = build_tokenizer(texts)
    model = SiglipModel(
        SiglipConfig(
            text_config={**twin_sizes(config), **text_sizes(tokenizer)},
            vision_config={**twin_sizes(config), "image_size": image_size, "patch_size": config.patch},
        )
    )
    with torch.no_grad():
        model.logit_scale.fill_(_LOG_SCALE)
        model.logit_bias.fill_(_BIAS)
    processor = SiglipImageProcessor(size={"height": image_size, "width": image_size})
    return SiglipBackbone(model, tokenizer, processor)
