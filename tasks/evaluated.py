"""Numbers that the evaluation measured, and the requests by which a served model must give them again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from perfusion.config import Params
from perfusion.errors import DataError
from tasks.workspace import Workspace

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Measured", "measured_pictures", "measured_scores", "numbers_of"]

GROUPS_OF_A_SPLIT, PICTURES = 8, 4


@dataclass(frozen=True)
class Measured:
    """A request, and what the evaluation found for it.

    Attributes:
        request: rows for the served model.
        params: request parameters.
        numbers: the evaluation's: (n,) scores, or (n, H, W, 3) pictures in [0, 1].
    """

    request: pd.DataFrame
    numbers: np.ndarray
    params: Mapping[str, Any] = field(default_factory=dict)


def measured_scores(workspace: Workspace) -> Measured:
    """PerFusionRM's scores of the candidates of some held-out groups of each split, the same groups every time.

    Of users of whom something is known: others are scored by the evaluation by what training taught of the unknown, and
    by the served model user-blind.

    Raises:
        DataError: the evaluation is incomplete.
    """
    import pandas as pd

    from perfusion.data import ImageStore

    table = _table(workspace.reward_evaluation / "scores.parquet", "evaluate-reward")
    scored_groups = table[["split", "record_id"]].drop_duplicates()
    groups = pd.read_parquet(workspace.split / "groups.parquet", columns=["record_id", "user_id", "prompt"])
    asked = scored_groups.merge(groups, on="record_id", validate="one_to_one").sort_values(["split", "record_id"])
    asked = asked[asked["user_id"].isin(_known(workspace.reward, workspace))]
    asked = asked.groupby("split").head(GROUPS_OF_A_SPLIT).reset_index(drop=True)
    scored = {str(record): part for record, part in table.groupby("record_id", sort=False)}
    parts = [scored[record] for record in asked["record_id"]]
    images = ImageStore(workspace.data / "images")
    request = asked[["user_id", "prompt"]].assign(images=[images.encoded(part["image_id"].tolist()) for part in parts])
    return Measured(request, pd.concat(parts)["score"].to_numpy(np.float64))


def measured_pictures(workspace: Workspace, params: Params) -> Measured:
    """The first pictures that evaluate-generator drew with PerFusion for users of whom something is known.

    Raises:
        DataError: the evaluation is incomplete.
    """
    table = _table(workspace.generator_evaluation / "pictures.parquet", "evaluate-generator")
    drawn = table[(table["arm"] == "perfusion") & table["user_id"].isin(_known(workspace.generator, workspace))]
    drawn = drawn.sort_values("item").head(PICTURES)
    files = [workspace.generator_evaluation / file for file in drawn["file"]]
    if absent := [file for file in files if not file.is_file()]:
        raise DataError(f"{absent[0]}: absent; run evaluate-generator again")
    request = drawn[["user_id", "prompt", "seed"]].assign(n=1).reset_index(drop=True)
    options = {} if params.evaluate.steps is None else {"steps": params.evaluate.steps}
    return Measured(request, _pixels([file.read_bytes() for file in files]), options)


def numbers_of(answer: pd.DataFrame) -> np.ndarray:
    """A served model's answer as the evaluation's numbers: its scores, or its pictures."""
    if "score" in answer:
        return answer["score"].to_numpy(dtype=np.float64)
    return _pixels(answer["image"].tolist())


def _known(model: Path, workspace: Workspace) -> list[str]:
    """Users of whom a model's encoder knows anything."""
    from perfusion.data import FeatureEncoder, read_users

    users = read_users(workspace.split / "users.parquet")
    codes = FeatureEncoder.load(model / "features.json").transform(users)
    return list(users.loc[(codes != 0).any(dim=1).numpy(), "user_id"])


def _pixels(encoded: list[bytes]) -> np.ndarray:
    """(n, H, W, 3) in [0, 1] of n pictures of one size."""
    from perfusion.data import decode_image

    pictures = [decode_image(data, f"picture {index}") for index, data in enumerate(encoded)]
    return np.stack([np.asarray(picture, dtype=np.float64) / 255 for picture in pictures])


def _table(file: Path, stage: str) -> pd.DataFrame:
    import pandas as pd

    if not file.is_file():
        raise DataError(f"{file}: absent; run {stage} again")
    return pd.read_parquet(file)
