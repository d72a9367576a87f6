"""Scoring a whole table of groups: what one picture or prompt needs once is computed once, wherever it occurs.

Shapes: B rows asked for, N candidates of a group, F user features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from perfusion.data import GroupTable
from perfusion.reward.batches import NOTHING, gather, spread
from perfusion.scorers.cosine import CosineScore
from perfusion.scorers.embedding import embed_pictures, embed_prompts
from perfusion.scorers.perfusion_rm import PersonalScore
from perfusion.scorers.protocol import Scorer

__all__ = ["RowScorer", "row_scorer"]

#: rows (B,) of a table, features (B, F) of the users who ask or None -> (B, N) float32 scores, 0 at padding.
RowScorer = Callable[[Tensor, Tensor | None], Tensor]


def row_scorer(scorer: Scorer, table: GroupTable, passes: int = 1) -> RowScorer:
    """`scorer` on rows of `table`; its numbers are those of `scorer.score` up to rounding, whatever is kept.

    Args:
        scorer: user-blind cosines keep the embeddings of pictures and prompts; PerFusionRM what its frozen towers
            compute before users are heard; any other scorer nothing.
        table: the groups.
        passes: how often each row will be asked for; what is used once is not kept.
    """
    if isinstance(scorer, CosineScore):
        return _blind(scorer, table)
    if isinstance(scorer, PersonalScore):
        return _personal(scorer, table, passes)
    return _plain(scorer, table)


def _plain(scorer: Scorer, table: GroupTable) -> RowScorer:
    def score(rows: Tensor, users: Tensor | None) -> Tensor:
        return scorer.score(_prompts(table, rows), table.candidates(rows), users, table.valid[rows])

    return score


def _blind(scorer: CosineScore, table: GroupTable) -> RowScorer:
    """Embeddings are computed when first asked for; they take a fraction of the memory of the pictures."""
    pictures = torch.empty(len(table.pixels), scorer.backbone.width)
    seen = torch.zeros(len(table.pixels), dtype=torch.bool)
    known: dict[str, Tensor] = {}

    def score(rows: Tensor, users: Tensor | None) -> Tensor:
        valid, prompts = table.valid[rows], _prompts(table, rows)
        shown = table.image_index[rows][valid]
        new = shown[~seen[shown]].unique()
        if len(new):
            pictures[new] = embed_pictures(scorer.backbone, table.pixels[new])
            seen[new] = True
        known.update(embed_prompts(scorer.backbone, [prompt for prompt in prompts if prompt not in known]))
        text = torch.stack([known[prompt] for prompt in prompts])[valid.nonzero()[:, 0]]
        cosine = (functional.normalize(text, dim=-1) * functional.normalize(pictures[shown], dim=-1)).sum(-1)
        return spread(scorer.factor * cosine, valid)

    return score


def _personal(scorer: PersonalScore, table: GroupTable, passes: int) -> RowScorer:
    model = scorer.model.eval()
    frozen = NOTHING
    if passes * int(table.valid.sum()) > len(table.image_index[table.valid].unique()):
        table = _own_pictures(table)
        frozen = model.freeze(table.pixels, table.prompts)

    @torch.no_grad()
    def score(rows: Tensor, users: Tensor | None) -> Tensor:
        if users is None:
            return scorer.score(_prompts(table, rows), table.candidates(rows), None, table.valid[rows])
        batch = gather(table, rows, _prompts(table, rows), users, model.blind, frozen)
        return spread(model.score_candidates(batch), batch.valid).float().cpu()

    return score


def _own_pictures(table: GroupTable) -> GroupTable:
    """The table with the pictures of its own groups alone; several tables share one tensor of pictures."""
    shown, place = table.image_index[table.valid].unique(return_inverse=True)
    index = torch.zeros_like(table.image_index).masked_scatter(table.valid, place)
    return replace(
        table, pixels=table.pixels[shown], image_index=index, image_ids=[table.image_ids[row] for row in shown.tolist()]
    )


def _prompts(table: GroupTable, rows: Tensor) -> list[str]:
    return [table.prompts[row] for row in rows.tolist()]
