"""Every family of scorers, and how one is built from the folders of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from perfusion.config import EvaluateConfig, ScorerName, WeightsName
from perfusion.errors import ConfigError
from perfusion.reward import PerFusionRM, load_clip
from perfusion.scorers import clip_h, hpsv1, hpsv2
from perfusion.scorers.aesthetic import AestheticScore, fit_head, load_head
from perfusion.scorers.clip_h import ClipHScore
from perfusion.scorers.clip_score import ClipScore
from perfusion.scorers.cosine import CosineScore
from perfusion.scorers.embedding import picture_embeddings
from perfusion.scorers.hpsv1 import HpsV1Score
from perfusion.scorers.hpsv2 import HpsV2Score, HpsV21Score
from perfusion.scorers.imagereward import imagereward_twin, load_imagereward
from perfusion.scorers.open_clip_towers import load_open_clip, open_clip_twin
from perfusion.scorers.perfusion_rm import PersonalScore
from perfusion.scorers.pickscore import PROCESSOR, FrozenPickScore, PickScore
from perfusion.scorers.protocol import Scorer
from perfusion.scorers.weights import Source

__all__ = ["SCORERS", "ScorerSources", "build_scorers"]


@dataclass(frozen=True)
class ScorerSources:
    """Where scorers come from.

    Attributes:
        clip: folder of the backbone, never tuned on picks.
        pickscore: folder of the backbone tuned on the training picks.
        reward: folder of PerFusionRM.
        twin: whether the backbone is the tiny twin.
        pictures: (n, 3, S, S) uint8 training pictures, to fit the heads of the twins of aesthetic and imagereward.
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


def _open_clip(
    config: EvaluateConfig, sources: ScorerSources, scorer: type[CosineScore], name: WeightsName, architecture: str,
    source: Source,
) -> Scorer:  # fmt: skip
    """A scorer on open_clip's towers. Its twin has the weights of our CLIP that never saw a pick of this dataset."""
    weights = config.weights.get(name)
    if weights is not None:
        return scorer(load_open_clip(architecture, weights, source), twin=False)
    return scorer(open_clip_twin(load_clip(sources.clip)), twin=True)


def _clip_h(config: EvaluateConfig, sources: ScorerSources) -> Scorer:
    return _open_clip(config, sources, ClipHScore, "clip_h", clip_h.ARCHITECTURE, clip_h.CLIP_H)


def _hpsv1(config: EvaluateConfig, sources: ScorerSources) -> Scorer:
    return _open_clip(config, sources, HpsV1Score, "hpsv1", hpsv1.ARCHITECTURE, hpsv1.HPSV1)


def _hpsv2(config: EvaluateConfig, sources: ScorerSources) -> Scorer:
    return _open_clip(config, sources, HpsV2Score, "hpsv2", hpsv2.ARCHITECTURE, hpsv2.HPSV2)


def _hpsv21(config: EvaluateConfig, sources: ScorerSources) -> Scorer:
    return _open_clip(config, sources, HpsV21Score, "hpsv2.1", hpsv2.ARCHITECTURE, hpsv2.HPSV21)


def _imagereward(config: EvaluateConfig, sources: ScorerSources) -> Scorer:
    weights = config.weights.get("imagereward")
    if weights is not None:
        return load_imagereward(weights)
    return imagereward_twin(load_clip(sources.clip).tokenizer, sources.pictures, sources.ratings)


def _pickscore_frozen(config: EvaluateConfig, sources: ScorerSources) -> Scorer:
    weights = config.weights.get("pickscore_frozen")
    if weights is not None:
        backbone = load_clip(weights.path, weights.sha256, weights.processor or PROCESSOR)
        return FrozenPickScore(backbone, twin=False)
    return FrozenPickScore(load_clip(sources.clip), twin=True)


def _pickscore(config: EvaluateConfig, sources: ScorerSources) -> Scorer:
    return PickScore(load_clip(sources.pickscore), twin=sources.twin)


def _perfusion_rm(config: EvaluateConfig, sources: ScorerSources) -> Scorer:
    return PersonalScore(PerFusionRM.from_pretrained(sources.reward))


SCORERS: dict[ScorerName, Callable[[EvaluateConfig, ScorerSources], Scorer]] = {
    "aesthetic": _aesthetic,
    "clip_score": _clip_score,
    "clip_h": _clip_h,
    "imagereward": _imagereward,
    "hpsv1": _hpsv1,
    "hpsv2": _hpsv2,
    "hpsv2.1": _hpsv21,
    "pickscore_frozen": _pickscore_frozen,
    "pickscore": _pickscore,
    "perfusion_rm": _perfusion_rm,
}
