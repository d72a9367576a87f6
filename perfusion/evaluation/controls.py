"""Controls: what a personal model must not be able to do without knowing the user."""

from __future__ import annotations

import torch
from torch import Tensor

from perfusion.seeding import generator_for

__all__ = ["random_scores", "wrong_users"]


def wrong_users(users: Tensor, seed: int) -> Tensor:
    """For each row of `users` (G,) int64 another user of the same rows: every user is paired with one other user.

    The pairing is a cycle through all users in random order, so nobody meets himself and every user lends his features
    to exactly one other.

    Raises:
        ValueError: fewer than two users.
    """
    distinct = torch.unique(users)  # sorted
    if len(distinct) < 2:
        raise ValueError(f"{len(distinct)} user: a wrong-user control needs at least two")
    order = distinct[torch.randperm(len(distinct), generator=generator_for(seed, "wrong-users"))]
    partner = torch.empty(int(distinct[-1]) + 1, dtype=torch.int64)
    partner[order] = order.roll(1)
    return partner[users]


def random_scores(shape: tuple[int, int], seed: int) -> Tensor:
    """(G, N) uniform scores that know nothing."""
    return torch.rand(shape, generator=generator_for(seed, "random-scores"))
