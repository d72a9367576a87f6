"""The reward model's objectives (Eq. 7-9) against torch's own cross-entropy and pair formulas written by hand."""

import math
from collections.abc import Iterator

import pytest
import torch
from open_clip.loss import SigLipLoss
from torch import Tensor
from torch.nn import functional

from perfusion.reward.losses import group_loss, group_loss_minimum, ideal_shares, pickscore_loss, predicted_shares
from perfusion.reward.pretrain_matching import sigmoid_loss

SHARES = 1e-7  # ideal shares such as 1/3 are in single precision


def groups(seed: int, count: int, ragged: bool, one: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(B, N) scores in double precision, picked, valid: 2 to 6 candidates, junk at padding, one or more picked."""
    generator = torch.Generator().manual_seed(seed)
    scores = 5 * torch.randn(count, 6, generator=generator, dtype=torch.float64)
    size = torch.randint(2, 7, (count, 1), generator=generator) if ragged else torch.full((count, 1), 6)
    valid = torch.arange(6) < size
    first = (torch.rand(count, 1, generator=generator) * size).long()
    picked = torch.arange(6) == first
    if not one:
        picked = picked | (torch.rand(count, 6, generator=generator) < 0.4)
    return scores, picked, valid


def alone(scores: Tensor, picked: Tensor, valid: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Each group without its padding."""
    for row in range(len(scores)):
        yield row, scores[row, valid[row]], picked[row, valid[row]]


CASES = pytest.mark.parametrize(
    ("seed", "ragged", "one"), [(seed, ragged, one) for seed in range(3) for ragged in (0, 1) for one in (0, 1)]
)


@CASES
def test_the_group_loss_is_one_binary_cross_entropy_for_each_candidate(seed: int, ragged: bool, one: bool):
    """Of two classes, itself (logit s_i) and all others (logsumexp of theirs), with soft targets p_i and 1 - p_i."""
    scores, picked, valid = groups(seed, 40, ragged, one)
    found = group_loss(scores, picked, valid)
    for row, s, y in alone(scores, picked, valid):
        p = y.double() / y.sum()
        others = torch.stack([torch.cat([s[:i], s[i + 1 :]]).logsumexp(0) for i in range(len(s))])
        expected = functional.cross_entropy(torch.stack([s, others], 1), torch.stack([p, 1 - p], 1), reduction="sum")
        assert found[row].item() == pytest.approx(expected.item(), rel=SHARES)
        shares = functional.binary_cross_entropy(s.softmax(0), p, reduction="sum")
        assert found[row].item() == pytest.approx(shares.item(), rel=SHARES)


@CASES
def test_gradients_are_those_of_the_unpadded_groups(seed: int, ragged: bool, one: bool):
    scores, picked, valid = groups(seed, 10, ragged, one)
    scores.requires_grad_()
    (found,) = torch.autograd.grad(group_loss(scores, picked, valid).sum(), scores)
    for row, s, y in alone(scores.detach(), picked, valid):
        s.requires_grad_()
        p = y.double() / y.sum()
        (expected,) = torch.autograd.grad(functional.binary_cross_entropy(s.softmax(0), p, reduction="sum"), s)
        torch.testing.assert_close(found[row, valid[row]], expected, rtol=SHARES, atol=SHARES)
    assert not found[~valid].any()


@CASES
def test_pickscores_loss_is_torchs_cross_entropy(seed: int, ragged: bool, one: bool):
    scores, picked, valid = groups(seed, 40, ragged, one)
    found = pickscore_loss(scores, picked, valid)
    for row, s, y in alone(scores, picked, valid):
        expected = functional.cross_entropy(s, y.double() / y.sum())
        assert found[row].item() == pytest.approx(expected.item(), rel=SHARES)
        if one:
            by_index = functional.cross_entropy(s[None], y.nonzero()[0])
            assert found[row].item() == pytest.approx(by_index.item(), rel=SHARES)


def test_of_a_pair_with_one_pick_it_is_twice_the_cross_entropy_and_twice_a_softplus():
    gaps = torch.linspace(-30, 30, 61, dtype=torch.float64)
    scores = torch.stack([gaps, torch.zeros_like(gaps)], 1)
    picked = torch.tensor([[True, False]]).expand(61, 2)
    found = group_loss(scores, picked, torch.ones_like(picked))
    torch.testing.assert_close(found, 2 * functional.softplus(-gaps), rtol=1e-9, atol=1e-12)
    index = torch.zeros(61, dtype=torch.long)
    torch.testing.assert_close(found, 2 * functional.cross_entropy(scores, index, reduction="none"))


def test_of_a_pair_with_two_picks_it_pulls_the_scores_together():
    gaps = torch.linspace(-30, 30, 61, dtype=torch.float64)
    both = torch.ones(61, 2, dtype=torch.bool)
    found = group_loss(torch.stack([gaps, torch.zeros_like(gaps)], 1), both, both)
    torch.testing.assert_close(found, functional.softplus(gaps) + functional.softplus(-gaps), rtol=1e-9, atol=1e-12)
    assert found.argmin() == 30


@pytest.mark.parametrize(("size", "floor"), [(2, 0.254), (5, 0.800)])
def test_as_printed_without_a_temperature_the_loss_stays_high(size: int, floor: float):
    """Cosines end at -1 and 1: the best a model can do on a group with one pick."""
    scores = torch.full((1, size), -1.0, dtype=torch.float64)
    scores[0, 0] = 1.0
    picked = torch.arange(size)[None] == 0
    assert group_loss(scores, picked, torch.ones_like(picked)).item() == pytest.approx(floor, abs=5e-4)


@CASES
def test_the_minimum_is_the_entropy_of_the_shares(seed: int, ragged: bool, one: bool):
    """Reached where the predicted shares are the ideal ones; below it is nothing."""
    scores, picked, valid = groups(seed, 40, ragged, one)
    least = group_loss_minimum(picked, valid)
    perfect = ideal_shares(picked, valid).double().log().clamp(min=-60)
    torch.testing.assert_close(group_loss(perfect, picked, valid), least.double(), rtol=1e-6, atol=1e-6)
    assert (group_loss(scores, picked, valid) >= least - 1e-6).all()
    if one:
        assert not least.any()
    pair = torch.ones(1, 2, dtype=torch.bool)
    assert group_loss_minimum(pair, pair).item() == pytest.approx(2 * math.log(2))


@CASES
def test_shares_are_a_softmax_of_those_who_are_there(seed: int, ragged: bool, one: bool):
    scores, picked, valid = groups(seed, 40, ragged, one)
    shares = predicted_shares(scores, valid)
    for row, s, _ in alone(scores, picked, valid):
        torch.testing.assert_close(shares[row, valid[row]], s.softmax(0))
    assert not shares[~valid].any()


def test_siglips_sigmoid_loss_is_open_clips():
    """With a picture's own caption for the only one that belongs to it."""
    torch.manual_seed(0)
    image, text = (functional.normalize(torch.randn(7, 5), dim=-1) for _ in range(2))
    scale, bias = torch.tensor(12.0), torch.tensor(-9.0)
    expected = SigLipLoss()(image, text, scale, bias)
    own = torch.eye(7, dtype=torch.bool)
    found = sigmoid_loss(scale * image @ text.T + bias, own, torch.ones_like(own))
    torch.testing.assert_close(found, expected)
