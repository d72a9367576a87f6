"""Any trained generator is an arm: drawn from the same noise, sampled as PerFusion says, told of the user or not."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from small_generator import TWIN, generator, group_table, make_home

from perfusion.config import ClipConfig, PmgConfig
from perfusion.errors import WeightsError
from perfusion.evaluation.arms import load_arm, read_sampling
from perfusion.evaluation.style import Style, StyledArm
from perfusion.generation.train import train_generator
from perfusion.loop import TrainingRun
from perfusion.reward import twin

USERS = pd.DataFrame({"user_id": ["a", "b"], "style": ["x", "y"]})
PROMPTS, SEEDS = ["dress", "coat"], [3, 4]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    home = make_home(tmp_path_factory.mktemp("arms"))
    sampling = TWIN.sampling.model_copy(update={"steps": 3, "guidance_scale": 3.0})
    for name, changes in {"perfusion": {}, "wo_pan": {"pan": False}, "wo_gobj": {"group": False}}.items():
        train_generator(
            {"train": group_table()}, home / "encode", home / "diffusion", home / "dpo", generator(**changes), sampling,
            home / name, TrainingRun("generator", 0),
        )  # fmt: skip
    return home


@pytest.mark.parametrize(
    ("folder", "personal"),
    [("diffusion", False), ("dpo", False), ("perfusion", True), ("wo_pan", False), ("wo_gobj", True)],
)
def test_every_arm_samples_as_perfusion_says(home, folder, personal):
    arm = load_arm(home / "diffusion", home / folder, home / "perfusion")
    assert arm.personal == personal
    assert {name: arm.pipe.config[name] for name in read_sampling(home / "perfusion")} == read_sampling(
        home / "perfusion"
    )
    assert read_sampling(home / "perfusion")["guidance_scale"] == 3.0
    drawn = arm(PROMPTS, USERS, SEEDS)
    assert drawn.dtype == torch.uint8
    assert torch.equal(drawn, arm(PROMPTS, USERS, SEEDS))


def test_a_pipeline_and_its_unet_alone_are_the_same_arm(home):
    whole, part = (
        load_arm(home / "diffusion", folder, home / "perfusion")(PROMPTS, USERS, SEEDS)
        for folder in (home / "diffusion", home / "diffusion" / "unet")
    )
    assert torch.equal(whole, part)


def test_pmg_without_keywords_is_the_arm_that_draws_it(home):
    torch.manual_seed(0)
    clip = twin(PROMPTS, 16, ClipConfig(width=16, layers=1, heads=2, patch=8, projection=8))
    args = home / "diffusion", home / "diffusion", home / "perfusion"
    plain = load_arm(*args)(PROMPTS, USERS, SEEDS)
    silent = load_arm(*args, style=Style(lambda user: (), clip, PmgConfig()))
    assert isinstance(silent, StyledArm)
    assert torch.equal(silent(PROMPTS, USERS, SEEDS), plain)
    spoken = load_arm(*args, style=Style(lambda user: ("long sleeves",), clip, PmgConfig()))(PROMPTS, USERS, SEEDS)
    assert not torch.equal(spoken, plain)
    rewritten = load_arm(*args)(["dress, long sleeves", "coat, long sleeves"], USERS, SEEDS)
    once = load_arm(*args, style=Style(lambda user: ("long sleeves",), clip, PmgConfig(repeats=(1,))))
    assert torch.equal(once(PROMPTS, USERS, SEEDS), rewritten)


def test_an_untrained_arm_is_told_to_be_trained(home, tmp_path):
    with pytest.raises(WeightsError, match="run the generator stage"):
        load_arm(home / "diffusion", home / "dpo", tmp_path)
    with pytest.raises(WeightsError, match="cannot load"):
        load_arm(home / "diffusion", tmp_path / "spo", home / "perfusion")
