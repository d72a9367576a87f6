"""The generator on held-out users and prompts: every arm from the same noise, every scorer on every picture."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from perfusion.checkpoint import atomic_write
from perfusion.config import EvaluateConfig, GatesConfig
from perfusion.data import read_groups, read_users
from perfusion.evaluation.drawn import Drawn, costs
from perfusion.evaluation.images import to_png
from perfusion.evaluation.items import choose_items, with_slices
from perfusion.evaluation.picture_metrics import diversity, generator_metrics
from perfusion.evaluation.sheets import merchants_sheet, users_sheet
from perfusion.evaluation.studio import Studio, merge, shards_of
from perfusion.fanout import FanOut, in_turn
from perfusion.progress import Progress
from perfusion.seeding import derive_seed

__all__ = ["evaluate_generator"]


def evaluate_generator(
    data_dir: Path, split_dir: Path, clip_dir: Path, pickscore_dir: Path, reward_dir: Path, diffusion_dir: Path,
    sft_dir: Path, dpo_dir: Path, generator_dir: Path, out_dir: Path, *, image_size: int, twin: bool,
    config: EvaluateConfig, gates: GatesConfig, seed: int, fan_out: FanOut = in_turn,
) -> dict[str, Any]:  # fmt: skip
    """Draw the same held-out items with every arm, judge them, and compare.

    Writes to `out_dir`: pictures.parquet (one row a picture: item, arm, every score, `file`), pictures/*.png,
    contact_sheet.png (rows users; base, DPO, PerFusion), merchants_sheet.png (one prompt, several users) and
    metrics.json.

    Args:
        data_dir: the dataset; when it is the planted world, true utility judges too.
        split_dir: users.parquet and groups.parquet with a column `split`; items come from split `test`.
        clip_dir, pickscore_dir, reward_dir, diffusion_dir, sft_dir, dpo_dir, generator_dir: earlier stages' folders.
        out_dir: folder of the results.
        image_size: side in pixels at which training pictures are read.
        twin: whether the CLIP backbone is the tiny twin.
        config: items, sampling, scorers.
        gates: `confidence`, `resamples` and `min_users`, so that figures and gates agree.
        seed: of the items and the bootstrap.
        fan_out: computes the shards: `config.batch_pictures` items each, drawn with every arm and judged.

    Returns:
        See `perfusion.evaluation.picture_metrics.generator_metrics`.

    Raises:
        DataError: fewer than two users in the test split.
        WeightsError: a model is absent.
    """
    users = read_users(split_dir / "users.parquet")
    groups = read_groups(split_dir / "groups.parquet", extra=("split",))
    items = with_slices(choose_items(groups[groups["split"] == "test"], config.pairs, config.pictures, seed), users)
    folders = {
        "data": data_dir, "split": split_dir, "clip": clip_dir, "pickscore": pickscore_dir, "reward": reward_dir,
        "diffusion": diffusion_dir, "sft": sft_dir, "dpo": dpo_dir, "generator": generator_dir,
    }  # fmt: skip
    studio = Studio(folders, image_size, twin, config, seed)
    progress = Progress("evaluate-generator", len(items))
    judged = merge(fan_out(studio.judge, shards_of(items, config.batch_pictures)), progress)
    rows, drawn = judged.rows, judged.drawn
    spread = {name: diversity(embeddings) for name, embeddings in judged.embeddings.items()}
    metrics = generator_metrics(rows, gates.interval_options(seed), costs(drawn, judged.memory), spread)
    _write(out_dir, rows, drawn, metrics)
    sheet = users_sheet(rows, {name: arm.pixels for name, arm in drawn.items()}, config.sheet_users)
    atomic_write(out_dir / "contact_sheet.png", to_png(sheet))
    sheet = merchants_sheet(studio.arms(), items, users, config.sheet_users, derive_seed(seed, "merchants-sheet"))
    atomic_write(out_dir / "merchants_sheet.png", to_png(sheet))
    return metrics


def _write(out_dir: Path, rows: pd.DataFrame, drawn: Mapping[str, Drawn], metrics: Mapping[str, Any]) -> None:
    (out_dir / "pictures").mkdir(parents=True, exist_ok=True)
    for row in rows[["item", "arm", "file"]].itertuples():
        (out_dir / str(row.file)).write_bytes(to_png(drawn[str(row.arm)].pixels[int(row.item)]))
    rows.to_parquet(out_dir / "pictures.parquet", index=False)
    atomic_write(out_dir / "metrics.json", json.dumps(metrics, indent=1, allow_nan=False).encode())
