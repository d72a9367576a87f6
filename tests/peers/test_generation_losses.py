"""The generator's losses against torch's own and formulas written out pair by pair, on random and ragged groups."""

import math

import pytest
import torch
import torch.nn.functional as F

from perfusion.generation.preference import group_preference_loss, pairwise_preference_loss
from perfusion.generation.spo import spo_loss

BETA = 3.0


def ragged(seed: int, groups: int = 64, most: int = 7, single: bool = False):
    """Gaps (B, N), picks and who is there; every group has a picked and an unpicked candidate, padding holds noise."""
    generator = torch.Generator().manual_seed(seed)
    gap = torch.randn(groups, most, generator=generator, dtype=torch.float64, requires_grad=True)
    sizes = torch.randint(2, most + 1, (groups,), generator=generator)
    valid = torch.arange(most)[None] < sizes[:, None]
    order = torch.rand(groups, most, generator=generator).masked_fill(~valid, 2.0).argsort(1).argsort(1)
    count = torch.ones_like(sizes) if single else (torch.rand(groups, generator=generator) * (sizes - 1)).long() + 1
    return gap, (order < count[:, None]) & valid, valid


@pytest.mark.parametrize("seed", range(5))
def test_one_picked_is_torchs_cross_entropy_in_value_and_gradient(seed):
    gap, picked, valid = ragged(seed, single=True)
    logits = (-BETA * gap).masked_fill(~valid, -torch.inf)
    theirs = F.cross_entropy(logits, picked.long().argmax(1), reduction="none")
    ours = group_preference_loss(gap, picked, valid, beta=BETA)
    assert torch.allclose(ours, theirs, atol=1e-12)
    gradients = [torch.autograd.grad(loss.sum(), gap, retain_graph=True)[0] for loss in (ours, theirs)]
    assert torch.allclose(*gradients, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_several_picked_is_the_formula_written_out_pair_by_pair(seed):
    """-sum_p log 1 / (1 + sum_n exp(r_n - r_p)), with r = -beta gap, in plain floats (Eq. 10, 12)."""
    gap, picked, valid = ragged(seed)
    assert (picked.sum(1) > 1).any()
    for row, loss in enumerate(group_preference_loss(gap, picked, valid, beta=BETA).tolist()):
        reward = [-BETA * value for value in gap[row].tolist()]
        here = [i for i in range(len(reward)) if valid[row, i]]
        winners, losers = ([i for i in here if bool(picked[row, i]) is wanted] for wanted in (True, False))
        expected = sum(math.log(1 + sum(math.exp(reward[n] - reward[p]) for n in losers)) for p in winners)
        assert loss == pytest.approx(expected, rel=1e-12)


def test_each_picked_is_a_cross_entropy_of_its_own_against_the_unpicked():
    gap, picked, valid = ragged(9)
    loss = group_preference_loss(gap, picked, valid, beta=BETA)
    theirs = torch.zeros_like(loss)
    for row, column in picked.nonzero().tolist():
        unpicked = (valid & ~picked)[row]
        logits = torch.cat([-BETA * gap[row, column][None], -BETA * gap[row][unpicked]])
        theirs[row] += F.cross_entropy(logits[None], torch.tensor([0]))
    assert torch.allclose(loss, theirs, atol=1e-12)


def test_a_pair_is_torchs_binary_cross_entropy():
    a, b = torch.randn(2, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theirs = F.binary_cross_entropy_with_logits(BETA * (b - a), torch.ones_like(a), reduction="none")
    assert torch.allclose(pairwise_preference_loss(a, b, beta=BETA), theirs, atol=1e-12)


@pytest.mark.parametrize("clip", [0.1, 0.4])
def test_spo_is_the_public_codes_formula(clip):
    """-log(sigmoid(beta log r_w - beta log r_l)), each ratio exponentiated and clamped, as the public code has it."""
    best, worst = torch.randn(2, 200, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 0.3
    best.requires_grad_(True)
    ratios = [torch.exp(log_ratio).clamp(1 - clip, 1 + clip) for log_ratio in (best, worst)]
    theirs = -torch.log(torch.sigmoid(10.0 * ratios[0].log() - 10.0 * ratios[1].log()))
    ours = spo_loss(best, worst, 10.0, clip)
    assert torch.allclose(ours, theirs, atol=1e-12)
    gradients = [torch.autograd.grad(loss.sum(), best, retain_graph=True)[0] for loss in (ours, theirs)]
    assert torch.allclose(*gradients, atol=1e-12)
    outside = (best.detach().exp() - 1).abs() > clip
    assert outside.any()
    assert gradients[0][outside].eq(0).all()


def test_spo_stays_finite_where_the_public_formula_does_not():
    best, worst = torch.tensor([-200.0]), torch.tensor([200.0])
    clip = 1 - 1e-7
    ratios = [log_ratio.exp().clamp(1 - clip, 1 + clip) for log_ratio in (best, worst)]
    assert torch.isinf(-torch.log(torch.sigmoid(10.0 * (ratios[0].log() - ratios[1].log()))))
    assert torch.isfinite(spo_loss(best, worst, 10.0, clip))
