"""Arms: generators that are compared, all called in the same way and started from the same noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import torch
from torch import Tensor

from perfusion.errors import WeightsError
from perfusion.generation import PerFusionPipeline
from perfusion.generation.backbone import load_backbone, load_unet

__all__ = ["Arm", "PipelineArm", "load_arm", "load_arms"]


class Arm(Protocol):
    """A generator."""

    def __call__(self, prompts: Sequence[str], users: pd.DataFrame, seeds: Sequence[int]) -> Tensor:
        """Draw one picture for each prompt.

        Args:
            prompts: B prompts.
            users: B rows of the users' table, for whom; a user-blind arm does not look.
            seeds: B seeds of the noise; the same seed is the same noise in every arm.

        Returns:
            (B, 3, S, S) uint8 RGB on the CPU.
        """
        ...


@dataclass(frozen=True)
class PipelineArm:
    """A `PerFusionPipeline` as an arm.

    Attributes:
        pipe: the pipeline.
        personal: whether it is told for whom it draws.
        steps: sampling steps; None takes the pipeline's own.
        options: further arguments of the pipeline's call.
    """

    pipe: Any
    personal: bool
    steps: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, prompts: Sequence[str], users: pd.DataFrame, seeds: Sequence[int]) -> Tensor:
        codes = self.pipe.features.transform(users) if self.personal else None
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        pictures = self.pipe(
            list(prompts), user=codes, num_images_per_prompt=1, num_inference_steps=self.steps, generator=generators,
            output_type="pt", **self.options,
        ).images  # fmt: skip
        return (pictures.float() * 255).round().clamp(0, 255).to(torch.uint8).cpu()


def load_arms(
    diffusion_dir: Path, sft_dir: Path, dpo_dir: Path, generator_dir: Path, steps: int | None = None
) -> dict[str, Arm]:
    """base, sft, dpo and perfusion from the folders of the earlier stages, all sampled as the generator says.

    Raises:
        WeightsError: a part is absent.
    """
    if not (generator_dir / "model_index.json").is_file():
        raise WeightsError(f"{generator_dir}: no pipeline here (model_index.json is absent); run the generator stage")
    personal = PerFusionPipeline.from_pretrained(generator_dir)
    sampling = {
        name: personal.config[name] for name in ("num_inference_steps", "guidance_scale", "user_scale", "eta")
    }  # fmt: skip
    parts = load_backbone(diffusion_dir).components()

    def blind(unet: Any) -> Arm:
        return PipelineArm(PerFusionPipeline(**{**parts, "unet": unet}, **sampling), personal=False, steps=steps)

    return {
        "base": blind(parts["unet"]),
        "sft": blind(load_unet(sft_dir)),
        "dpo": blind(load_unet(dpo_dir)),
        "perfusion": PipelineArm(personal, personal=personal.pan is not None, steps=steps),
    }


def load_arm(diffusion_dir: Path, model_dir: Path, sampling_dir: Path, steps: int | None = None) -> Arm:
    """One trained system as an arm, sampled as the generator of a retraining says.

    Args:
        diffusion_dir: the backbone.
        model_dir: a `PerFusionPipeline`, personal where it has a PAN; or a U-Net, which is drawn blind.
        sampling_dir: the generator's pipeline, for its guidance and steps.
        steps: sampling steps; None takes the generator's own.

    Raises:
        WeightsError: a part is absent.
    """
    if (model_dir / "model_index.json").is_file():
        pipe = PerFusionPipeline.from_pretrained(model_dir)
        return PipelineArm(pipe, personal=pipe.pan is not None, steps=steps)
    saved = PerFusionPipeline.load_config(sampling_dir)
    sampling = {name: saved[name] for name in ("num_inference_steps", "guidance_scale", "user_scale", "eta")}
    parts = {**load_backbone(diffusion_dir).components(), "unet": load_unet(model_dir)}
    return PipelineArm(PerFusionPipeline(**parts, **sampling), personal=False, steps=steps)
