"""The student: its target is the guided prediction, its one pass is what a pipeline with weights of 1 computes."""

import pandas as pd
import pytest
import torch
from tiny_pipeline import A, B, build, draw

from perfusion.config import DistilConfig, EncodeConfig, OptimiserConfig
from perfusion.data import GroupTable
from perfusion.errors import DataError
from perfusion.generation import PerFusionPipeline
from perfusion.generation.denoiser import Denoiser
from perfusion.generation.distil import distil, guided_prediction, student_prediction
from perfusion.generation.encoding import encode
from perfusion.loop import TrainingRun

Z = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
NONE, TEXT = (torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
USERS = torch.stack([A, B])


@pytest.mark.parametrize("level", [700, 100])  # the network speaks from 300 on
@pytest.mark.parametrize("scale", [2.0, 3.0])
@torch.no_grad()
def test_the_target_is_what_the_sampler_predicts(level, scale):
    pipe = build(trained=True)
    t = torch.full((2,), level)
    known = torch.tensor([1.0, 0.0])
    found = guided_prediction(pipe.unet, pipe.pan, Z, t, NONE, TEXT, USERS, known, 2.0, scale)
    personal = Denoiser(pipe.unet, pipe.pan, NONE, TEXT, pipe.pan.user_map(USERS), 2.0, scale)(Z, level)
    blind = Denoiser(pipe.unet, pipe.pan, NONE, TEXT, None, 2.0, scale)(Z, level)
    assert torch.allclose(found, torch.stack([personal[0], blind[1]]), atol=1e-5)


@pytest.mark.parametrize("level", [700, 100])
@torch.no_grad()
def test_the_students_pass_is_the_pipelines_at_weights_of_one(level):
    pipe = build(trained=True)
    found = student_prediction(pipe.unet, pipe.pan, Z, torch.full((2,), level), TEXT, USERS, torch.ones(2))
    drawn = Denoiser(pipe.unet, pipe.pan, NONE, TEXT, pipe.pan.user_map(USERS), 1.0, 1.0)(Z, level)
    assert torch.allclose(found, drawn, atol=1e-5)


def table_of(pipe: PerFusionPipeline, groups: int = 6) -> GroupTable:
    """Groups of two pictures, of two users in turn."""
    codes = pipe.features.transform(pd.DataFrame({"user_id": ["a", "b"], "style": ["x", "y"]}))
    pixels = torch.randint(256, (2 * groups, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    index, valid = torch.arange(2 * groups).reshape(groups, 2), torch.ones(groups, 2, dtype=torch.bool)
    picked = torch.tensor([[True, False]]).expand(groups, 2)
    names = [f"i{number}" for number in range(2 * groups)]
    return GroupTable(
        pixels, index, valid, picked, torch.arange(groups) % 2, codes, ["dress", "coat, v-neck"] * (groups // 2),
        [f"r{number}" for number in range(groups)], ["a", "b"], pipe.features, names,
    )  # fmt: skip


@pytest.mark.slow
def test_a_student_learns_its_teachers_guidance_and_is_a_pipeline_of_its_own(tmp_path):
    pipe = build(trained=True)
    pipe.save_pretrained(tmp_path / "teacher")
    table = table_of(pipe)
    encode({"train": table}, tmp_path / "teacher", EncodeConfig(orders=1), tmp_path / "encode")
    config = DistilConfig(optimiser=OptimiserConfig(steps=60, lr=3e-3, ema_decay=0.9), batch_pictures=8)
    errors = []
    run = TrainingRun("distil", 0, on_metrics=lambda _, metrics: errors.append(metrics["error"]))
    distil(table, tmp_path / "encode", tmp_path / "teacher", config, tmp_path / "student", run)
    assert min(errors[-2:]) < 0.7
    student = PerFusionPipeline.from_pretrained(tmp_path / "student")
    assert (student.config.guidance_scale, student.config.user_scale) == (1.0, 1.0)
    assert (student.config.num_inference_steps, student.config.eta) == (4, 0.5)
    assert not torch.equal(draw(student, "dress", A), draw(student, "dress", B))


def test_there_is_nothing_to_distil_without_an_adaptive_network(tmp_path):
    pipe = build(trained=False)
    table = table_of(pipe)
    pipe.register_modules(pan=None)
    pipe.save_pretrained(tmp_path)
    with pytest.raises(DataError, match="without an adaptive network"):
        distil(table, tmp_path, tmp_path, DistilConfig(), tmp_path / "out", TrainingRun("distil", 0))
