"""The two towers of open_clip's CLIP: CLIP-H and the HPS family, and their twin made of our CLIP's weights."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import open_clip
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from torch import Tensor
from transformers import CLIPModel

from perfusion.config import ScorerWeights
from perfusion.reward.backbones import PicturePreparation
from perfusion.reward.clip import ClipBackbone
from perfusion.scorers.weights import Source, load_weights, locate, read_state

__all__ = ["OpenClipTowers", "load_open_clip", "open_clip_state", "open_clip_twin"]

_PICTURES, _PROMPTS = 64, 64  # a pass
_JIT_NUMBERS = ("input_resolution", "context_length", "vocab_size")  # OpenAI's own files hold them beside the weights


@dataclass(frozen=True)
class OpenClipTowers:
    """open_clip's model with what turns prompts and pictures into its inputs.

    Attributes:
        model: in evaluation mode.
        tokenize: prompts -> (B, T) long, cut and padded to the tower's length.
        prepare: (R, 3, H, W) uint8 square pictures -> the vision tower's input.
    """

    model: open_clip.CLIP
    tokenize: Callable[[list[str]], Tensor]
    prepare: PicturePreparation

    @property
    def width(self) -> int:
        """P, the width of the joint embedding."""
        return self.model.visual.output_dim

    @torch.no_grad()
    def embed_pictures(self, pixels: Tensor) -> Tensor:
        """(M, 3, H, W) uint8 -> (M, P) float32 on the CPU, not normalised."""
        found = torch.empty(len(pixels), self.width)
        for start in range(0, len(pixels), _PICTURES):
            part = slice(start, start + _PICTURES)
            found[part] = self.model.encode_image(self.prepare(pixels[part].to(self.model.logit_scale.device)))
        return found

    @torch.no_grad()
    def embed_prompts(self, prompts: Collection[str]) -> dict[str, Tensor]:
        """Embeddings (P,) on the CPU, not normalised, by prompt."""
        distinct = sorted(set(prompts))
        found: dict[str, Tensor] = {}
        for start in range(0, len(distinct), _PROMPTS):
            part = distinct[start : start + _PROMPTS]
            tokens = self.tokenize(part).to(self.model.logit_scale.device)
            found.update(zip(part, self.model.encode_text(tokens).float().cpu(), strict=True))
        return found


def load_open_clip(architecture: str, weights: ScorerWeights, source: Source) -> OpenClipTowers:
    """A published model with open_clip's own tokenizer.

    Args:
        architecture: of open_clip's model configs, e.g. "ViT-H-14".
        weights: where they are.
        source: where they come from.

    Raises:
        WeightsError: absent, unreadable, another hash or another model; names the path and the remedy.
    """
    path = locate(weights, source)
    config = open_clip.get_model_config(architecture)
    return towers_of(config, path, source)


def towers_of(config: dict[str, object], path: Path, source: Source) -> OpenClipTowers:
    """The model of an open_clip config with the weights of a file and open_clip's BPE tokenizer."""
    state = {name: value for name, value in read_state(path, source).items() if name not in _JIT_NUMBERS}
    model = open_clip.CLIP(**config)
    load_weights(model, state, path, source)
    tokenizer = open_clip.SimpleTokenizer(context_length=model.context_length)
    return _towers(model.eval(), tokenizer, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)


def open_clip_twin(backbone: ClipBackbone) -> OpenClipTowers:
    """open_clip's class with the weights, tokenizer and picture preparation of our CLIP; equal to it in output."""
    text, vision = backbone.model.config.text_config, backbone.model.config.vision_config
    legacy = text.eos_token_id == 2  # transformers then reads the largest id as the end, as open_clip does
    model = open_clip.CLIP(
        embed_dim=backbone.model.config.projection_dim,
        quick_gelu=text.hidden_act == "quick_gelu",
        vision_cfg={
            "image_size": vision.image_size, "patch_size": vision.patch_size, "width": vision.hidden_size,
            "layers": vision.num_hidden_layers, "head_width": vision.hidden_size // vision.num_attention_heads,
            "mlp_ratio": vision.intermediate_size / vision.hidden_size,
            "norm_kwargs": {"eps": vision.layer_norm_eps},
        },
        text_cfg={
            "context_length": text.max_position_embeddings, "vocab_size": text.vocab_size, "width": text.hidden_size,
            "layers": text.num_hidden_layers, "heads": text.num_attention_heads,
            "mlp_ratio": text.intermediate_size / text.hidden_size, "norm_kwargs": {"eps": text.layer_norm_eps},
            "pool_type": "argmax" if legacy else "eos", "eos_id": text.eos_token_id,
        },
    )  # fmt: skip
    model.load_state_dict(open_clip_state(backbone.model))

    def tokenize(prompts: list[str]) -> Tensor:
        tokens = backbone.tokenizer(
            prompts, padding="max_length", truncation=True, max_length=text.max_position_embeddings,
            return_tensors="pt",
        )  # fmt: skip
        return tokens["input_ids"]

    return _towers(model.eval(), tokenize, backbone.processor.image_mean, backbone.processor.image_std)


def _towers(
    model: open_clip.CLIP, tokenize: Callable[[list[str]], Tensor], mean: Sequence[float], std: Sequence[float]
) -> OpenClipTowers:
    (size, _) = model.visual.image_size
    return OpenClipTowers(model, tokenize, PicturePreparation(size, tuple(mean), tuple(std)))


def open_clip_state(clip: CLIPModel) -> dict[str, Tensor]:
    """The weights of a transformers CLIP under open_clip's names and in its shapes."""
    theirs = clip.state_dict()
    state = {
        "logit_scale": theirs["logit_scale"],
        "positional_embedding": theirs["text_model.embeddings.position_embedding.weight"],
        "token_embedding.weight": theirs["text_model.embeddings.token_embedding.weight"],
        "text_projection": theirs["text_projection.weight"].T,
        "visual.class_embedding": theirs["vision_model.embeddings.class_embedding"],
        "visual.positional_embedding": theirs["vision_model.embeddings.position_embedding.weight"],
        "visual.conv1.weight": theirs["vision_model.embeddings.patch_embedding.weight"],
        "visual.proj": theirs["visual_projection.weight"].T,
    }
    norms = {
        "ln_final": "text_model.final_layer_norm",
        "visual.ln_pre": "vision_model.pre_layrnorm",
        "visual.ln_post": "vision_model.post_layernorm",
    }
    for tower, ours in (("text_model", "transformer"), ("vision_model", "visual.transformer")):
        layers = {name.split(".")[3] for name in theirs if name.startswith(f"{tower}.encoder.layers.")}
        for layer in layers:
            here, there = f"{ours}.resblocks.{layer}", f"{tower}.encoder.layers.{layer}"
            norms |= {
                f"{here}.ln_1": f"{there}.layer_norm1",
                f"{here}.ln_2": f"{there}.layer_norm2",
                f"{here}.mlp.c_fc": f"{there}.mlp.fc1",
                f"{here}.mlp.c_proj": f"{there}.mlp.fc2",
                f"{here}.attn.out_proj": f"{there}.self_attn.out_proj",
            }
            for kind in ("weight", "bias"):
                parts = [theirs[f"{there}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
                state[f"{here}.attn.in_proj_{kind}"] = torch.cat(parts)
    for mine, other in norms.items():
        state |= {f"{mine}.{kind}": theirs[f"{other}.{kind}"] for kind in ("weight", "bias")}
    return state
