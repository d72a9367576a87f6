"""Datasets: the layout on disk, the filter, the split, users' features and the tables that models train on.

Names are imported on first use, so that splitting tables does not import torch.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "GROUP_COLUMNS": "layout",
    "SPLITS": "splitting",
    "Corpus": "corpus",
    "Dataset": "layout",
    "FeatureEncoder": "features",
    "Filtered": "filtering",
    "GroupTable": "tables",
    "ImageStore": "pictures",
    "cold_users": "splitting",
    "content_hash": "hashing",
    "dataset_corpus": "photographs",
    "decode_image": "pictures",
    "decode_pixels": "pictures",
    "describe_dataset": "statistics",
    "encode_png": "pictures",
    "filter_users": "filtering",
    "is_safe_id": "pictures",
    "load_tables": "tables",
    "phrases": "prompts",
    "read_dataset": "layout",
    "read_groups": "layout",
    "read_users": "layout",
    "shuffle_phrases": "prompts",
    "split_dataset": "splitting",
    "split_records": "splitting",
    "table_one": "statistics",
    "write_dataset": "layout",
    "write_table": "layout",
}

__all__ = [
    *_HOME,
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
