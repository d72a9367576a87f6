"""What the load gate compares: answers of the evaluated model folders and of the registered artifacts, to one probe."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pandas as pd
import torch
from PIL import Image

from perfusion.data import FeatureEncoder, ImageStore, decode_pixels, read_groups, read_users
from perfusion.errors import GateError
from perfusion.evaluation import average_precision
from tasks.models.clean_process import load_in_clean_process
from tasks.models.users import encoder_of
from tasks.workspace import Workspace

__all__ = ["Answers", "generator_answers", "reward_answers"]

Answers = dict[str, np.ndarray]
PROBE_GROUPS = 16
PROBE_PICTURES = 2


def reward_answers(workspace: Workspace, name: str, version: int, threads: int = 1) -> tuple[Answers, Answers]:
    """Scores of the first test groups: by the evaluated folder here, and by the artifact in a clean process.

    The average precision of each group is compared too: with what the evaluation stage wrote down.

    Args:
        workspace: whose `work/reward` was evaluated.
        name: family, e.g. "perfusion".
        version: of `{name}-reward`.
        threads: of the numerical libraries, here and there.

    Returns:
        (evaluated, reloaded), what `perfusion.governance.load_gate` takes.

    Raises:
        GateError: the artifact does not load or answer in a clean process.
    """
    from perfusion.reward import PerFusionRM

    groups = _probe(workspace, PROBE_GROUPS)
    rows = groups.explode(["image_ids", "picked"]).rename(columns={"image_ids": "image"}).reset_index(drop=True)
    rows["image"] = ImageStore(workspace.data / "images").encoded(rows["image"].tolist())
    with _threads(threads):
        model = PerFusionRM.from_pretrained(workspace.reward)
        size = model.config.backbone_config.vision_config.image_size
        pixels = decode_pixels(zip(rows["record_id"], rows["image"], strict=True), len(rows), size)
        codes = _codes(workspace, encoder_of(model.encoder), rows["user_id"])
        scores = model.score(rows["prompt"].tolist(), pixels.unsqueeze(1), codes)[:, 0].double().numpy()
    uri = f"models:/{name}-reward/{version}"
    asked = rows[["user_id", "prompt", "image"]]
    answer = load_in_clean_process(uri, asked, workspace.tracking_uri, threads=threads)["score"].to_numpy()
    recorded = pd.read_parquet(workspace.reward_evaluation / "groups.parquet").set_index("record_id")
    evaluated = {
        "reward score": scores,
        "average precision": recorded.loc[groups["record_id"], "ap_perfusion_rm"].to_numpy(),
    }
    precision = [
        average_precision(answer[part.index], part["picked"].to_numpy(bool))
        for _, part in rows.groupby("record_id", sort=False)
    ]
    return evaluated, {"reward score": answer, "average precision": np.array(precision)}


def generator_answers(workspace: Workspace, name: str, version: int, threads: int = 1) -> tuple[Answers, Answers]:
    """Pictures for the first test prompts: by the evaluated folder here, and by the artifact in a clean process.

    Arguments, result and errors as of `reward_answers`, for `work/generator`; values are pixels in [0, 1].
    """
    from perfusion.generation import PerFusionPipeline
    from tasks.models.generator import draw

    asked = _probe(workspace, 2)[["user_id", "prompt"]].assign(n=PROBE_PICTURES, seed=0)
    with _threads(threads):
        pipe = PerFusionPipeline.from_pretrained(workspace.generator)
        codes = _codes(workspace, encoder_of(pipe.features), asked["user_id"])
        drawn = [
            np.asarray(picture)
            for prompt, user in zip(asked["prompt"], codes, strict=True)
            for picture in draw(pipe, prompt, user, PROBE_PICTURES, 0)
        ]
    uri = f"models:/{name}-generator/{version}"
    answer = load_in_clean_process(uri, asked, workspace.tracking_uri, threads=threads)["image"]
    reloaded = [np.asarray(Image.open(io.BytesIO(data))) for data in answer]
    return {"pictures": np.stack(drawn) / 255.0}, {"pictures": np.stack(reloaded) / 255.0}


def _probe(workspace: Workspace, count: int) -> pd.DataFrame:
    """The first test groups by record id: the same whenever the split is."""
    groups = read_groups(workspace.split / "groups.parquet", extra=("split",))
    probe = groups[groups["split"] == "test"].sort_values("record_id").head(count).reset_index(drop=True)
    if probe.empty:
        raise GateError(
            f"{workspace.split}: no test group to probe the models with; run the split stage on more records"
        )
    return probe


def _codes(workspace: Workspace, encoder: FeatureEncoder, user_ids: pd.Series) -> torch.Tensor:
    """Feature codes of users, as training and evaluation see them."""
    users = read_users(workspace.split / "users.parquet").set_index("user_id", drop=False)
    return encoder.transform(users.loc[user_ids].reset_index(drop=True))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
