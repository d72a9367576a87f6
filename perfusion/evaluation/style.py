"""PMG as an arm: what users' histories say, by CLIP and their prompts, and pictures drawn from rewritten prompts.

Shapes: B items, W repeats, M pictures, V phrases of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import Tensor

from perfusion.config import PmgConfig
from perfusion.data import ImageStore
from perfusion.generation.pmg import Keywords, choose, keywords_by_model, keywords_by_tfidf, rewrite
from perfusion.reward import TwoTowers
from perfusion.scorers.embedding import cosines, picture_embeddings, prompt_embeddings

if TYPE_CHECKING:
    from perfusion.evaluation.arms import Arm

__all__ = ["Style", "StyledArm", "build_style", "describe", "read_histories"]


@dataclass(frozen=True)
class Style:
    """What PMG knows.

    Attributes:
        keywords: a user's style words.
        clip: judges the pictures.
        config: repeats and alpha.
    """

    keywords: Keywords
    clip: TwoTowers
    config: PmgConfig


def build_style(
    data_dir: Path, groups: pd.DataFrame, clip: TwoTowers, config: PmgConfig, image_size: int,
    users: Sequence[str] | None = None,
) -> Style:  # fmt: skip
    """Read users' histories and find their keywords.

    Args:
        data_dir: the dataset, for its pictures.
        groups: the split groups with `split`; only `train` is read.
        clip: the backbone, never tuned on picks.
        config: how.
        image_size: side in pixels at which pictures are read.
        users: for whom; None takes all.

    Raises:
        WeightsError: `config.language_model` is given and absent.
    """
    histories = read_histories(data_dir, groups, clip, config, image_size, users)
    if config.language_model is not None:
        return Style(keywords_by_model(config.language_model, histories, config.keywords), clip, config)
    return Style(keywords_by_tfidf(histories, config.keywords), clip, config)


def read_histories(
    data_dir: Path, groups: pd.DataFrame, clip: TwoTowers, config: PmgConfig, image_size: int,
    users: Sequence[str] | None = None,
) -> dict[str, list[str]]:  # fmt: skip
    """User id -> a text for each of the latest training records, by `created_at`.

    The text says what the picked pictures show, in phrases of `config.vocabulary`; without a vocabulary it is the
    record's prompt. Someone without training records is not among the users.
    """
    train = groups[groups["split"] == "train"]
    if users is not None:
        train = train[train["user_id"].isin(users)]
    latest = train.sort_values(["created_at", "record_id"]).groupby("user_id", sort=True).tail(config.history)
    if not config.vocabulary:
        texts = latest["prompt"].tolist()
    else:
        shown = [
            [image for image, pick in zip(images, picks, strict=True) if pick]
            for images, picks in zip(latest["image_ids"], latest["picked"], strict=True)
        ]
        names = sorted({image for images in shown for image in images})
        pixels = ImageStore(data_dir / "images").pixels(names, image_size)
        said = dict(zip(names, describe(clip, pixels, config.vocabulary, config.phrases_per_picture), strict=True))
        texts = [", ".join(said[image] for image in images) for images in shown]
    histories: dict[str, list[str]] = {}
    for user, text in zip(latest["user_id"], texts, strict=True):
        histories.setdefault(user, []).append(text)
    return histories


def describe(clip: TwoTowers, pixels: Tensor, vocabulary: Sequence[str], count: int) -> list[str]:
    """The `count` phrases that fit each picture best, comma-joined.

    A phrase's cosines are measured from their mean over the pictures: some phrases lie nearer to any picture.

    Args:
        pixels: (M, 3, S, S) uint8.
        vocabulary: V phrases.
    """
    if not len(pixels):
        return []
    fit = picture_embeddings(clip, pixels) @ prompt_embeddings(clip, list(vocabulary)).T  # (M, V)
    best = (fit - fit.mean(0)).topk(min(count, len(vocabulary)), dim=1).indices
    return [", ".join(vocabulary[place] for place in row) for row in best.tolist()]


@dataclass(frozen=True)
class StyledArm:
    """PMG: each prompt is drawn with the user's style words, once for each number of repeats, and CLIP takes one.

    Someone without keywords is drawn the prompt as it is.

    Attributes:
        arm: draws the rewritten prompts, blind to the user, from the same noise each time.
        style: of `build_style`.
    """

    arm: Arm
    style: Style

    def __call__(self, prompts: Sequence[str], users: pd.DataFrame, seeds: Sequence[int]) -> Tensor:
        words = [list(self.style.keywords(user)) for user in users["user_id"]]
        drawn = torch.stack([
            self.arm([rewrite(p, w, repeats) for p, w in zip(prompts, words, strict=True)], users, seeds)
            for repeats in self.style.config.repeats
        ], dim=1)  # (B, W, 3, S, S)  # fmt: skip
        style = cosines(self.style.clip, [", ".join(w) or p for p, w in zip(prompts, words, strict=True)], drawn)
        target = cosines(self.style.clip, list(prompts), drawn)
        chosen = choose(style, target, self.style.config.alpha)
        return drawn[torch.arange(len(drawn)), chosen]
