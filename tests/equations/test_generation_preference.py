"""Eq. 1 and 10-19 by arithmetic, limits and reference implementations (tests of `perfusion.generation.preference`)."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from perfusion.generation.preference import (
    denoising_error,
    group_log_likelihood,
    group_preference_loss,
    implicit_reward,
    pairwise_preference_loss,
    picked_win_probability,
    reference_gap,
    top_set_log_likelihood,
)


def masks(picked: int, unpicked: int, padding: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """One group (1, N): its picked candidates first, its padding last."""
    count = picked + unpicked
    index = torch.arange(count + padding)
    return (index < picked)[None], (index < count)[None]


def test_eq1_is_the_mean_square_over_a_latent():
    target, prediction = (
        torch.zeros(2, 1, 2, 2),
        torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 2, 2).expand(2, -1, -1, -1),
    )
    assert denoising_error(target, prediction).tolist() == [7.5, 7.5]  # (1 + 4 + 9 + 16) / 4


def test_eq10_multiplies_what_it_calls_independent():
    picked, valid = masks(2, 1)
    rewards = torch.zeros(1, 3)
    assert picked_win_probability(rewards, picked, valid).item() == pytest.approx(1 / 4)  # 1/2 * 1/2
    assert picked_win_probability(rewards, picked, valid, form="sum").item() == pytest.approx(1.0)  # 1/2 + 1/2


def test_eq10_as_printed_is_no_probability():
    picked, valid = masks(2, 3)
    rewards = torch.tensor([[1.2, 1.2, 0.0, 0.0, 0.0]])
    assert picked_win_probability(rewards, picked, valid, form="sum").item() > 1.0
    assert 0.0 < picked_win_probability(rewards, picked, valid).item() < 1.0


def test_eq11_scales_the_log_ratio_and_log_z_cancels_in_a_group():
    assert implicit_reward(torch.tensor(0.5), 4.0, 0.25).item() == 3.0
    picked, valid = masks(1, 2)
    ratio = torch.tensor([[0.3, -0.1, 0.2]])
    shifted = picked_win_probability(implicit_reward(ratio, 2.0, 5.0), picked, valid)
    assert shifted.item() == pytest.approx(
        picked_win_probability(implicit_reward(ratio, 2.0), picked, valid).item(), abs=1e-6
    )


def test_eq12_is_the_logarithm_of_eq10():
    generator = torch.Generator().manual_seed(0)
    ratio = torch.randn(8, 5, generator=generator)
    picked = torch.tensor([[True, True, False, False, False]]).expand(8, -1)
    valid = torch.ones_like(picked)
    log = group_log_likelihood(ratio, picked, valid, beta=1.7)
    assert torch.allclose(log.exp(), picked_win_probability(1.7 * ratio, picked, valid), atol=1e-6)


@pytest.mark.parametrize("unpicked", [1, 2, 4])
def test_eq13_with_one_picked_is_cross_entropy(unpicked):
    gap = torch.randn(16, unpicked + 1, generator=torch.Generator().manual_seed(unpicked))
    picked, valid = masks(1, unpicked)
    loss = group_preference_loss(gap, picked.expand(16, -1), valid.expand(16, -1), beta=2.5)
    expected = F.cross_entropy(-2.5 * gap, torch.zeros(16, dtype=torch.long), reduction="none")
    assert torch.allclose(loss, expected, atol=1e-6)


@pytest.mark.parametrize(("picked", "value"), [(1, 1.609438), (2, 2.772589), (3, 3.295837), (4, 2.772589)])
def test_eq13_at_initialisation(picked, value):
    """|P| log(1 + |N|) of five candidates."""
    loss = group_preference_loss(torch.zeros(1, 5), *masks(picked, 5 - picked), beta=2000.0)
    assert loss.item() == pytest.approx(value, abs=1e-6)
    assert value == pytest.approx(picked * math.log(1 + 5 - picked), abs=1e-6)


def test_eq19_at_initialisation_is_log_2_bit_for_bit():
    zero = torch.zeros(1)
    assert pairwise_preference_loss(zero, zero, beta=2000.0).item() == torch.tensor(2.0).log().item()
    assert group_preference_loss(torch.zeros(1, 2), *masks(1, 1), beta=2000.0).item() == torch.tensor(2.0).log().item()


def test_eq13_of_one_pair_is_eq19():
    gap = torch.randn(32, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    picked, valid = masks(1, 1)
    group = group_preference_loss(gap, picked.expand(32, -1), valid.expand(32, -1), beta=3.0)
    assert torch.allclose(group, pairwise_preference_loss(gap[:, 0], gap[:, 1], beta=3.0), atol=1e-12)


def test_eq19_is_diffusers_diffusion_dpo_at_the_same_beta_and_salesforces_at_twice_it():
    """The public scripts' own lines: mean errors, logits = diff of diffs, -0.5 beta (diffusers counts 2 beta/2)."""
    generator = torch.Generator().manual_seed(5)
    errors = torch.rand(2, 4, generator=generator, dtype=torch.float64)  # (policy, reference) x (2 picked, 2 other)
    model_w, model_l = errors[0, :2], errors[0, 2:]
    ref_w, ref_l = errors[1, :2], errors[1, 2:]
    beta = 2000.0
    diffusers = -F.logsigmoid(-beta * ((model_w - model_l) - (ref_w - ref_l)))
    salesforce = -F.logsigmoid(-0.5 * (2 * beta) * ((model_w - model_l) - (ref_w - ref_l)))
    ours = pairwise_preference_loss(reference_gap(model_w, ref_w), reference_gap(model_l, ref_l), beta=beta)
    assert torch.allclose(ours, diffusers, atol=1e-9)
    assert torch.allclose(ours, salesforce, atol=1e-9)


