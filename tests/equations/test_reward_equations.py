"""Eq. 2-9 by arithmetic that a reader can redo."""

import math

import pytest
import torch
from torch.nn import functional

from perfusion.config import GeneratorConfig
from perfusion.errors import DataError
from perfusion.nn import AdaptiveNetwork, CrossNetwork, FeatureEmbedding, PersonalPlugIn, UserEncoder, cross_layer
from perfusion.reward import (
    cosine_similarity,
    group_loss,
    group_loss_minimum,
    ideal_shares,
    pickscore_loss,
    predicted_shares,
)


def entropy(p: float) -> float:
    return -sum(x * math.log(x) for x in (p, 1 - p) if x > 0)


def test_eq2_cross_layer_by_hand():
    u_0, u_l = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, -1.0]])
    w_l, b_l = torch.tensor([0.5, 2.0]), torch.tensor([10.0, 20.0])
    # u_l . w_l = 1.5 - 2 = -0.5; u_0 * -0.5 = (-0.5, -1); plus b (10, 20), plus u_l (3, -1)
    assert cross_layer(u_0, u_l, w_l, b_l).tolist() == [[12.5, 18.0]]


def test_eq2_a_network_is_its_layers_in_turn_and_w_is_a_vector():
    network = CrossNetwork(width=4, layers=3)
    assert network.weight.shape == (3, 4)
    torch.nn.init.normal_(network.bias)
    u_0 = torch.randn(4)
    u = u_0
    for w, b in zip(network.weight, network.bias, strict=True):
        u = torch.outer(u_0, u) @ w + b + u  # u_0 u_l^T is a matrix, as printed
    torch.testing.assert_close(network(u_0[None])[0], u)


def test_eq2_without_crossings_only_the_residual_is_left():
    network = CrossNetwork(width=4, layers=3)
    torch.nn.init.zeros_(network.weight)
    u_0 = torch.randn(5, 4)
    assert torch.equal(network(u_0), u_0)


def test_eq2_each_layer_adds_one_polynomial_degree():
    network = CrossNetwork(width=2, layers=3).double()
    u = torch.tensor([[0.7, -0.4]], dtype=torch.float64)
    with torch.no_grad():
        network.bias.zero_()
        values = torch.cat([network(c * u) for c in (0.0, 1.0, 2.0, 3.0, 4.0, 5.0)])[:, 0]
    differences = values
    for _ in range(4):
        differences = differences.diff()
    assert abs(differences[0].item()) > 1e-6  # degree 4 = layers + 1 is there
    assert abs(differences.diff()[0].item()) < 1e-10  # and no degree 5


def users_turned_round(std: float, count: int = 1000) -> float:
    """Share of users whom a fresh crossing multiplies by a negative number."""
    encoder = UserEncoder([20] * 6, embedding_dim=16, cross_layers=3, embedding_std=std)
    with torch.no_grad():
        u_0 = encoder.embedding(torch.randint(1, 20, (count, 6)))
        factor = (1 + u_0 @ encoder.crossing.weight.T).prod(1)  # u_{l+1} = u_0 (u_l . w_l) + u_l while b is 0
        torch.testing.assert_close(encoder.crossing(u_0), factor[:, None] * u_0)
    return float((factor < 0).double().mean())


def test_eq2_small_first_embeddings_leave_users_who_resemble_each_other_on_one_side():
    torch.manual_seed(0)
    assert max(users_turned_round(GeneratorConfig.model_fields["embedding_std"].default) for _ in range(10)) < 0.02
    assert sum(users_turned_round(1.0) for _ in range(10)) / 10 > 0.2


def test_embeddings_stand_side_by_side_and_unknown_says_nothing():
    embedding = FeatureEmbedding([3, 2], dim=2)
    users = torch.tensor([[2, 1], [0, 0]])
    known, unknown = embedding(users)
    assert torch.equal(known, torch.cat([embedding.table.weight[2], embedding.table.weight[3 + 1]]))
    assert torch.equal(unknown, torch.zeros(4))
    with pytest.raises(DataError, match="out of range"):
        embedding(torch.tensor([[3, 0]]))
    with pytest.raises(DataError, match=r"need \(B, 2\)"):
        embedding(torch.tensor([[1, 1, 1]]))


def test_eq4_two_layers_gelu_and_a_zero_last_layer():
    network = AdaptiveNetwork(width=3, hidden=2, out=4)
    u = torch.randn(6, 3)
    assert torch.equal(network(u), torch.zeros(6, 4))
    torch.nn.init.ones_(network.last.weight)
    hidden = u @ network.first.weight.T + network.first.bias
    gelu = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    torch.testing.assert_close(network(u), gelu.sum(-1, keepdim=True).expand(6, 4))


def test_eq4_there_are_two_networks_for_each_layer():
    encoder = UserEncoder([4, 5], embedding_dim=3, cross_layers=2)
    plugin = PersonalPlugIn(encoder, hidden=8, towers={"text": (16, 3)})
    networks = [module for module in plugin.modules() if isinstance(module, AdaptiveNetwork)]
    assert len(networks) == 2 * 3
    users = torch.tensor([[1, 2], [3, 4]])
    assert torch.equal(plugin(users, "text"), torch.zeros(2, 3, 2, 16))
    torch.nn.init.ones_(networks[0].last.bias)  # attention, layer 0
    torch.nn.init.constant_(networks[-1].last.bias, 2.0)  # feed-forward, layer 2
    knowledge = plugin(users, "text")
    assert (knowledge[:, 0, 0] == 1).all()
    assert (knowledge[:, 2, 1] == 2).all()
    assert knowledge.sum() == 2 * 16 * (1 + 2)


