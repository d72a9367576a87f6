"""Every family of scorers, and how one is built from the folders of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from perfusion.config import EvaluateConfig, ScorerName
from perfusion.errors import ConfigError
from perfusion.reward import PerFusionRM, load_clip
from perfusion.scorers.aesthetic import AestheticScore, fit_head, load_head
from perfusion.scorers.clip_score import ClipScore
from perfusion.scorers.embedding import picture_embeddings
from perfusion.scorers.perfusion_rm import PersonalScore
from perfusion.scorers.pickscore import PickScore
from perfusion.scorers.protocol import Scorer

__all__ = ["SCORERS", "ScorerSources", "build_scorers"]


@dataclass(frozen=True)
class ScorerSources:
    """Where scorers come from.

    Attributes:
        clip: folder of the backbone, never tuned on picks.
        pickscore: folder of the backbone tuned on the training picks.
        reward: folder of PerFusionRM.
        twin: whether the backbone is the tiny twin.
        pictures: (n, 3, S, S) uint8 training pictures, to fit the aesthetic twin's head.
        ratings: (n,) their ratings, about 1 to 10.
    """

    clip: Path
    pickscore: Path
    reward: Path
    twin: bool
    pictures: Tensor
    ratings: Tensor


def build_scorers(config: EvaluateConfig, sources: ScorerSources) -> dict[str, Scorer]:
    """The scorers that `config.scorers` asks for, by the name their numbers are reported under.

    Raises:
        ConfigError: one of the two parts of the real aesthetic scorer is given without the other.
        WeightsError: weights are absent or unreadable.
    """
    scorers = [SCORERS[family](config, sources) for family in config.scorers]
    return {scorer.name: scorer for scorer in scorers}


def _aesthetic(config: EvaluateConfig, sources: ScorerSources) -> Scorer:
    if (config.aesthetic_clip is None) != (config.aesthetic_head is None):
        raise ConfigError(
            f"evaluate.aesthetic_clip = {config.aesthetic_clip!r} and evaluate.aesthetic_head = "
            f"{config.aesthetic_head!r}: give both for the real scorer, or neither for the twin"
        )
    if config.aesthetic_clip is not None and config.aesthetic_head is not None:
        return AestheticScore(load_clip(config.aesthetic_clip), load_head(config.aesthetic_head), twin=False)
    backbone = load_clip(sources.clip)
    head = fit_head(picture_embeddings(backbone, sources.pictures), sources.ratings)
    return AestheticScore(backbone, head, twin=True)


def _clip_score(config: EvaluateConfig, sources: ScorerSources) -> Scorer:
    if config.clip_score_clip is not None:
        return ClipScore(load_clip(config.clip_score_clip), twin=False)
    return ClipScore(load_clip(sources.clip), twin=sources.twin)


def _pickscore(config: EvaluateConfig, sources: ScorerSources) -> Scorer:
    return PickScore(load_clip(sources.pickscore), twin=sources.twin)


def _perfusion_rm(config: EvaluateConfig, sources: ScorerSources) -> Scorer:
    return PersonalScore(PerFusionRM.from_pretrained(sources.reward))


SCORERS: dict[ScorerName, Callable[[EvaluateConfig, ScorerSources], Scorer]] = {
    "aesthetic": _aesthetic,
    "clip_score": _clip_score,
    "pickscore": _pickscore,
    "perfusion_rm": _perfusion_rm,
}
