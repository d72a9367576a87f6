"""A reward model on picks that came after its training: how well it ranks them, and what it had predicted."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from perfusion.data import load_tables, write_table
from perfusion.evaluation.ranking import group_aucs
from perfusion.evaluation.reward import score_table
from perfusion.reward import PerFusionRM
from perfusion.scorers import PersonalScore

__all__ = ["score_fresh"]


def score_fresh(
    data_dir: Path, users: pd.DataFrame, groups: pd.DataFrame, reward_dir: Path, image_size: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Score groups, each for its own user; users that the model never saw are served by their features.

    Args:
        data_dir: the dataset, for its pictures.
        users: user_id and features.
        groups: records; those without a comparison are left out.
        reward_dir: a PerFusionRM with its features.json.
        image_size: side in pixels at which pictures are read.

    Returns:
        One row a group with a comparison: record_id, user_id, auc; one row a candidate of those: user_id, predicted and
        picked, shares of the group's picks in [0, 1] (Eq. 7, 8).

    Raises:
        WeightsError: the model does not load.
        DataError: a picture is absent.
    """
    compared = groups[groups["picked"].map(lambda flags: 0 < sum(flags) < len(flags))]
    if compared.empty:
        return (
            pd.DataFrame({"record_id": [], "user_id": [], "auc": []}),
            pd.DataFrame({"user_id": [], "predicted": [], "picked": []}),
        )
    model = PerFusionRM.from_pretrained(reward_dir)
    with tempfile.TemporaryDirectory(prefix="perfusion-fresh-") as folder:
        write_table(Path(folder) / "users.parquet", users)
        write_table(Path(folder) / "groups.parquet", compared.assign(split="test"))
        table = load_tables(data_dir, folder, image_size, encoder=model.encoder, splits=("test",))["test"]
    scores = score_table(table, PersonalScore(model), "fresh")
    names = np.array([table.user_ids[row] for row in table.user_index.tolist()], dtype=object)
    picked, valid = table.picked.numpy(), table.valid.numpy()
    auc = group_aucs(scores.numpy().astype(np.float64), picked, valid)
    predicted = torch.softmax(scores.masked_fill(~table.valid, -math.inf), dim=1).numpy()
    shares = picked / picked.sum(1, keepdims=True)
    asking = np.repeat(names[:, None], valid.shape[1], axis=1)
    return (
        pd.DataFrame({"record_id": table.record_ids, "user_id": names, "auc": auc}),
        pd.DataFrame({"user_id": asking[valid], "predicted": predicted[valid], "picked": shares[valid]}),
    )
