"""Prompts to conditions: the tiny twin's tokenizer and text encoder, and the one call that real weights share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from perfusion.config import TextConfig

__all__ = ["build_text_encoder", "build_tokenizer", "embed_prompts", "embed_tokens", "tokenise"]

_SPECIAL = ("<pad>", "<start>", "<end>", "<unknown>")


def build_tokenizer(phrases: Iterable[str], length: int) -> PreTrainedTokenizerFast:
    """A word-level tokenizer of the given phrases; commas and blanks separate words, case is ignored.

    Args:
        phrases: every phrase a prompt may hold, e.g. "v-neck".
        length: tokens of an encoded prompt, start and end included; every prompt is padded to it.
    """
    words = sorted({word for phrase in phrases for word in re.split(r"[,\s]+", phrase.lower()) if word})
    vocabulary = {word: index for index, word in enumerate((*_SPECIAL, *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[,\s]+"), behavior="removed")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=length, pad_token="<pad>", bos_token="<start>",
        eos_token="<end>", unk_token="<unknown>",
    )  # fmt: skip


def build_text_encoder(tokenizer: PreTrainedTokenizerBase, config: TextConfig) -> CLIPTextModel:
    """A small CLIP text tower over the tokenizer's vocabulary.

    Words start far apart (unit variance instead of CLIP's .02): otherwise the layers' own output drowns them, and after
    a short training two words of small visible effect, such as round-neck and square-neck, are still one.
    """
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=config.width, intermediate_size=2 * config.width,
            num_hidden_layers=config.layers, num_attention_heads=config.heads, projection_dim=config.width,
            max_position_embeddings=tokenizer.model_max_length, pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        )
    )  # fmt: skip
    words: Any = encoder.get_input_embeddings()
    torch.nn.init.normal_(words.weight)
    return encoder


def tokenise(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> Tensor:
    """Token ids (P, T), every prompt padded or cut to the tokenizer's length, as Stable Diffusion does.

    The length is the same for every prompt because the U-Net attends to padding too: a prompt then gives the same
    picture whatever it is batched with.
    """
    return tokenizer(
        list(prompts), padding="max_length", truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt"
    ).input_ids


def embed_tokens(text_encoder: CLIPTextModel, tokens: Tensor) -> Tensor:
    """Token ids (P, T) -> condition c (P, T, D)."""
    return text_encoder(tokens.to(text_encoder.device)).last_hidden_state


@torch.no_grad()
def embed_prompts(
    tokenizer: PreTrainedTokenizerBase, text_encoder: CLIPTextModel, prompts: Sequence[str], batch: int = 256
) -> Tensor:
    """Prompts -> condition c (P, T, D), without gradient."""
    tokens = tokenise(tokenizer, prompts)
    return torch.cat([embed_tokens(text_encoder, part) for part in tokens.split(batch)])
