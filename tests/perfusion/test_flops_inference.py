"""What a step of sampling computes on Stable Diffusion v1.5's architecture, counted by torch: no stopwatch, no memory.

By hand, of one U-Net pass: encoder .310, mid .015, decoder .674, the adaptive network's copy .334; plain guidance is 2.
"""

import pytest

from benchmarks.inference import CACHED, flops_over_plain

NETWORK, DECODER = 0.334 / 2, 0.674 / 2


@pytest.mark.parametrize(
    ("arm", "steps", "options", "expected"),
    [
        ("blind", 1, {}, 1.0),
        ("exact", 1, {}, 1 + NETWORK),
        ("apart", 1, {}, 1 + DECODER + NETWORK),
        ("full", 1, {}, 1 + 2 * NETWORK),
        ("student", 1, {}, 0.5 + NETWORK),
        ("exact", 3, {"pan_every": 3}, 1 + NETWORK / 3),
        ("exact", 2, {"encoder_every": 2}, 0.5 * (1 + NETWORK) + 0.5 * 2 * DECODER),
    ],
)
def test_an_arm_computes_what_was_counted_by_hand(arm, steps, options, expected):
    assert flops_over_plain(arm, options, steps) == pytest.approx(expected, abs=0.01)


def test_personal_alignment_costs_little_more_than_plain_guidance():
    assert flops_over_plain("exact", {}, 1) <= 1.18
    assert flops_over_plain("cached", {}, max(CACHED.values())) <= 1.08
    assert CACHED.keys() <= {"pan_every", "encoder_every", "deep_every"}  # as many steps, the same solver


def test_a_prompts_keys_and_values_are_projected_once():
    first, both = (flops_over_plain("blind", {}, steps) * steps for steps in (1, 2))
    assert both - first < first - 0.003  # 2.9 of the U-Net's 803 GFLOP, on each half
