"""Groups in batches for the two reward models: which groups, which candidates, and how good on held-out ones.

Legend: B groups of a batch, N candidates of the largest group, R existing candidates of the batch (rows).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import BatchEncoding

from perfusion.data import GroupTable
from perfusion.errors import DataError
from perfusion.reward.backbones import Backbone
from perfusion.reward.frozen import Frozen
from perfusion.reward.losses import group_auc

__all__ = [
    "NOTHING",
    "BestWeights",
    "Candidates",
    "Measure",
    "blind_scores",
    "gather",
    "measure",
    "spread",
]

NOTHING = Frozen()  # nothing is kept
GroupObjective = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Candidates:
    """A batch of groups, ready for a tower.

    Attributes:
        text: input_ids and attention_mask (B, T), or (B, P) embeddings of a tower that hears of no user.
        image: (R, 3, S, S) pictures, (R, T, D) what the first layer is given of them, or (R, P) embeddings of a tower
            that hears of no user.
        group: (R,) long, the group of each row.
        users: (B, F) long.
        picked, valid: (B, N) bool.
    """

    text: BatchEncoding | Tensor
    image: Tensor
    group: Tensor
    users: Tensor
    picked: Tensor
    valid: Tensor


Scorer = Callable[[Candidates], Tensor]  # -> (R,)


def gather(
    table: GroupTable, rows: Tensor, prompts: list[str], users: Tensor, backbone: Backbone, frozen: Frozen = NOTHING
) -> Candidates:
    """The groups `rows` (B,) of `table` with these prompts and user features, on the backbone's device.

    Args:
        frozen: what is kept of the table's pictures and of prompts, used instead of them.
    """
    device = backbone.device
    valid = table.valid[rows]
    pictures = table.image_index[rows][valid]
    if frozen.pictures is None:
        image = backbone.prepare(table.pixels[pictures].to(device))
    else:
        image = frozen.pictures[pictures].to(device)
    return Candidates(
        _text(prompts, backbone, frozen), image, valid.nonzero()[:, 0].to(device), users.to(device),
        table.picked[rows].to(device), valid.to(device),
    )  # fmt: skip


def _text(prompts: list[str], backbone: Backbone, frozen: Frozen) -> BatchEncoding | Tensor:
    """Kept embeddings where all prompts have one, else tokens."""
    known = frozen.prompts or {}
    if not all(prompt in known for prompt in prompts):
        return backbone.tokens(prompts)
    return torch.stack([known[prompt] for prompt in prompts]).to(backbone.device)


def spread(scores: Tensor, valid: Tensor) -> Tensor:
    """(R,) scores of existing candidates -> (B, N), 0 at padding."""
    return torch.zeros(valid.shape, dtype=scores.dtype, device=scores.device).masked_scatter(valid, scores)


def blind_scores(backbone: Backbone, batch: Candidates) -> Tensor:
    """User-blind scores, of two towers exp(logit_scale) * cosine, (R,) (Eq. 6)."""
    return backbone.scores(batch.text, batch.image, batch.group)


@dataclass(frozen=True)
class Measure:
    """Mean loss in nats and GAUC over held-out groups that have both classes."""

    loss: float
    gauc: float


@torch.no_grad()
def measure(
    scorer: Scorer,
    objective: GroupObjective,
    table: GroupTable,
    backbone: Backbone,
    most: int,
    frozen: Frozen = NOTHING,
    batch_groups: int = 128,
) -> Measure:
    """Score at most `most` groups of `table` that were picked from, evenly spread over it.

    Args:
        frozen: see `gather`.

    Raises:
        DataError: no group was.
    """
    rows = (table.picked & table.valid).any(-1).nonzero()[:, 0]
    if not len(rows):
        raise DataError("no valid group has a picked candidate; check the split")
    rows = rows[torch.linspace(0, len(rows) - 1, min(most, len(rows))).long()]
    losses, aucs = [], []
    for part in rows.split(batch_groups):
        batch = gather(
            table, part, [table.prompts[row] for row in part.tolist()], table.features(part), backbone, frozen
        )
        s = spread(scorer(batch), batch.valid)
        losses.append(objective(s, batch.picked, batch.valid))
        aucs.append(group_auc(s, batch.picked, batch.valid))
    return Measure(torch.cat(losses).mean().item(), torch.cat(aucs).nanmean().item())


class BestWeights(nn.Module):
    """A copy of the best trainable weights of a module so far, kept in buffers so that a resumed run still has them."""

    loss: Tensor
    step: Tensor

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._source = {name: p for name, p in module.named_parameters() if p.requires_grad}
        for name, parameter in self._source.items():
            self.register_buffer(name.replace(".", "/"), parameter.detach().clone())
        self.register_buffer("loss", torch.tensor(torch.inf, dtype=torch.float64))
        self.register_buffer("step", torch.tensor(0))

    @torch.no_grad()
    def offer(self, loss: float, step: int) -> None:
        """Keep the present weights if `loss` is lower than that of those kept."""
        if loss >= self.loss.item():
            return
        self.loss.fill_(loss)
        self.step.fill_(step)
        for name, parameter in self._source.items():
            self.get_buffer(name.replace(".", "/")).copy_(parameter)

    @torch.no_grad()
    def restore(self) -> None:
        """Put the kept weights back into the module."""
        for name, parameter in self._source.items():
            parameter.copy_(self.get_buffer(name.replace(".", "/")))
