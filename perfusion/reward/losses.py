"""The reward model's objective, one equation a function (Eq. 6-9), and the user-blind baseline's.

Legend: B groups, N candidates of a group; `valid` (B, N) bool marks the candidates that exist, the rest is padding.
Losses are in nats, one value per group. Scores are `scale * cosine`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from perfusion.errors import DataError

__all__ = [
    "cosine_similarity",
    "group_auc",
    "group_loss",
    "group_loss_minimum",
    "ideal_shares",
    "log_predicted_shares",
    "pickscore_loss",
    "predicted_shares",
]


def cosine_similarity(text: Tensor, image: Tensor) -> Tensor:
    """Cosine of text and image embeddings over the last dimension, in [-1, 1] (Eq. 6)."""
    return (functional.normalize(text, dim=-1) * functional.normalize(image, dim=-1)).sum(-1)


def ideal_shares(picked: Tensor, valid: Tensor) -> Tensor:
    """p_i = y_i / sum_j y_j, shape (B, N) (Eq. 7).

    Raises:
        DataError: a group without a picked candidate, for which Eq. 7 is 0/0.
    """
    y = (picked & valid).to(torch.get_default_dtype())
    total = y.sum(-1, keepdim=True)
    if bool((total == 0).any()):
        empty = int((total == 0).sum())
        raise DataError(f"{empty} of {len(y)} groups have no picked candidate; drop them first (filter_users)")
    return y / total


def log_predicted_shares(s: Tensor, valid: Tensor) -> Tensor:
    """log p_hat_i, shape (B, N), -inf at padding (log of Eq. 8)."""
    return functional.log_softmax(s.masked_fill(~valid, -torch.inf), dim=-1)


def predicted_shares(s: Tensor, valid: Tensor) -> Tensor:
    """p_hat_i = exp(s_i) / sum_j exp(s_j), shape (B, N), 0 at padding (Eq. 8).

    As printed the equation has no temperature: pass plain cosines for that, `scale * cosine` for ours.
    """
    return log_predicted_shares(s, valid).exp()


def group_loss(s: Tensor, picked: Tensor, valid: Tensor) -> Tensor:
    """L = - sum_i p_i log p_hat_i + (1 - p_i) log(1 - p_hat_i), shape (B,), in nats (Eq. 9).

    log(1 - p_hat_i) is logsumexp_{j != i} s_j - logsumexp_j s_j: exact where 1 - p_hat_i rounds to 0. The least value
    is `group_loss_minimum`, not 0. With two candidates and one pick it is twice `pickscore_loss`.

    Args:
        s: (B, N) scores.
        picked: (B, N) bool.
        valid: (B, N) bool; what stands at padding changes neither loss nor gradient.
    """
    p = ideal_shares(picked, valid).to(s)
    log_p_hat = log_predicted_shares(s, valid)
    loss = -(p * log_p_hat.masked_fill(~valid, 0.0) + (1 - p) * _log_complement(s, valid))
    return loss.masked_fill(~valid, 0.0).sum(-1)


def _log_complement(s: Tensor, valid: Tensor) -> Tensor:
    """log(1 - p_hat_i), shape (B, N); 0 at padding and where the candidate is alone (its weight 1 - p_i is 0)."""
    count = s.shape[-1]
    other = valid[:, None, :] & ~torch.eye(count, dtype=torch.bool, device=s.device)  # (B, N, N): j is valid, j != i
    defined = valid & other.any(-1)
    scores = s[:, None, :].expand(-1, count, -1)
    # A row without any j would be logsumexp of nothing, whose gradient is not a number: give it one to throw away.
    others = scores.masked_fill(~(other | ~defined[..., None]), -torch.inf).logsumexp(-1)
    everyone = s.masked_fill(~valid, -torch.inf).logsumexp(-1, keepdim=True)
    return (others - everyone).masked_fill(~defined, 0.0)


def group_loss_minimum(picked: Tensor, valid: Tensor) -> Tensor:
    """The least value of Eq. 9, at p_hat = p: sum_i H_b(p_i), H_b the binary entropy, shape (B,), in nats."""
    p = ideal_shares(picked, valid)
    entropy = -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p))
    return entropy.masked_fill(~valid, 0.0).sum(-1)


def pickscore_loss(s: Tensor, picked: Tensor, valid: Tensor) -> Tensor:
    """PickScore's objective, the cross-entropy - sum_i p_i log p_hat_i, shape (B,), in nats (Kirstain et al. 2023)."""
    p = ideal_shares(picked, valid).to(s)
    return -(p * log_predicted_shares(s, valid).masked_fill(~valid, 0.0)).sum(-1)


def group_auc(s: Tensor, picked: Tensor, valid: Tensor) -> Tensor:
    """Share of (picked, not picked) pairs in the right order, ties one half, shape (B,); NaN without such a pair.

    The monitoring figure of training; reported figures come from `perfusion.evaluation`.
    """
    pairs = (picked & valid)[:, :, None] & (~picked & valid)[:, None, :]  # (B, N, N)
    gap = s[:, :, None] - s[:, None, :]
    won = (gap > 0).to(s) + 0.5 * (gap == 0).to(s)
    return (won * pairs).sum((1, 2)) / pairs.sum((1, 2))
