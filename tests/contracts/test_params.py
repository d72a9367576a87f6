"""Every shipped parameter file loads, and the paper's says what the paper says."""

from __future__ import annotations

from pathlib import Path

import pytest

from perfusion.config import load_params
from perfusion.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parents[2]
FILES = [REPOSITORY / "params.yaml", *sorted((REPOSITORY / "params").glob("*.yaml"))]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_shipped_file_loads(file: Path) -> None:
    load_params(file)


def test_families_of_registered_models_do_not_collide() -> None:
    names = [load_params(file).name for file in FILES]
    assert len(set(names)) == len(names)


def test_the_papers_values() -> None:
    """App. B.3 and Sec. 5.1.1."""
    params = load_params(REPOSITORY / "params" / "paper.yaml")
    assert params.data.min_records == 10
    assert params.data.ratios == (8, 1, 1)
    for section in (params.pickscore, params.reward):
        assert section.batch_groups * section.optimiser.accumulate == 128
    assert (params.reward.optimiser.lr, params.reward.optimiser.warmup) == (1e-3, 500)
    assert params.clip.path is not None
    for arm in (params.dpo, params.sft, params.generator):
        assert (arm.optimiser.lr, arm.optimiser.warmup, arm.optimiser.weight_decay) == (1e-8, 500, 1e-2)
        assert arm.batch_groups * arm.optimiser.accumulate in (256, 512, 1024)
    assert params.generator.beta in (1500, 2000, 2500, 3000)


def test_the_paper_departs_in_nothing() -> None:
    """Every named departure is off: the switches stand where the paper leaves them."""
    params = load_params(REPOSITORY / "params" / "paper.yaml")
    assert not params.reward.cross_norm
    assert (params.reward.vision_lr_factor, params.reward.unknown_dropout) == (1.0, 0.0)
    for arm in (params.dpo, params.generator):
        assert (arm.beta_pivot, arm.loss_balance, arm.loser_clamp) == (None, 0.0, None)
        assert arm.timestep_ranges == ((0, 1000),)
    arm = params.generator
    assert (arm.cross_norm, arm.user_lr_factor, arm.min_timestep, arm.objective) == (False, 1.0, 0, "paper")


def test_an_unknown_key_is_an_error_that_names_file_key_and_the_likely_one(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("reward: {optimizer: {steps: 3, lr: 0.1}}\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml: reward\.optimizer: unknown key; did you mean 'optimiser'"):
        load_params(file)
