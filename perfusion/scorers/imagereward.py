"""ImageReward: BLIP reads the prompt while it looks at the picture, a head turns that into a reward; blind to users."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from torch import Tensor, nn
from transformers import AutoTokenizer, BlipTextConfig, BlipVisionConfig, BlipVisionModel, PreTrainedTokenizerBase
from transformers.models.blip.modeling_blip_text import BlipTextModel

from perfusion.config import ScorerWeights
from perfusion.model_folder import check_model_folder, reading
from perfusion.reward.backbones import PicturePreparation
from perfusion.reward.batches import spread
from perfusion.scorers.aesthetic import AestheticHead, fit_head
from perfusion.scorers.embedding import rows_of
from perfusion.scorers.protocol import check_batch, reported_name
from perfusion.scorers.weights import Source, load_weights, locate, read_state

__all__ = ["IMAGEREWARD", "ImageRewardModel", "ImageRewardScore", "imagereward_twin", "load_imagereward", "our_names"]

IMAGEREWARD = Source("evaluate.weights.imagereward", "THUDM/ImageReward", ("ImageReward.pt",))
TOKENIZER = "google-bert/bert-base-uncased"
_MEAN, _STD = 0.16717362830052426, 1.0333394966054072  # of rewards on the authors' test set
_TEXT_LENGTH = 35
_PICTURES = 64  # a pass

#: BLIP-L as ImageReward builds it: ViT-L/16 and a BERT of 12 heads that looks at the picture (its med_config.json).
LARGE_VISION = BlipVisionConfig(
    hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=224,
    patch_size=16, layer_norm_eps=1e-6,
)  # fmt: skip
LARGE_TEXT = BlipTextConfig(
    vocab_size=30524, hidden_size=768, encoder_hidden_size=1024, intermediate_size=3072, num_hidden_layers=12,
    num_attention_heads=12, layer_norm_eps=1e-12,
)  # fmt: skip

#: The original package's names of parts -> transformers' (after `blip.`); applied in order.
_RENAMED = (
    (r"^visual_encoder\.cls_token$", "vision.embeddings.class_embedding"),
    (r"^visual_encoder\.pos_embed$", "vision.embeddings.position_embedding"),
    (r"^visual_encoder\.patch_embed\.proj\.", "vision.embeddings.patch_embedding."),
    (r"^visual_encoder\.norm\.", "vision.post_layernorm."),
    (r"^visual_encoder\.blocks\.(\d+)\.norm(\d)\.", r"vision.encoder.layers.\1.layer_norm\2."),
    (r"^visual_encoder\.blocks\.(\d+)\.attn\.qkv\.", r"vision.encoder.layers.\1.self_attn.qkv."),
    (r"^visual_encoder\.blocks\.(\d+)\.attn\.proj\.", r"vision.encoder.layers.\1.self_attn.projection."),
    (r"^visual_encoder\.blocks\.(\d+)\.mlp\.", r"vision.encoder.layers.\1.mlp."),
    (r"^text_encoder\.", "text."),
)
_UNUSED = ("blip.vision_proj.", "blip.text_proj.", "blip.text_encoder.embeddings.position_ids")


class ImageRewardModel(nn.Module):
    """BLIP's two encoders and the head.

    Args:
        vision, text: sizes; `text.encoder_hidden_size` is the width of `vision`.
    """

    def __init__(self, vision: BlipVisionConfig, text: BlipTextConfig) -> None:
        super().__init__()
        self.vision = BlipVisionModel(vision)
        self.text = BlipTextModel(text, add_pooling_layer=False)
        self.mlp = AestheticHead(text.hidden_size)  # the same chain of linear layers

    def features(self, input_ids: Tensor, attention_mask: Tensor, pictures: Tensor) -> Tensor:
        """What the first token of each prompt (R, T) knows after looking at its picture (R, 3, S, S): (R, D)."""
        seen = self.vision(pixel_values=pictures).last_hidden_state
        everywhere = torch.ones(seen.shape[:-1], dtype=torch.long, device=seen.device)
        read = self.text(
            input_ids=input_ids, attention_mask=attention_mask, encoder_hidden_states=seen,
            encoder_attention_mask=everywhere,
        )  # fmt: skip
        return read.last_hidden_state[:, 0]

    def forward(self, input_ids: Tensor, attention_mask: Tensor, pictures: Tensor) -> Tensor:
        """(R,) rewards, about 0 on average and 1 in spread for the published weights."""
        return (self.mlp(self.features(input_ids, attention_mask, pictures)) - _MEAN) / _STD


@dataclass(frozen=True)
class ImageRewardScore:
    """ImageReward's number for a prompt and a picture, unbounded, about -2 to 2.

    Attributes:
        model: in evaluation mode.
        tokenizer: BERT's, or that of the twin.
        twin: whether it is the tiny twin.
    """

    model: ImageRewardModel
    tokenizer: PreTrainedTokenizerBase
    twin: bool
    encoder: ClassVar[None] = None

    @property
    def name(self) -> str:
        return reported_name("imagereward", self.twin)

    @torch.no_grad()
    def score(
        self, prompts: list[str], pixels: Tensor, users: Tensor | None = None, valid: Tensor | None = None
    ) -> Tensor:
        """See `perfusion.scorers.Scorer`; users are ignored."""
        check_batch(prompts, pixels, users, valid)
        pictures, group, valid = rows_of(pixels, valid)
        asked = [prompts[row] for row in group.tolist()]
        rewards = [torch.zeros(0)]
        for start in range(0, len(pictures), _PICTURES):
            part = slice(start, start + _PICTURES)
            rewards.append(self.model(*self._inputs(asked[part], pictures[part])).float().cpu())
        return spread(torch.cat(rewards), valid)

    @torch.no_grad()
    def features(self, prompts: list[str], pictures: Tensor) -> Tensor:
        """What the head is given of n prompts and pictures (n, 3, H, W) uint8: (n, D)."""
        parts = []
        for start in range(0, len(pictures), _PICTURES):
            part = slice(start, start + _PICTURES)
            parts.append(self.model.features(*self._inputs(prompts[part], pictures[part])).float().cpu())
        return torch.cat(parts)

    def _inputs(self, prompts: list[str], pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        device = next(self.model.parameters()).device
        tokens = self.tokenizer(
            prompts, padding="max_length", truncation=True, max_length=_TEXT_LENGTH, return_tensors="pt"
        ).to(device)
        side = int(self.model.vision.config.image_size)  # type: ignore[arg-type]  # a square's
        prepare = PicturePreparation(side, tuple(OPENAI_DATASET_MEAN), tuple(OPENAI_DATASET_STD))
        return tokens["input_ids"], tokens["attention_mask"], prepare(pictures.to(device))


def load_imagereward(weights: ScorerWeights, vision: BlipVisionConfig = LARGE_VISION,
                     text: BlipTextConfig = LARGE_TEXT) -> ImageRewardScore:  # fmt: skip
    """The published model; its tokenizer is BERT's, from `weights.processor`.

    Args:
        weights: ImageReward.pt, a folder with it, or THUDM/ImageReward.
        vision, text: sizes of the checkpoint; BLIP-L's but in tests.

    Raises:
        WeightsError: weights or tokenizer are absent or others; names the path and the remedy.
    """
    path = locate(weights, IMAGEREWARD)
    model = ImageRewardModel(vision, text)
    load_weights(model, our_names(read_state(path, IMAGEREWARD)), path, IMAGEREWARD)
    place = weights.processor or TOKENIZER
    if Path(place).is_dir():
        check_model_folder(Path(place))
    remedy = f"Download {TOKENIZER} and set {IMAGEREWARD.parameter}.processor to its folder"
    with reading(f"{place}: no tokenizer there", remedy):
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    return ImageRewardScore(model.eval(), tokenizer, twin=False)


def our_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint of the original package under the names of `ImageRewardModel`, less what scoring does not use.

    `AestheticHead` has the head's own names, so `mlp.layers.*` stay.
    """
    found = {}
    for name, value in state.items():
        if name.startswith(_UNUSED):
            continue
        inner = name.removeprefix("blip.")
        for pattern, ours in _RENAMED:
            inner = re.sub(pattern, ours, inner)
        found[inner] = value
    return found


def imagereward_twin(tokenizer: PreTrainedTokenizerBase, pictures: Tensor, ratings: Tensor) -> ImageRewardScore:
    """The same classes at 2 layers of width 64: random encoders, a head fitted to ratings of training pictures.

    The encoders are random, the same in every run, and read no prompt while the head is fitted: it judges roughly what
    everybody likes, and not at all how well a picture shows its prompt.

    Args:
        tokenizer: of the CLIP twin.
        pictures: (n, 3, S, S) uint8.
        ratings: (n,) see `fit_head`.
    """
    sizes: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    side = pictures.shape[-1]
    vision = BlipVisionConfig(**sizes, image_size=side, patch_size=max(side // 4, 1), initializer_range=0.1)
    text = BlipTextConfig(
        **sizes, vocab_size=len(tokenizer), encoder_hidden_size=64, max_position_embeddings=_TEXT_LENGTH,
        initializer_range=0.1, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        sep_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        scorer = ImageRewardScore(ImageRewardModel(vision, text).eval(), tokenizer, twin=True)
    scorer.model.mlp = fit_head(scorer.features([""] * len(pictures), pictures), ratings)
    return scorer
