"""The twins' tokenizer: one token a word."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

__all__ = ["TEXT_LENGTH", "build_tokenizer"]

TEXT_LENGTH = 32  # tokens of a prompt, start and end included
_SPECIAL = (
    "<pad>",
    "<unk>",
    "<start>",
    "<end>",
)  # not id 2 for <end>: transformers reads eos_token_id 2 as a legacy mark


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
        model_max_length=TEXT_LENGTH,
    )  # fmt: skip
