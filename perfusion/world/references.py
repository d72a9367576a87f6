"""Reference scorers: what can be known of the sample marketplace, from nothing to everything.

The reachable one bounds what a model could learn: it sees the true attributes of every candidate and learns merchants'
tastes from the very records that models train on, by a conditional logit.

Legend: G groups, N candidates, U users, A attribute values of all families, S sources of taste.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from perfusion.data.tables import GroupTable
from perfusion.errors import DataError
from perfusion.seeding import repeatable
from perfusion.world.garments import CODES
from perfusion.world.marketplace import Truth
from perfusion.world.picking import stated_codes, violations

__all__ = ["REFERENCES", "reference_scores"]

Floats = NDArray[np.float64]

REFERENCES = {
    "random": "the same score for every candidate",
    "text_consistency": "how many stated attributes a candidate shows",
    "user_blind_oracle": "the true utility less all that is personal",
    "reachable": "true attributes, tastes learned from the training records by a conditional logit",
    "feature_oracle": "the true utility less what is the merchant's own",
    "full_oracle": "the true utility; only the noise of picking is missing",
}
_FEATURE_RIDGES = (1.0, 3.0, 10.0)
_OWN_RIDGES = (3.0, 10.0, 30.0, 300.0)


def reference_scores(truth: Truth, tables: dict[str, GroupTable], split: str = "test") -> dict[str, Floats]:
    """Scores (G, N) of every reference for the groups of a split; padding scores 0.

    Args:
        truth: of the world that the tables come from.
        tables: needs train and valid besides `split`.
        split: which groups to score.

    Raises:
        DataError: a table is absent, or its pictures, users or prompts are not of this world.
    """
    absent = [name for name in ("train", "valid", split) if name not in tables]
    if absent:
        raise DataError(f"reference scorers need the splits train, valid and {split}; absent: {', '.join(absent)}")
    worth = _worth(truth, tables[split])
    return {
        "random": np.zeros_like(worth["total"]),
        "text_consistency": worth["prompt"],
        "user_blind_oracle": worth["prompt"] + worth["everybody"],
        "reachable": _reachable(truth, tables, split),
        "feature_oracle": worth["total"] - worth["own"],
        "full_oracle": worth["total"],
    }


def _worth(truth: Truth, table: GroupTable) -> dict[str, Floats]:
    """The parts of the true utility of every candidate, (G, N) each."""
    valid = table.valid.numpy()
    group, _ = np.nonzero(valid)
    users = [table.user_ids[row] for row in table.user_index[group].tolist()]
    parts = truth.utility(users, [table.prompts[row] for row in group], _codes(truth, table)[valid])
    worth = {}
    for name in ("prompt", "everybody", "own", "total"):
        worth[name] = np.zeros(valid.shape)
        worth[name][valid] = getattr(parts, name)
    return worth


def _codes(truth: Truth, table: GroupTable) -> NDArray[np.int64]:
    """The candidates' garments, (G, N, 8); padding is garment 0."""
    valid = table.valid.numpy()
    codes = np.zeros((*valid.shape, len(CODES)), np.int64)
    codes[valid] = truth.codes([table.image_ids[row] for row in table.image_index.numpy()[valid]])
    return codes


@dataclass(frozen=True)
class _Design:
    """A split for the conditional logit.

    Attributes:
        attributes: (G, N, A) indicators of the candidates' attribute values.
        lacks: (G, N) stated attributes that a candidate lacks.
        sources: (G, S) rows of the taste tables that apply to the group's user; 0 is for what is not known.
        picked, valid: (G, N) bool.
    """

    attributes: Tensor
    lacks: Tensor
    sources: Tensor
    picked: Tensor
    valid: Tensor


