"""The personalised generator: tiny or real Stable Diffusion, PAN (Sec. 4.3.1), preference training, the pipeline.

Names are imported on first use, so that reading a loss does not import diffusers.
"""

from __future__ import annotations

import importlib
from typing import Any

from perfusion import torchvision_guard

torchvision_guard.install()

_HOME = {
    "BETA_CONVENTION": "preference",
    "DiffusionBackbone": "backbone",
    "PatchCodec": "codec",
    "PerFusionPipeline": "pipeline",
    "PersonalAdaptiveNetwork": "pan",
    "denoising_error": "preference",
    "encode": "encoding",
    "group_log_likelihood": "preference",
    "group_preference_loss": "preference",
    "implicit_reward": "preference",
    "load_backbone": "backbone",
    "open_encoded": "encoding",
    "pairwise_preference_loss": "preference",
    "picked_win_probability": "preference",
    "pretrain_diffusion": "pretrain",
    "reference_gap": "preference",
    "top_set_log_likelihood": "preference",
    "train_dpo": "train",
    "train_generator": "train",
    "train_sft": "train",
    "train_spo": "spo",
}

__all__ = [
    *_HOME,
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
