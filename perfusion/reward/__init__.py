"""PerFusionRM and the user-blind baseline: which candidate will this merchant pick (Eq. 2-9)."""

from perfusion import torchvision_guard

torchvision_guard.install()

from perfusion.reward.backbones import Backbone, TwoTowers  # noqa: E402
from perfusion.reward.losses import (  # noqa: E402
    cosine_similarity,
    group_loss,
    group_loss_minimum,
    ideal_shares,
    pickscore_loss,
    predicted_shares,
)
from perfusion.reward.model import PerFusionRM, PerFusionRMConfig  # noqa: E402
from perfusion.reward.pretrain import pretrain_clip  # noqa: E402
from perfusion.reward.pretrain_matching import pretrain_siglip, pretrain_twin, pretrain_vilt  # noqa: E402
from perfusion.reward.train import train_pickscore, train_reward  # noqa: E402
from perfusion.reward.weights import load_backbone, load_clip, load_towers, twin, weights_hash  # noqa: E402

__all__ = [
    "Backbone",
    "PerFusionRM",
    "PerFusionRMConfig",
    "TwoTowers",
    "cosine_similarity",
    "group_loss",
    "group_loss_minimum",
    "ideal_shares",
    "load_backbone",
    "load_clip",
    "load_towers",
    "pickscore_loss",
    "predicted_shares",
    "pretrain_clip",
    "pretrain_siglip",
    "pretrain_twin",
    "pretrain_vilt",
    "train_pickscore",
    "train_reward",
    "twin",
    "weights_hash",
]
