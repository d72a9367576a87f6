"""PMG (Shen et al. 2024), a baseline of Table 3: a user's history becomes style words in the prompt; no training.

    history -> keywords -> prompt, style, style ... (w times) -> a picture for each w -> the best of them

The best is that with the highest alpha log d_p + (1 - alpha) log d_t, where d_p and d_t are the CLIP cosines of the
picture with the style words and with the prompt. Keywords come from a causal language model where there is one, else
from TF-IDF over users: the words that are frequent in this user's history and rare in others'.

What this module needs of CLIP, it is given.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perfusion.data.prompts import phrases
from perfusion.model_folder import check_model_folder, reading

__all__ = ["Keywords", "choose", "keywords_by_model", "keywords_by_tfidf", "read_keywords", "rewrite"]

Keywords = Callable[[str], Sequence[str]]
"""A user's id -> style words, the most telling first; empty for who has no history."""

_LEAST = 1e-6  # of a cosine, whose logarithm is taken
_NEW_TOKENS = 64
_INSTRUCTION = (
    "A shop owner chose pictures of products. Their descriptions are:\n{history}\n"
    "Name {count} short keywords for the owner's taste in colour, pattern, material and style, without product types, "
    "as a numbered list.\nKeywords:\n1."
)


def keywords_by_tfidf(histories: Mapping[str, Sequence[str]], count: int) -> Keywords:
    """The `count` phrases of each user's history with the highest TF-IDF, a user's whole history being a document.

    Args:
        histories: user id -> texts, comma-joined phrases each.
        count: keywords of a user, at most; among equals the alphabet decides.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    documents = {user: [p.lower() for text in texts for p in phrases(text)] for user, texts in histories.items()}
    users = [user for user, words in documents.items() if words]
    if not users:
        return lambda user: ()
    vectoriser = TfidfVectorizer(analyzer=lambda words: words)
    weights = vectoriser.fit_transform([documents[user] for user in users]).tocsr()
    names = vectoriser.get_feature_names_out()  # in the order of the alphabet

    def strongest(row: int) -> tuple[str, ...]:
        begin, end = weights.indptr[row], weights.indptr[row + 1]
        found = zip(weights.data[begin:end], names[weights.indices[begin:end]], strict=True)
        return tuple(str(name) for _, name in sorted(found, key=lambda pair: (-pair[0], pair[1]))[:count])

    table = {user: strongest(row) for row, user in enumerate(users)}
    return lambda user: table.get(user, ())


def keywords_by_model(path: str, histories: Mapping[str, Sequence[str]], count: int) -> Keywords:
    """Keywords that a causal language model names when it reads a user's history; each user is asked once, greedily.

    Args:
        path: directory or hub id of a transformers causal language model with its tokenizer.
        histories: user id -> texts.
        count: keywords of a user, at most.

    Raises:
        WeightsError: the model is absent or unreadable.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if Path(path).is_dir():
        check_model_folder(Path(path))
    with reading(
        f"pmg.language_model {path}",
        "Give a directory or hub id of a causal language model, or leave it empty for TF-IDF keywords",
    ):
        tokenizer: Any = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        model: Any = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=False).eval()

    @cache
    @torch.no_grad()
    def ask(user: str) -> tuple[str, ...]:
        texts = histories.get(user, ())
        if not texts:
            return ()
        asked = _INSTRUCTION.format(history="\n".join(f"- {text}" for text in texts), count=count)
        tokens = tokenizer(asked, return_tensors="pt")
        answer = model.generate(
            **tokens, max_new_tokens=_NEW_TOKENS, do_sample=False, pad_token_id=tokenizer.eos_token_id
        )  # fmt: skip
        said = tokenizer.decode(answer[0, tokens["input_ids"].shape[1] :], skip_special_tokens=True)
        return read_keywords("1." + said, count)

    return ask


def read_keywords(answer: str, count: int) -> tuple[str, ...]:
    """The entries of a numbered or comma-joined list, trimmed and without repeats, at most `count`.

    What follows an empty line is chatter and not read.
    """
    listed = re.split(r"\n\s*\n", answer.strip(), maxsplit=1)[0]
    parts = re.split(r"(?:^|\s)\d+[.)]|[\n,;]", listed)
    words = [part.strip(" \t-*.\"'").lower() for part in parts]
    return tuple(dict.fromkeys(word for word in words if word))[:count]


def rewrite(prompt: str, style: Sequence[str], repeats: int) -> str:
    """The prompt with the style words after it, `repeats` times; words that the prompt itself says are left out."""
    said = set(phrases(prompt.lower()))
    words = [word for word in style if word not in said]
    return ", ".join([prompt, *words * repeats])


def choose(style: Tensor, target: Tensor, alpha: float) -> Tensor:
    """The column with the highest alpha log d_p + (1 - alpha) log d_t, the first among equals: (B, W) -> (B,).

    Args:
        style: d_p, cosine of each picture with the style words; what is not positive counts as 1e-6.
        target: d_t, with the prompt.
        alpha: weight of the style words, in [0, 1].
    """
    score = alpha * style.clamp(min=_LEAST).log() + (1 - alpha) * target.clamp(min=_LEAST).log()
    return (score == score.amax(-1, keepdim=True)).float().argmax(-1)
