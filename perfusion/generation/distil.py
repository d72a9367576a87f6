"""A student that says in one pass what guidance says in several: the paper's open question 3.

A step of guided sampling with a user costs two encoder and two decoder passes and the adaptive network. The student is
a `PerFusionPipeline` like its teacher, trained to predict the teacher's guided prediction

    e0 + g (text - e0) + w (user - text)

by its conditional pass alone; drawn with both weights at 1, its defaults, it needs one encoder, one decoder and the
adaptive network: fewer than plain Stable Diffusion with guidance. The teacher's weights g and w are baked in. It learns
on noised training pictures, as guidance distillation does (Meng et al. 2023).
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from perfusion.config import DistilConfig
from perfusion.data import GroupTable
from perfusion.errors import DataError
from perfusion.generation.denoiser import guide
from perfusion.generation.encoding import open_encoded
from perfusion.generation.noising import error_weight
from perfusion.generation.pan import PersonalAdaptiveNetwork
from perfusion.generation.pipeline import PerFusionPipeline
from perfusion.generation.preference import denoising_error
from perfusion.generation.split import decode, encode
from perfusion.generation.text import embed_prompts
from perfusion.loop import TrainingRun, train

__all__ = ["distil", "guided_prediction", "student_prediction"]


def distil(
    table: GroupTable, encoded_dir: Path, teacher_dir: Path, config: DistilConfig, out: Path, run: TrainingRun
) -> dict[str, float]:
    """Train a student of a personalised pipeline and save it, a pipeline too, in `out`.

    Args:
        table: training groups, encoded by the teacher's own feature encoder; all their pictures are used.
        encoded_dir: what the `encode` stage wrote of them.
        teacher_dir: a `PerFusionPipeline`; its default weights of prompt and user are what is distilled.
        config: schedule, batch and share of user-blind pictures.
        out: folder to write.
        run: name, seed, state and callbacks.

    Returns:
        The last training metrics; `error` is the student's squared error, relative to what the teacher's own
        conditional pass would make without guidance (below 1 something was learned).

    Raises:
        DataError: the pipeline has no adaptive network, so that there is no user to take.
    """
    teacher = PerFusionPipeline.from_pretrained(teacher_dir)
    if teacher.pan is None:
        raise DataError(f"{teacher_dir}: a pipeline without an adaptive network; train it with generator.pan: true")
    data = open_encoded(encoded_dir, table)
    group, column = table.valid.nonzero(as_tuple=True)
    empty = embed_prompts(teacher.tokenizer, teacher.text_encoder, [""])
    g, w = teacher.config.guidance_scale, teacher.config.user_scale
    student = {"unet": copy.deepcopy(teacher.unet), "pan": copy.deepcopy(teacher.pan)}
    averaged = {name: copy.deepcopy(module) for name, module in student.items()}
    for module in student.values():
        module.requires_grad_(True).train()

    def objective(step: int) -> tuple[Tensor, dict[str, float]]:
        chosen = torch.randint(len(group), (config.batch_pictures,))
        rows = group[chosen]
        latents = data.latents(table.image_index[rows, column[chosen]], data.draw_views(len(rows)))
        t = torch.randint(teacher.scheduler.config.num_train_timesteps, (len(rows),))
        z = teacher.scheduler.add_noise(latents, torch.randn_like(latents), t)
        text = data.conditions([table.prompts[row] for row in rows.tolist()])
        users = table.features(rows)
        known = (torch.rand(len(rows)) >= config.blind_share).to(z.dtype)
        with torch.no_grad():
            target = guided_prediction(teacher.unet, teacher.pan, z, t, empty.expand_as(text), text, users, known, g, w)
            unguided = student_prediction(teacher.unet, teacher.pan, z, t, text, users, known)
        found = student_prediction(student["unet"], student["pan"], z, t, text, users, known)
        error = denoising_error(target, found)
        loss = (error_weight(teacher.scheduler, t, config.weight_floor) * error).mean()
        return loss, {"error": (error.sum() / denoising_error(target, unguided).sum()).item()}

    metrics = train(run, student, objective, config.optimiser, ema=averaged)
    PerFusionPipeline(
        **{**teacher.components, **averaged}, features=teacher.features, guidance_scale=1.0, user_scale=1.0,
        num_inference_steps=teacher.config.num_inference_steps, eta=teacher.config.eta,
    ).save_pretrained(out)  # fmt: skip
    return metrics


def guided_prediction(
    unet: UNet2DConditionModel, pan: PersonalAdaptiveNetwork, z: Tensor, t: Tensor, none: Tensor, text: Tensor,
    users: Tensor, known: Tensor, g: float, w: float,
) -> Tensor:  # fmt: skip
    """e0 + g (text - e0) + w (user - text), (B, C, H, W), for rows at noise levels of their own.

    Args:
        t: (B,) noise levels; below the adaptive network's own least level it says nothing.
        none, text: (B, T, D) conditions of the empty prompt and of the prompts.
        users: (B, F) features.
        known: (B,) 1 where there is a user, 0 where there is none: user = text then.
    """
    count = len(z)
    encoded = encode(unet, torch.cat([z, z]), torch.cat([t, t]), torch.cat([none, text]))
    halves = encoded.rows(slice(count)), encoded.rows(slice(count, None))
    residuals = pan(z, t, text, pan.user_map(users)).scaled(known * pan.speaks_at(t))
    user = decode(unet, halves[1], residuals)
    prompted = None if w == g else decode(unet, halves[1])
    return guide(decode(unet, halves[0]), prompted, user, g, w)


def student_prediction(
    unet: UNet2DConditionModel, pan: PersonalAdaptiveNetwork, z: Tensor, t: Tensor, text: Tensor, users: Tensor,
    known: Tensor,
) -> Tensor:  # fmt: skip
    """The conditional pass, (B, C, H, W); arguments as in `guided_prediction`."""
    residuals = pan(z, t, text, pan.user_map(users)).scaled(known * pan.speaks_at(t))
    return decode(unet, encode(unet, z, t, text), residuals)