def test_literal_sum_of_squares_needs_beta_divided_by_the_latents_size():
    generator = torch.Generator().manual_seed(6)
    target, policy, reference = torch.randn(3, 1, 5, 4, 8, 8, generator=generator)
    picked, valid = masks(2, 3)
    mean = reference_gap(denoising_error(target, policy), denoising_error(target, reference))
    literal = reference_gap(
        (target - policy).square().sum((-3, -2, -1)), (target - reference).square().sum((-3, -2, -1))
    )
    a = group_preference_loss(mean, picked, valid, beta=10.0)
    b = group_preference_loss(literal, picked, valid, beta=10.0 / (4 * 8 * 8))
    assert torch.allclose(a, b, rtol=1e-5)


@pytest.mark.parametrize("objective", ["paper", "pl_topk"])
def test_gradient_sums_to_zero_and_padding_and_order_change_nothing(objective):
    generator = torch.Generator().manual_seed(7)
    gap = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    picked = torch.tensor([[True, False, True, False, False]]).expand(6, -1)
    valid = torch.ones_like(picked)

    def value_and_gradient(gap, picked, valid):
        gap = gap.clone().requires_grad_()
        loss = group_preference_loss(gap, picked, valid, beta=1.3, objective=objective)
        return loss.detach(), torch.autograd.grad(loss.sum(), gap)[0]

    loss, gradient = value_and_gradient(gap, picked, valid)
    assert torch.allclose(gradient.sum(1), torch.zeros(6, dtype=torch.float64), atol=1e-12)
    order = torch.tensor([3, 0, 4, 2, 1])
    other, turned = value_and_gradient(gap[:, order], picked[:, order], valid)
    assert torch.allclose(other, loss, atol=1e-12)
    assert torch.allclose(turned, gradient[:, order], atol=1e-12)
    wide = torch.cat([gap, torch.full((6, 2), torch.nan, dtype=torch.float64)], 1)
    padded, padded_gradient = value_and_gradient(
        wide, F.pad(picked, (0, 2)), F.pad(valid, (0, 2))
    )  # fmt: skip
    assert torch.allclose(padded, loss, atol=1e-12)
    assert torch.allclose(padded_gradient[:, :5], gradient, atol=1e-12)
    assert padded_gradient[:, 5:].eq(0).all()


