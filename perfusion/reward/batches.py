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
from perfusion.reward.losses import cosine_similarity, group_auc
from perfusion.seeding import generator_for

__all__ = [
    "BestWeights",
    "Candidates",
    "Measure",
    "batch_rows",
    "blind_scores",
    "embed_pictures",
    "gather",
    "measure",
    "spread",
]

GroupObjective = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Candidates:
    """A batch of groups, ready for a tower.

    Attributes:
        tokens: input_ids and attention_mask (B, T).
        image: (R, 3, S, S) pictures, or (R, P) embeddings of a tower that no user changes.
        group: (R,) long, the group of each row.
        users: (B, F) long.
        picked, valid: (B, N) bool.
    """

    tokens: BatchEncoding
    image: Tensor
    group: Tensor
    users: Tensor
    picked: Tensor
    valid: Tensor


Scorer = Callable[[Candidates], Tensor]  # -> (R,)


def batch_rows(count: int, size: int, step: int, seed: int, name: str) -> Tensor:
    """Rows of batch `step`, (B,) long: every epoch is a new permutation, and batches run on from one to the next.

    Raises:
        DataError: no rows to draw from.
    """
    if count == 0:
        raise DataError("no training groups; check the filter (data.min_records) and the split")
    position = torch.arange(step * size, (step + 1) * size)
    epochs = range(int(position[0]) // count, int(position[-1]) // count + 1)
    orders = {epoch: torch.randperm(count, generator=generator_for(seed, name, epoch)) for epoch in epochs}
    return torch.stack([orders[int(p) // count][int(p) % count] for p in position])


def gather(
    table: GroupTable, rows: Tensor, prompts: list[str], users: Tensor, backbone: Backbone, images: Tensor | None = None
) -> Candidates:
    """The groups `rows` (B,) of `table` with these prompts and user features, on the backbone's device.

    Args:
        images: (M, P) embeddings of all pictures of the table, instead of the pictures.
    """
    device = backbone.clip.device
    valid = table.valid[rows]
    pictures = table.image_index[rows][valid]
    image = backbone.prepare(table.pixels[pictures].to(device)) if images is None else images[pictures.to(device)]
    return Candidates(
        backbone.tokens(prompts), image, valid.nonzero()[:, 0].to(device), users.to(device),
        table.picked[rows].to(device), valid.to(device),
    )  # fmt: skip


@torch.no_grad()
def embed_pictures(backbone: Backbone, pixels: Tensor, batch: int = 256) -> Tensor:
    """User-blind embeddings of all pictures (M, 3, S, S) uint8: (M, P), not normalised."""
    prepared = (backbone.prepare(part.to(backbone.clip.device)) for part in pixels.split(batch))
    return torch.cat([backbone.clip.get_image_features(part).pooler_output for part in prepared])


def spread(scores: Tensor, valid: Tensor) -> Tensor:
    """(R,) scores of existing candidates -> (B, N), 0 at padding."""
    return torch.zeros(valid.shape, dtype=scores.dtype, device=scores.device).masked_scatter(valid, scores)


def blind_scores(backbone: Backbone, batch: Candidates) -> Tensor:
    """User-blind scores exp(logit_scale) * cosine, (R,) (Eq. 6)."""
    text = backbone.clip.get_text_features(**batch.tokens).pooler_output
    image = backbone.clip.get_image_features(batch.image).pooler_output
    return backbone.clip.logit_scale.exp() * cosine_similarity(text[batch.group], image)


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
    images: Tensor | None = None,
    batch_groups: int = 128,
) -> Measure:
    """Score at most `most` groups of `table` that were picked from, evenly spread over it.

    Args:
        images: see `gather`.

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
            table, part, [table.prompts[row] for row in part.tolist()], table.features(part), backbone, images
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