def test_eq6_cosine():
    text, image = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[4.0, 3.0], [-2.0, 0.0]])
    torch.testing.assert_close(cosine_similarity(text, image), torch.tensor([24 / 25, -1.0]))


def test_eq7_shares_of_the_papers_example():
    picked = torch.tensor([[True, True, False, False], [True, False, False, True]])
    valid = torch.tensor([[True, True, True, True], [True, True, True, False]])
    assert ideal_shares(picked, valid).tolist() == [[0.5, 0.5, 0, 0], [1, 0, 0, 0]]
    with pytest.raises(DataError, match="1 of 2 groups have no picked candidate"):
        ideal_shares(torch.tensor([[False, False], [True, False]]), torch.ones(2, 2, dtype=torch.bool))


def test_eq8_softmax_over_those_who_are_there():
    s = torch.tensor([[math.log(1.0), math.log(3.0), 50.0]])
    valid = torch.tensor([[True, True, False]])
    torch.testing.assert_close(predicted_shares(s, valid), torch.tensor([[0.25, 0.75, 0.0]]))


def test_eq9_by_hand():
    # p = (1/2, 1/2, 0), p_hat = (1/2, 1/4, 1/4)
    s = torch.tensor([[math.log(2.0), 0.0, 0.0]], dtype=torch.float64)
    picked = torch.tensor([[True, True, False]])
    p, p_hat = (0.5, 0.5, 0.0), (0.5, 0.25, 0.25)
    expected = -sum(a * math.log(b) + (1 - a) * math.log(1 - b) for a, b in zip(p, p_hat, strict=True))
    assert group_loss(s, picked, torch.ones_like(picked)).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("candidates", "expected"), [(2, 0.254), (5, 0.800)])
def test_eq9_literal_form_cannot_get_under_its_floor(candidates: int, expected: float):
    """Cosines end at 1 and -1: the best shares are e : 1/e, whatever the model."""
    s = torch.full((1, candidates), -1.0)
    s[0, 0] = 1.0
    picked = torch.arange(candidates)[None] == 0
    loss = group_loss(s, picked, torch.ones_like(picked))
    assert loss.item() == pytest.approx(expected, abs=5e-4)
    assert group_loss(20 * s, picked, torch.ones_like(picked)).item() < 1e-6  # a temperature removes the floor


def test_eq9_pair_is_twice_the_pair_cross_entropy():
    s = torch.randn(64, 2, dtype=torch.float64)
    index = torch.randint(2, (64,))
    picked = functional.one_hot(index, 2).bool()
    expected = 2 * functional.cross_entropy(s, index, reduction="none")
    torch.testing.assert_close(group_loss(s, picked, torch.ones_like(picked)), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(2 * pickscore_loss(s, picked, torch.ones_like(picked)), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("picks", [1, 2, 3, 5])
def test_eq9_minimum_is_the_entropy_of_the_shares(picks: int):
    picked = torch.arange(5)[None] < picks
    valid = torch.ones_like(picked)
    p = ideal_shares(picked, valid).double()
    minimum = group_loss_minimum(picked, valid)
    assert minimum.item() == pytest.approx(sum(entropy(x) for x in p[0].tolist()), abs=1e-6)
    s = (p + 1e-9).log().requires_grad_()
    loss = group_loss(s, picked, valid)
    assert loss.item() == pytest.approx(minimum.item(), abs=1e-6)
    loss.backward()
    assert s.grad.abs().max() < 1e-6  # a stationary point
    assert group_loss(torch.randn(1, 5, dtype=torch.float64), picked, valid).item() > minimum.item()


def test_eq9_stays_finite_where_log_of_one_minus_softmax_does_not():
    s = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    picked = torch.tensor([[False, True, False]])
    loss = group_loss(s, picked, torch.ones_like(picked))
    # -log p_hat_2 = 200, -log(1 - p_hat_1) = 200 - log 2, -log(1 - p_hat_3) = 0
    assert loss.item() == pytest.approx(400 - math.log(2), abs=1e-3)
    loss.sum().backward()
    assert torch.isfinite(s.grad).all()


def test_eq9_ragged_groups_equal_their_unpadded_selves_forward_and_gradient():
    torch.manual_seed(0)
    sizes = [1, 2, 3, 5]
    s = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    valid = torch.arange(5)[None] < torch.tensor(sizes)[:, None]
    picked = torch.zeros(4, 5, dtype=torch.bool)
    picked[:, 0] = True
    picked[3, 2] = True
    for objective in (group_loss, pickscore_loss):
        loss = objective(s, picked, valid)
        (gradient,) = torch.autograd.grad((loss * torch.arange(1.0, 5.0)).sum(), s)
        for row, size in enumerate(sizes):
            alone = s[row : row + 1, :size].detach().requires_grad_()
            part = objective(alone, picked[row : row + 1, :size], torch.ones(1, size, dtype=torch.bool))
            (expected,) = torch.autograd.grad((row + 1) * part.sum(), alone)
            torch.testing.assert_close(loss[row], part[0], rtol=0, atol=1e-12)
            torch.testing.assert_close(gradient[row, :size], expected[0], rtol=0, atol=1e-12)
            assert (gradient[row, size:] == 0).all()


def test_eq9_ignores_what_stands_at_padding_and_the_order_of_candidates():
    s, picked = torch.randn(3, 4), torch.tensor([[True, False, False, False]] * 3)
    valid = torch.tensor([[True, True, True, False]] * 3)
    loss = group_loss(s, picked, valid)
    for junk in (1e9, -1e9, math.nan):
        assert torch.equal(group_loss(s.masked_fill(~valid, junk), picked, valid), loss)
    order = torch.tensor([2, 3, 0, 1])
    torch.testing.assert_close(group_loss(s[:, order], picked[:, order], valid[:, order]), loss)