def _reachable(truth: Truth, tables: dict[str, GroupTable], split: str) -> Floats:
    """The conditional logit whose ridges do best on the valid split, applied to `split`."""
    known = sorted(set(tables["train"].user_index.tolist()))
    train, valid, test = (_design(truth, tables[name], known) for name in ("train", "valid", split))
    sizes = _source_sizes(tables["train"])
    best: tuple[float, Tensor] | None = None
    for feature_ridge in _FEATURE_RIDGES:
        start: list[Tensor] | None = None
        for own_ridge in reversed(_OWN_RIDGES):
            start = _fit(train, sizes, feature_ridge, own_ridge, start)
            loss = _loss(_score(valid, start), valid).item()
            if best is None or loss < best[0]:
                best = loss, _score(test, start)
    assert best is not None
    return best[1].masked_fill(~test.valid, 0.0).double().numpy()


def _source_sizes(table: GroupTable) -> list[int]:
    """Rows of each source's table: every feature, every pair of features crossed, and the user."""
    counts = table.encoder.cardinalities
    features = range(len(counts) - 1)
    crossed = [counts[a] * counts[b] for a, b in _pairs(table)]
    return [*(counts[f] for f in features), *crossed, counts[-1]]


def _pairs(table: GroupTable) -> list[tuple[int, int]]:
    """The crossing that the world plants."""
    names = table.encoder.names
    return [(names.index("style"), names.index("season"))]


def _design(truth: Truth, table: GroupTable, known: list[int]) -> _Design:
    codes = _codes(truth, table)
    offsets = np.cumsum([0, *CODES[:-1]])
    attributes = torch.zeros(*codes.shape[:2], sum(CODES))
    attributes.scatter_(2, torch.from_numpy(codes + offsets), 1.0)
    stated = np.stack([stated_codes(prompt) for prompt in table.prompts])
    lacks = violations(np.repeat(stated, codes.shape[1], 0), codes.reshape(-1, len(CODES))).reshape(codes.shape[:2])
    features = table.users[table.user_index]
    counts = table.encoder.cardinalities
    crossed = [features[:, a] * counts[b] + features[:, b] for a, b in _pairs(table)]
    sources = torch.stack([*features[:, :-1].unbind(1), *crossed, features[:, -1]], dim=1)
    return _Design(attributes, torch.from_numpy(lacks).float(), sources, table.picked, table.valid)


def _score(design: _Design, weights: list[Tensor]) -> Tensor:
    """Scores (G, N): the price of what a candidate lacks, the taste of everybody, and one table per source."""
    price, everybody, *tables = weights
    taste = everybody + sum(table[rows] for table, rows in zip(tables, design.sources.unbind(1), strict=True))  # (G, A)
    return price * design.lacks + torch.einsum("gna,ga->gn", design.attributes, taste)


def _loss(scores: Tensor, design: _Design) -> Tensor:
    """Summed negative log-likelihood that each picked candidate wins against the unpicked ones."""
    rivals = scores.masked_fill(design.picked | ~design.valid, -torch.inf).logsumexp(1, keepdim=True)
    return torch.nn.functional.softplus(rivals - scores)[design.picked].sum()


def _fit(
    design: _Design, sizes: list[int], feature_ridge: float, own_ridge: float, start: list[Tensor] | None
) -> list[Tensor]:
    """Minimise the loss plus a ridge on every table, by L-BFGS from `start`."""
    values = design.attributes.shape[2]
    if start is None:
        start = [torch.tensor(-1.0), torch.zeros(values), *(torch.zeros(size, values) for size in sizes)]
    weights = [weight.clone().requires_grad_() for weight in start]
    ridges = [0.0, feature_ridge, *[feature_ridge] * (len(sizes) - 1), own_ridge]
    solver = torch.optim.LBFGS(weights, max_iter=60, history_size=10, line_search_fn="strong_wolfe")

    def closure() -> float:
        solver.zero_grad()
        penalty = sum((ridge / 2 * weight.square().sum() for ridge, weight in zip(ridges, weights, strict=True)))
        loss = _loss(_score(design, weights), design) + penalty
        with repeatable():
            loss.backward()  # type: ignore[union-attr]
        return loss.item()  # type: ignore[union-attr]

    solver.step(closure)
    return [weight.detach() for weight in weights]
