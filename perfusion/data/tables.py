"""A split as tensors: what models train on and are tested with.

Legend: G groups, N candidates of the largest group, M distinct pictures, U users, F features, S pixels a side.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from perfusion.data.features import FeatureEncoder
from perfusion.data.layout import read_groups, read_users
from perfusion.data.pictures import ImageStore
from perfusion.data.splitting import SPLITS
from perfusion.errors import DataError

__all__ = ["GroupTable", "load_tables"]


@dataclass(frozen=True)
class GroupTable:
    """The groups of one split; pixels and users are shared between the splits loaded together.

    Attributes:
        pixels: (M, 3, S, S) uint8 RGB.
        image_index: (G, N) int64 rows of `pixels`; 0 where there is no candidate.
        valid: (G, N) bool, True where there is a candidate.
        picked: (G, N) bool.
        user_index: (G,) int64 rows of `users`.
        users: (U, F) int64 feature codes.
        prompts: G prompts.
        record_ids: G names.
        user_ids: U names.
        encoder: what the codes mean.
        image_ids: M names.
    """

    pixels: Tensor
    image_index: Tensor
    valid: Tensor
    picked: Tensor
    user_index: Tensor
    users: Tensor
    prompts: list[str]
    record_ids: list[str]
    user_ids: list[str]
    encoder: FeatureEncoder
    image_ids: list[str]

    def __len__(self) -> int:
        return len(self.prompts)

    def candidates(self, rows: Tensor) -> Tensor:
        """Pictures of the groups `rows` (B,): (B, N, 3, S, S) uint8; padding shows picture 0."""
        return self.pixels[self.image_index[rows]]

    def features(self, rows: Tensor) -> Tensor:
        """Feature codes of the users of the groups `rows` (B,): (B, F)."""
        return self.users[self.user_index[rows]]


def load_tables(
    data_dir: Path | str,
    split_dir: Path | str,
    image_size: int,
    encoder: FeatureEncoder | None = None,
    splits: Collection[str] = SPLITS,
    pictures: bool = True,
) -> dict[str, GroupTable]:
    """Read a split dataset into tensors.

    Args:
        data_dir: the dataset, for its pictures.
        split_dir: users.parquet and groups.parquet with a column `split`.
        image_size: S.
        encoder: a trained model's encoder; None learns one from the users of the training records.
        splits: only pictures of these splits are decoded.
        pictures: False decodes none, for who needs the records alone: `pixels` is then (0, 3, S, S).

    Raises:
        DataError: a file breaks the layout, a group's picture or user is absent, or a split is named that no one knows.
    """
    unknown = sorted(set(splits) - set(SPLITS))
    if unknown:
        raise DataError(f"splits {unknown} are unknown; there are {list(SPLITS)}")
    users = read_users(Path(split_dir) / "users.parquet")
    groups = read_groups(Path(split_dir) / "groups.parquet", extra=("split",))
    if encoder is None:
        trained = groups.loc[groups["split"] == "train", "user_id"]
        encoder = FeatureEncoder.fit(users[users["user_id"].isin(trained)])
    wanted = groups[groups["split"].isin(list(splits))]
    image_ids = sorted({image for ids in wanted["image_ids"] for image in ids})
    decoded = image_ids if pictures else []
    pixels = ImageStore(Path(data_dir) / "images").pixels(decoded, image_size)
    codes, user_ids = encoder.transform(users), users["user_id"].tolist()
    return {
        name: _table(part, pixels, image_ids, codes, user_ids, encoder)
        for name in SPLITS
        if name in splits
        for part in [wanted[wanted["split"] == name]]
    }


def _table(
    groups: pd.DataFrame, pixels: Tensor, image_ids: list[str], codes: Tensor, user_ids: list[str],
    encoder: FeatureEncoder,
) -> GroupTable:  # fmt: skip
    image_row = {name: row for row, name in enumerate(image_ids)}
    user_row = {name: row for row, name in enumerate(user_ids)}
    strangers = [user for user in groups["user_id"] if user not in user_row]
    if strangers:
        raise DataError(f"groups: user {strangers[0]!r} and {len(strangers) - 1} more are not in users.parquet")
    width = max((len(ids) for ids in groups["image_ids"]), default=0)
    index = torch.zeros(len(groups), width, dtype=torch.int64)
    valid = torch.zeros(len(groups), width, dtype=torch.bool)
    picked = torch.zeros(len(groups), width, dtype=torch.bool)
    for row, (ids, picks) in enumerate(zip(groups["image_ids"], groups["picked"], strict=True)):
        index[row, : len(ids)] = torch.tensor([image_row[image] for image in ids])
        valid[row, : len(ids)] = True
        picked[row, : len(ids)] = torch.tensor(picks, dtype=torch.bool)
    return GroupTable(
        pixels, index, valid, picked, torch.tensor([user_row[user] for user in groups["user_id"]], dtype=torch.int64),
        codes, groups["prompt"].tolist(), groups["record_id"].tolist(), user_ids, encoder, image_ids,
    )  # fmt: skip
