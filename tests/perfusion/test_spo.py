"""SPO end to end on a few 16-pixel pictures: it resumes, starts at the backbone, and moves by comparisons alone."""

from pathlib import Path

import pytest
import torch
from small_generator import SIZE, group_table, make_home

from perfusion.config import OptimiserConfig, SpoConfig
from perfusion.errors import ConfigError
from perfusion.generation.backbone import load_backbone, load_unet
from perfusion.generation.pipeline import PerFusionPipeline
from perfusion.generation.spo import Preference, best_and_worst, train_spo
from perfusion.loop import TrainingRun


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return make_home(tmp_path_factory.mktemp("spo"))


def redness(prompts: list[str], pixels: torch.Tensor) -> torch.Tensor:
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (len(prompts), 4, 3, SIZE, SIZE)
    return pixels[:, :, 0].float().mean((-2, -1)) - pixels[:, :, 1:].float().mean((-3, -2, -1))


def config(**changes) -> SpoConfig:
    optimiser = OptimiserConfig(**{"steps": 4, "lr": 1e-2, "checkpoint_seconds": 1e-9, **changes.pop("optimiser", {})})
    return SpoConfig(**{
        "optimiser": optimiser, "batch_prompts": 3, "denoising_steps": 5, "first_compared": 1, "guidance_scale": 2.0,
        "rank": 2, "threshold": 0.0, **changes,
    })  # fmt: skip


def go(home: Path, out: Path, options: SpoConfig, preference: Preference = redness, **run) -> dict[str, float]:
    return train_spo(
        {"train": group_table()}, home / "encode", home / "diffusion", preference, options, out,
        TrainingRun("spo", 0, **run),
    )  # fmt: skip


def drawn_redness(home: Path, unet: Path) -> torch.Tensor:
    """Redness of 48 pictures drawn with a trained U-Net from fixed noise, (48,)."""
    parts = {**load_backbone(home / "diffusion").components(), "unet": load_unet(unet)}
    pipe = PerFusionPipeline(**parts, num_inference_steps=5, guidance_scale=2.0, eta=0.98)
    pipe.set_progress_bar_config(disable=True)
    prompts = ["dress, long sleeves", "coat", "coat, v-neck"] * 16
    noise = [torch.Generator().manual_seed(number) for number in range(len(prompts))]
    pictures = pipe(prompts, num_images_per_prompt=1, generator=noise, output_type="pt").images
    return 255 * (pictures[:, 0].mean((-2, -1)) - pictures[:, 1:].mean((-3, -2, -1)))


def test_an_interrupted_training_resumes_bit_for_bit(home, tmp_path):
    def stop(step: int, metrics: dict[str, float]) -> None:
        raise KeyboardInterrupt

    metrics = go(home, tmp_path / "whole", config())
    with pytest.raises(KeyboardInterrupt):
        go(
            home, tmp_path / "cut", config(optimiser={"log_every": 2}), state_dir=tmp_path / "state", on_metrics=stop
        )  # fmt: skip
    assert go(home, tmp_path / "resumed", config(), state_dir=tmp_path / "state") == metrics
    whole, resumed = (load_unet(tmp_path / name).state_dict() for name in ("whole", "resumed"))
    base = load_backbone(home / "diffusion").unet.state_dict()
    assert all(torch.equal(whole[key], resumed[key]) for key in base)
    moved = {key for key in base if not torch.equal(base[key], whole[key])}
    assert moved
    assert all(".attn" in key and "weight" in key for key in moved)
    assert metrics["compared"] == 1.0


def test_the_first_trajectory_is_the_untouched_backbones(home, tmp_path):
    """Policy and reference agree: every ratio is 1 and every compared pair costs log 2."""
    metrics = go(home, tmp_path, config(optimiser={"steps": 1}))
    assert metrics["spo_loss"] == pytest.approx(0.693147, abs=1e-6)
    assert metrics["clipped"] == 0.0


def test_pictures_come_to_be_what_is_preferred(home, tmp_path):
    """Red is preferred once and shunned once: whatever else training does to pictures, it does to both."""
    options = config(optimiser={"steps": 60, "checkpoint_seconds": 60.0}, batch_prompts=6)
    go(home, tmp_path / "red", options)
    go(home, tmp_path / "not red", options, lambda prompts, pixels: -redness(prompts, pixels))
    apart = drawn_redness(home, tmp_path / "red") - drawn_redness(home, tmp_path / "not red")
    assert apart.mean() > 3 * apart.std() / len(apart) ** 0.5


def test_nothing_apart_teaches_nothing(home, tmp_path):
    metrics = go(home, tmp_path, config(threshold=1.0, optimiser={"weight_decay": 0.0}))
    base, trained = load_backbone(home / "diffusion").unet.state_dict(), load_unet(tmp_path).state_dict()
    assert metrics["compared"] == 0.0
    assert all(torch.equal(base[key], trained[key]) for key in base)


def test_a_trajectory_without_a_comparison_is_refused(home, tmp_path):
    with pytest.raises(ConfigError, match=r"spo.first_compared 4 of spo.denoising_steps 5"):
        go(home, tmp_path, config(first_compared=4))


def test_apart_is_a_difference_of_softmax_shares():
    scores = torch.tensor([[0.0, 2.0, 1.0, -1.0], [0.1, 0.0, 0.2, 0.3]])
    best, worst, apart = best_and_worst(scores, 0.3)
    assert best.tolist() == [1, 3]
    assert worst.tolist() == [3, 1]
    assert apart.tolist() == [True, False]
    shares = torch.tensor([2.0, -1.0]).softmax(0)
    assert not best_and_worst(scores[:1], float(shares[0] - shares[1]) + 1e-6)[2]
    assert best_and_worst(scores[:1], float(shares[0] - shares[1]) - 1e-6)[2]
