"""The paper's preference equations for diffusion models, one short function each (Eq. 1, 10-19).

Legend: B groups, N candidates of a group, P/N its picked and unpicked ones, (C, H, W) a latent.

What the paper leaves open, and what is done here:

* Eq. 10 and 14 print a *sum* over the picked candidates. Events that are independent multiply, and the sum can exceed
  1 (two picked candidates that both win surely sum to 2), so the product is used; Eq. 12, 13, 17 and 18 already follow
  from the product. The printed form stays available as `form="sum"`.
* Eq. 16 lacks the logarithm in its second and third line; Eq. 17 has it back.
* beta belongs to the *mean* square over (C, H, W), as in the public Diffusion-DPO launchers of this beta range
  (1500-3000). With the literal sum of squares divide it by C*H*W. Salesforce's `beta_dpo` is twice this beta.
* Pulling one candidate up at a time (the paper's product) is the exact Plackett-Luce likelihood for one picked
  candidate only. With more, `objective="pl_topk"` is the exact likelihood that the picked set is the top of the
  ranking, in any order.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "BETA_CONVENTION",
    "Objective",
    "Reduction",
    "denoising_error",
    "group_log_likelihood",
    "group_preference_loss",
    "implicit_reward",
    "pairwise_preference_loss",
    "picked_win_probability",
    "reference_gap",
    "top_set_log_likelihood",
]

Objective = Literal["paper", "pl_topk"]
Reduction = Literal["sum", "mean_pos"]

BETA_CONVENTION = (
    "beta multiplies errors that are means over (C, H, W), as in diffusers' Diffusion-DPO script; "
    "it is half of Salesforce's beta_dpo, and C*H*W times the beta of the literal sum of squares"
)

_MOST_PICKED = 10  # the exact top-set likelihood visits 2^K subsets


def denoising_error(target: Tensor, prediction: Tensor) -> Tensor:
    """Squared error of a denoiser, averaged over (C, H, W): (..., C, H, W) -> (...) (Eq. 1)."""
    return (target - prediction).square().mean(dim=(-3, -2, -1))


def picked_win_probability(
    rewards: Tensor, picked: Tensor, valid: Tensor, form: Literal["product", "sum"] = "product"
) -> Tensor:
    """Probability that every picked candidate beats all unpicked ones: (B, N) -> (B,) (Eq. 10, 14).

    `form="sum"` is what the paper prints; it is no probability (see the module's text).
    """
    log_win = -F.softplus(_log_odds_against(rewards, picked, valid))  # (B, N)
    one = picked & valid
    if form == "sum":
        return torch.where(one, log_win.exp(), 0.0).sum(-1)
    return torch.where(one, log_win, 0.0).sum(-1).exp()


def implicit_reward(log_ratio: Tensor, beta: float | Tensor, log_z: float | Tensor = 0.0) -> Tensor:
    """Reward that a policy implies over its reference: beta log(p_theta/p_ref) + beta log Z (Eq. 11, 15).

    Z depends on the prompt alone, so it cancels inside a group and may be left at 0.
    """
    return beta * log_ratio + beta * log_z


def group_log_likelihood(
    log_ratio: Tensor, picked: Tensor, valid: Tensor, beta: float | Tensor, objective: Objective = "paper"
) -> Tensor:
    """Log-likelihood of a group's picks under its implicit rewards: (B, N) -> (B,), nats (Eq. 12, 16, 17)."""
    rewards = implicit_reward(log_ratio, _per_group(beta))
    if objective == "pl_topk":
        return top_set_log_likelihood(rewards, picked, valid)
    log_win = -F.softplus(_log_odds_against(rewards, picked, valid))
    return torch.where(picked & valid, log_win, 0.0).sum(-1)


def reference_gap(err_theta: Tensor, err_ref: Tensor) -> Tensor:
    """How much worse than its reference the policy denoises a picture: s = err_theta - err_ref (Eq. 13, 18)."""
    return err_theta - err_ref


def group_preference_loss(
    gap: Tensor,
    picked: Tensor,
    valid: Tensor,
    *,
    beta: float | Tensor,
    objective: Objective = "paper",
    reduction: Reduction = "sum",
) -> Tensor:
    """Group preference loss: sum_p softplus(logsumexp_n beta (s_p - s_n)) (Eq. 13, 18).

    The denoising gap stands in for the log-likelihood ratio: log(p_theta/p_ref) = -s up to the constant that beta
    carries. At initialisation (gap 0) the paper's loss is |P| log(1 + |N|).

    Args:
        gap: (B, N) s = err_theta - err_ref, means over (C, H, W), of pictures noised with one t and one noise a group.
        picked: (B, N) bool.
        valid: (B, N) bool; False marks padding, whose gap is ignored.
        beta: one number, or (B,) one per group.
        objective: "paper", or "pl_topk": minus the exact log-likelihood that the picked set ranks on top.
        reduction: "sum" over picked candidates (Eq. 13), or "mean_pos": divided by their number.

    Returns:
        (B,) nats. A group without a comparison (nothing picked, or nothing unpicked) gives 0.
    """
    loss = -group_log_likelihood(-gap, picked, valid, beta, objective)
    return loss / (picked & valid).sum(-1).clamp(min=1) if reduction == "mean_pos" else loss


def pairwise_preference_loss(gap_picked: Tensor, gap_other: Tensor, *, beta: float | Tensor) -> Tensor:
    """Diffusion-DPO, the case |P| = |N| = 1: -log sigmoid(beta (s_n - s_p)), (...) -> (...) nats (Eq. 19)."""
    return -F.logsigmoid(beta * (gap_other - gap_picked))


def top_set_log_likelihood(rewards: Tensor, picked: Tensor, valid: Tensor) -> Tensor:
    """Exact Plackett-Luce log-likelihood that the picked candidates are the top K, in any order: (B, N) -> (B,).

    Adds up the ways to draw the picked set one by one: f(S) = sum_{i in S} f(S - i) exp(r_i) / Z(S - i), with Z(S) the
    weight of all that is not in S. Visits 2^K subsets, so K is limited to 10.

    Raises:
        ValueError: a group has more than 10 picked candidates.
    """
    one = picked & valid
    most = int(one.sum(-1).max()) if one.numel() else 0
    if most > _MOST_PICKED:
        raise ValueError(f"{most} picked candidates in a group: pl_topk takes at most {_MOST_PICKED}; use 'paper'")
    order = (2 * one.long() + valid.long()).argsort(dim=-1, descending=True, stable=True)  # picked, unpicked, padding
    floor = torch.where(valid, rewards, torch.inf).amin(-1, keepdim=True).detach() - 1e4  # weight 0, gradient finite
    r = torch.where(valid, rewards, torch.where(floor.isfinite(), floor, 0.0)).gather(-1, order)  # (B, N)
    rest_of: list[Tensor] = []  # log Z(S)
    f = [r[:, 0] * 0.0]  # log f(S), S as bits over the sorted candidates; the empty set is certain
    for subset in range(1 << most):
        outside = [j for j in range(r.shape[1]) if not subset >> j & 1]
        rest_of.append(torch.logsumexp(r[:, outside], -1) if outside else torch.zeros_like(r[:, 0]))
        if subset:
            last = [i for i in range(most) if subset >> i & 1]
            ways = [f[subset - (1 << i)] + r[:, i] - rest_of[subset - (1 << i)] for i in last]
            f.append(torch.logsumexp(torch.stack(ways), 0))
    whole = (1 << one.sum(-1)) - 1  # (B,) the bits of each group's picked set
    likelihood = torch.stack(f).gather(0, whole[None]).squeeze(0)
    return torch.where(_has_comparison(picked, valid), likelihood, 0.0)


def _log_odds_against(rewards: Tensor, picked: Tensor, valid: Tensor) -> Tensor:
    """logsumexp over the unpicked of (r_n - r_i), for every candidate i: (B, N) -> (B, N), -inf without unpicked.

    Written so that neither padding nor an empty set reaches the gradient as NaN.
    """
    unpicked = valid & ~picked
    some = unpicked.any(-1, keepdim=True)
    held = torch.where(unpicked, rewards, -torch.inf)
    against = torch.logsumexp(torch.where(some, held, 0.0), -1, keepdim=True)
    odds = against - torch.where(valid, rewards, 0.0)
    return torch.where(some, odds, -torch.inf)


def _has_comparison(picked: Tensor, valid: Tensor) -> Tensor:
    """Whether a group has both a picked and an unpicked candidate: (B, N) -> (B,)."""
    return (picked & valid).any(-1) & (~picked & valid).any(-1)


def _per_group(beta: float | Tensor) -> float | Tensor:
    return beta[:, None] if isinstance(beta, Tensor) and beta.ndim == 1 else beta
