"""Pictures drawn while a generator trains, for the eyes of whoever watches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from perfusion.compute import Compute
from perfusion.data import GroupTable
from perfusion.generation.backbone import DiffusionBackbone
from perfusion.generation.pipeline import PerFusionPipeline
from perfusion.loop import TrainingRun
from perfusion.seeding import generator_for

__all__ = ["drawing", "drawing_unet"]

_SHOWN = 4  # users, and prompts


def drawing_unet(
    run: TrainingRun, tables: Mapping[str, GroupTable], diffusion_dir: Path, backbone: DiffusionBackbone,
    unet: UNet2DConditionModel,
) -> TrainingRun:  # fmt: skip
    """The run with sample pictures of a U-Net in training, drawn with the backbone's own defaults."""
    if run.on_pictures is None:
        return run
    saved = PerFusionPipeline.load_config(diffusion_dir)
    sampling = {name: saved[name] for name in ("num_inference_steps", "guidance_scale", "eta")}
    return drawing(run, tables, PerFusionPipeline(**{**backbone.components(), "unet": unet}, **sampling))


def drawing(run: TrainingRun, tables: Mapping[str, GroupTable], pipe: PerFusionPipeline) -> TrainingRun:
    """The run with sample pictures: a row for each of some users, a column for each of some prompts, fixed noise."""
    if run.on_pictures is None:
        return run
    table = tables["valid"] if len(tables.get("valid", ())) else tables["train"]
    rows = torch.linspace(0, len(table) - 1, _SHOWN).long()
    prompts = [table.prompts[row] for row in rows.tolist()] * _SHOWN
    users = table.features(rows).repeat_interleave(_SHOWN, 0) if pipe.pan is not None else None
    on_pictures = run.on_pictures
    pipe.to(Compute(run.compute).device)

    def draw(step: int) -> None:
        generators = [generator_for(run.seed, "samples", i % _SHOWN) for i in range(len(prompts))]
        pictures: Any = pipe(
            prompts, users, num_images_per_prompt=1, generator=generators, output_type="pt"
        ).images  # fmt: skip
        on_pictures(step, (pictures * 255).round().to(torch.uint8))

    return replace(run, on_sample=draw)
