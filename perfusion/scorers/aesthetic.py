"""Aesthetics: a linear head on CLIP's picture embedding; blind to prompt and user."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from perfusion.errors import WeightsError
from perfusion.model_folder import UNREADABLE, first_line
from perfusion.reward import TwoTowers
from perfusion.reward.batches import spread
from perfusion.scorers.embedding import picture_embeddings, rows_of
from perfusion.scorers.protocol import check_batch, reported_name

__all__ = ["AestheticHead", "AestheticScore", "fit_head", "load_head"]


class AestheticHead(nn.Module):
    """LAION's improved aesthetic predictor: Linear D-1024-128-64-16-1 without activations, dropout between.

    Args:
        width: D of the embedding it reads, 768 for CLIP ViT-L/14.
    """

    def __init__(self, width: int = 768) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, 1024), nn.Dropout(0.2), nn.Linear(1024, 128), nn.Dropout(0.2), nn.Linear(128, 64),
            nn.Dropout(0.1), nn.Linear(64, 16), nn.Linear(16, 1),
        )  # fmt: skip

    def forward(self, embedding: Tensor) -> Tensor:
        """(n, D) of length 1 -> (n,), about 1 (worst) to 10 (best)."""
        return self.layers(embedding).squeeze(-1)


@dataclass(frozen=True)
class AestheticScore:
    """The head's output for a picture, about 1 to 10.

    Attributes:
        backbone: CLIP ViT-L/14 (openai/clip-vit-large-patch14, QuickGELU), or the tiny twin.
        head: in evaluation mode, of the backbone's width.
        twin: whether backbone and head are tiny twins.
    """

    backbone: TwoTowers
    head: AestheticHead
    twin: bool
    encoder: ClassVar[None] = None

    @property
    def name(self) -> str:
        return reported_name("aesthetic", self.twin)

    @torch.no_grad()
    def score(
        self, prompts: list[str], pixels: Tensor, users: Tensor | None = None, valid: Tensor | None = None
    ) -> Tensor:
        """See `perfusion.scorers.Scorer`; prompts and users are ignored."""
        check_batch(prompts, pixels, users, valid)
        pictures, _, valid = rows_of(pixels, valid)
        return spread(self.head(picture_embeddings(self.backbone, pictures)), valid)


def load_head(path: Path | str) -> AestheticHead:
    """Read a head's state dict, e.g. sac+logos+ava1-l14-linearMSE.pth, without unpickling anything but tensors.

    Raises:
        WeightsError: absent, not a state dict of this head, or refused by the safe reader; names the remedy.
    """
    path = Path(path)
    remedy = (
        "fetch sac+logos+ava1-l14-linearMSE.pth of LAION's improved aesthetic predictor, or unset evaluate.aesthetic"
    )
    if not path.is_file():
        raise WeightsError(f"{path}: no aesthetic head there; {remedy}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        head = AestheticHead(state["layers.0.weight"].shape[1])
        head.load_state_dict(state)
    except UNREADABLE as error:
        raise WeightsError(f"{path}: not the weights of an aesthetic head ({first_line(error)}); {remedy}") from error
    return head.eval()


def fit_head(embeddings: Tensor, ratings: Tensor, ridge: float = 1e-3) -> AestheticHead:
    """The twin's head: the ridge regression of ratings on embeddings, written into the layers of the real head.

    A chain of linear layers is one linear map; it is carried through the first unit of every layer, exactly.

    Args:
        embeddings: (n, D) of length 1.
        ratings: (n,) about 1 to 10; here 1 + 9 x the share of merchants who picked the picture when shown it.
        ridge: penalty on the squared weights, relative to n.

    Raises:
        ValueError: the lengths differ, or there is nothing to fit.
    """
    if len(embeddings) != len(ratings) or not len(ratings):
        raise ValueError(f"{len(embeddings)} embeddings for {len(ratings)} ratings; need one each and at least one")
    x, y = embeddings.double(), ratings.double()
    centre, level = x.mean(0), y.mean()
    x = x - centre
    gram = x.T @ x / len(x) + ridge * torch.eye(x.shape[1], dtype=torch.float64)
    weight = torch.linalg.solve(gram, x.T @ (y - level) / len(x))
    head = AestheticHead(embeddings.shape[1]).eval()
    chain = [layer for layer in head.layers if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        for layer in chain:
            layer.weight.zero_()
            layer.bias.zero_()
            layer.weight[0, 0] = 1.0
        chain[0].weight[0] = weight.float()
        chain[0].bias[0] = (level - centre @ weight).float()
    return head
