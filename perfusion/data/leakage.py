"""What a way of splitting lets training see of the test records: pictures, prompts and users met before."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from perfusion.data.splitting import SPLIT_BY, split_keys, split_records

__all__ = ["leakage"]


def leakage(
    groups: pa.Table, ratios: tuple[int, int, int] = (8, 1, 1), salt: str = "perfusion/0"
) -> dict[str, dict[str, float]]:
    """Shares of what test records show that training records show too, for each way of `data.split_by`.

    Args:
        groups: group records that lack nothing; held in memory.
        ratios: train : valid : test.
        salt: as `split_dataset` uses for seed 0.

    Returns:
        {way: {"pictures": share of test candidates, "prompts": share of test records whose prompt, but for case and
        spaces, was trained on, "users": share of test records of a user who was trained on}}, each in [0, 1].
    """
    group = np.repeat(np.arange(len(groups)), pc.list_value_length(groups["image_ids"]).to_numpy())
    rows = np.arange(len(groups))
    things = {
        "pictures": (_codes(pc.list_flatten(groups["image_ids"])), group),
        "prompts": (_codes(pa.chunked_array([pa.array(split_keys(groups, "prompt"), pa.string())])), rows),
        "users": (_codes(groups["user_id"]), rows),
    }
    shares: dict[str, dict[str, float]] = {}
    for way in SPLIT_BY:
        split = split_records(split_keys(groups, way), ratios, salt, way)
        shares[way] = {name: _seen(codes, split[row]) for name, (codes, row) in things.items()}
    return shares


def _codes(values: pa.ChunkedArray) -> NDArray[np.int64]:
    return values.combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)


def _seen(codes: NDArray[np.int64], split: NDArray[np.int8]) -> float:
    """Share of the test codes that also occur in training."""
    trained = np.zeros(codes.max(initial=-1) + 1, bool)
    trained[codes[split == 0]] = True
    tested = trained[codes[split == 2]]
    return float(tested.mean()) if len(tested) else 0.0
