"""Measuring: ranking metrics, the reward model on held-out groups, the generator on held-out users and prompts.

`evaluate_reward` and `evaluate_generator` are imported on first use, so that a metric does not import transformers.
"""

from __future__ import annotations

import importlib
from typing import Any

from perfusion.evaluation.ranking import RankingReport, average_precision, group_auc, ranking_report

_HOME = {"champion_evidence": "champion", "evaluate_generator": "generator", "evaluate_reward": "reward"}

__all__ = [
    "RankingReport",
    "average_precision",
    "group_auc",
    "ranking_report",
    *_HOME,
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
