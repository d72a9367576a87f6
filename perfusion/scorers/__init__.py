"""Scorers: a number for each picture, one file per scorer, one protocol."""

from perfusion import torchvision_guard

torchvision_guard.install()

from perfusion.scorers.aesthetic import AestheticHead, AestheticScore, fit_head, load_head  # noqa: E402
from perfusion.scorers.clip_score import ClipScore  # noqa: E402
from perfusion.scorers.perfusion_rm import PersonalScore  # noqa: E402
from perfusion.scorers.pickscore import PickScore  # noqa: E402
from perfusion.scorers.protocol import Scorer  # noqa: E402
from perfusion.scorers.registry import SCORERS, ScorerSources, build_scorers  # noqa: E402

__all__ = [
    "SCORERS",
    "AestheticHead",
    "AestheticScore",
    "ClipScore",
    "PersonalScore",
    "PickScore",
    "Scorer",
    "ScorerSources",
    "build_scorers",
    "fit_head",
    "load_head",
]