@pytest.mark.parametrize(("picked", "unpicked"), [(0, 3), (3, 0)])
@pytest.mark.parametrize("objective", ["paper", "pl_topk"])
def test_a_group_without_a_comparison_teaches_nothing(picked, unpicked, objective):
    gap = torch.randn(1, 3, requires_grad=True)
    loss = group_preference_loss(gap, *masks(picked, unpicked), beta=5.0, objective=objective)
    loss.sum().backward()
    assert loss.item() == 0.0
    assert gap.grad is not None
    assert gap.grad.eq(0).all()


def test_mean_pos_divides_by_the_picked():
    gap = torch.randn(1, 5)
    picked, valid = masks(3, 2)
    total = group_preference_loss(gap, picked, valid, beta=1.0)
    assert group_preference_loss(gap, picked, valid, beta=1.0, reduction="mean_pos").item() == pytest.approx(
        total.item() / 3
    )


def test_beta_may_differ_by_group():
    gap = torch.randn(2, 4, generator=torch.Generator().manual_seed(8))
    picked, valid = (mask.expand(2, -1) for mask in masks(1, 3))
    both = group_preference_loss(gap, picked, valid, beta=torch.tensor([1.0, 7.0]))
    assert both[0] == group_preference_loss(gap[:1], picked[:1], valid[:1], beta=1.0)
    assert both[1] == group_preference_loss(gap[1:], picked[1:], valid[1:], beta=7.0)


@pytest.mark.parametrize("picked", [1, 2, 3, 4])
def test_top_set_likelihood_adds_up_every_order(picked):
    rewards = torch.randn(1, 6, generator=torch.Generator().manual_seed(picked), dtype=torch.float64)
    total = 0.0
    for order in itertools.permutations(range(picked)):
        left, chance = list(range(6)), 1.0
        for one in order:
            weights = rewards[0, left].exp()
            chance *= float(rewards[0, one].exp() / weights.sum())
            left.remove(one)
        total += chance
    assert top_set_log_likelihood(rewards, *masks(picked, 6 - picked)).exp().item() == pytest.approx(total, rel=1e-10)


@pytest.mark.parametrize("objective", ["paper", "pl_topk"])
@pytest.mark.parametrize("picked", [1, 2, 3])
def test_planted_plackett_luce_rewards_are_recovered(picked, objective):
    """Minimise the expected loss over all top sets; the paper's product is exact for one picked, outward beyond."""
    planted = torch.tensor([0.8, 0.3, 0.0, -0.4, -0.7], dtype=torch.float64)
    sets = torch.tensor([[i in chosen for i in range(5)] for chosen in itertools.combinations(range(5), picked)])
    valid = torch.ones_like(sets)
    chance = top_set_log_likelihood(planted.expand(len(sets), -1), sets, valid).exp()
    assert chance.sum().item() == pytest.approx(1.0)
    found = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [found], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure():
        solver.zero_grad()
        gap = -found.expand(len(sets), -1)
        loss = (chance * group_preference_loss(gap, sets, valid, beta=1.0, objective=objective)).sum()
        loss.backward()
        return loss

    solver.step(closure)
    error = (found.detach() - found.detach().mean()) - (planted - planted.mean())
    if objective == "paper" and picked > 1:
        assert (error * planted).sum() > 0.1  # outward
    else:
        assert error.abs().max() < 1e-6


def test_pl_topk_refuses_more_than_it_can_enumerate():
    with pytest.raises(ValueError, match="at most 10"):
        top_set_log_likelihood(torch.zeros(1, 12), *masks(11, 1))
