"""Operations of a training step, counted on Stable Diffusion v1.5's own architecture without computing anything.

Per picture, forward and backward as trained; a regression shows here without a stopwatch.
"""

from __future__ import annotations

import pytest
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.training import ARMS, arms

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def flops() -> dict[str, float]:
    """GFLOP a picture of each arm's step."""
    found = arms("sd15", device="meta", pictures=2)
    counted = {}
    for name in ARMS:
        with FlopCounterMode(display=False) as counter:
            found.work[name]()
        counted[name] = counter.get_total_flops() / found.items / 1e9
    return counted


def test_plain_training_is_three_forward_passes(flops):
    assert flops["plain"] == pytest.approx(3 * 803.3, rel=0.01)


def test_perfusion_costs_an_eighth_more_than_plain_diffusion(flops):
    """1 / 3 for each forward pass: encoder .325, decoder twice .674 and once back .77, the copy .334 and twice back."""
    assert flops["perfusion"] / flops["plain"] == pytest.approx(1.148, abs=0.002)


def test_perfusion_costs_less_than_diffusion_dpo(flops):
    assert flops["dpo"] / flops["plain"] == pytest.approx(4 / 3, rel=0.01)
    assert flops["perfusion"] / flops["dpo"] == pytest.approx(0.861, abs=0.002)


def test_the_shared_encoder_saves_a_third_of_a_forward_pass(flops):
    assert flops["perfusion-naive"] - flops["perfusion"] == pytest.approx(0.325 * 803.3, rel=0.01)
