"""Arms: generators that are compared, all called in the same way and started from the same noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pandas as pd
import torch
from torch import Tensor

from perfusion.errors import WeightsError
from perfusion.generation import PerFusionPipeline
from perfusion.generation.backbone import load_backbone, load_unet

if TYPE_CHECKING:
    from perfusion.evaluation.style import Style

__all__ = ["Arm", "PipelineArm", "load_arm", "load_arms", "read_sampling"]


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


def read_sampling(generator_dir: Path) -> dict[str, float]:
    """How a trained PerFusion samples: what every arm it is compared with is given.

    Returns:
        `num_inference_steps`, `guidance_scale`, `user_scale` and `eta`.

    Raises:
        WeightsError: there is no pipeline in the folder.
    """
    if not (generator_dir / "model_index.json").is_file():
        raise WeightsError(f"{generator_dir}: no pipeline here (model_index.json is absent); run the generator stage")
    saved = PerFusionPipeline.load_config(generator_dir)
    return {name: saved[name] for name in ("num_inference_steps", "guidance_scale", "user_scale", "eta")}


def load_arm(
    diffusion_dir: Path, model_dir: Path, sampling_dir: Path, steps: int | None = None, style: Style | None = None
) -> Arm:
    """Any arm of Table 3 or Fig. 6 from the folder that its training left; the same seed is the same noise in all.

    Args:
        diffusion_dir: the backbone.
        model_dir: what `train_generator` wrote (PerFusion and its ablations), or the backbone's own folder: a pipeline,
            told of the user where it has a PAN and blind otherwise. Or what `train_sft`, `train_dpo` or `train_spo`
            wrote: a U-Net, drawn blind, that takes the place of the backbone's.
        sampling_dir: the trained PerFusion, which says how every arm samples.
        steps: sampling steps; None takes PerFusion's own.
        style: of `perfusion.evaluation.style.build_style`; makes it PMG: prompts are rewritten for the user, and what
            draws them is blind (in the paper, the backbone).

    Raises:
        WeightsError: a part is absent.
    """
    sampling = read_sampling(sampling_dir)
    if (model_dir / "model_index.json").is_file():
        pipe = PerFusionPipeline.from_pretrained(model_dir)
        pipe.register_to_config(**sampling)
    else:
        parts = {**load_backbone(diffusion_dir).components(), "unet": load_unet(model_dir)}
        pipe = PerFusionPipeline(**parts, **sampling)
    if style is None:
        return PipelineArm(pipe, personal=pipe.pan is not None, steps=steps)
    from perfusion.evaluation.style import StyledArm

    return StyledArm(PipelineArm(pipe, personal=False, steps=steps), style)


def load_arms(
    diffusion_dir: Path, sft_dir: Path, dpo_dir: Path, generator_dir: Path, steps: int | None = None
) -> dict[str, Arm]:
    """base, sft, dpo and perfusion from the folders of the earlier stages, all sampled as the generator says.

    Raises:
        WeightsError: a part is absent.
    """
    folders = {"base": diffusion_dir, "sft": sft_dir, "dpo": dpo_dir, "perfusion": generator_dir}
    return {name: load_arm(diffusion_dir, folder, generator_dir, steps) for name, folder in folders.items()}
