"""What the stages before encode and evaluate-generator leave, with untrained twins: cost does not hang on weights."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.pandas_reference import split_records
from perfusion.config import ClipConfig, DiffusionConfig, RewardConfig
from perfusion.data import load_tables, read_dataset, write_table
from perfusion.generation import DiffusionBackbone, PatchCodec, PerFusionPipeline, PersonalAdaptiveNetwork
from perfusion.generation.backbone import build_scheduler, build_unet
from perfusion.generation.pretrain import save_backbone
from perfusion.generation.text import build_text_encoder, build_tokenizer
from perfusion.reward import PerFusionRM, twin
from perfusion.world import write_marketplace

__all__ = ["SIDE", "SMALL_CLIP", "SMALL_DIFFUSION", "make_stages"]

SIDE = 48  # pixels, as params.yaml
_BASE = DiffusionConfig()
SMALL_CLIP = ClipConfig(width=16, layers=1, heads=2, patch=16, projection=8)
SMALL_DIFFUSION = _BASE.model_copy(
    update={
        "codec": _BASE.codec.model_copy(update={"latent_channels": 4, "width": 8, "layers": 1}),
        "text": _BASE.text.model_copy(update={"width": 8, "layers": 1, "heads": 2, "length": 8}),
        "unet": _BASE.unet.model_copy(update={"channels": (8, 16), "heads": 2, "groups": 4}),
    }
)


def make_stages(
    root: Path, users: int = 16, clip: ClipConfig = SMALL_CLIP, diffusion: DiffusionConfig = SMALL_DIFFUSION,
    steps: int = 3,
) -> Path:  # fmt: skip
    """A sample marketplace in `data`, its split, and untrained twins of every model, saved as the stages save them.

    Args:
        users: of the marketplace.
        clip, diffusion: shapes of the twins; the default is the smallest, for tests.
        steps: in which the generator draws.

    Returns:
        `root`, with `data`, `split`, `clip`, `reward`, `diffusion`, `sft`, `dpo` and `generator`.
    """
    write_marketplace(root / "data", users=users, seed=0)
    dataset = read_dataset(root / "data")
    write_table(root / "split" / "users.parquet", dataset.users)
    write_table(root / "split" / "groups.parquet", split_records(dataset.groups, (6, 1, 3), cold_users=0.0))
    table = load_tables(root / "data", root / "split", SIDE, splits=("train",))["train"]
    torch.manual_seed(0)
    backbone = twin(table.prompts, SIDE, clip)
    backbone.save(root / "clip")
    config = RewardConfig(embedding_dim=4)
    reward = PerFusionRM.from_backbone(backbone, table.encoder.cardinalities, config, table.encoder)
    reward.save_pretrained(root / "reward")
    tokenizer = build_tokenizer(table.prompts, diffusion.text.length)
    codec = diffusion.codec
    parts = {
        "vae": PatchCodec(codec.patch, codec.latent_channels, codec.width, codec.layers),
        "text_encoder": build_text_encoder(tokenizer, diffusion.text),
        "tokenizer": tokenizer,
        "unet": build_unet(diffusion, SIDE),
        "scheduler": build_scheduler(diffusion),
    }
    save_backbone(DiffusionBackbone(**parts), diffusion, root / "diffusion")
    for arm in ("sft", "dpo"):
        build_unet(diffusion, SIDE).save_pretrained(root / arm)
    pan = PersonalAdaptiveNetwork.from_unet(parts["unet"], table.encoder.cardinalities)
    with torch.no_grad():
        for parameter in pan.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    sampling = {"num_inference_steps": steps, "guidance_scale": 2.0, "user_scale": 2.0, "eta": 0.5}
    PerFusionPipeline(**parts, pan=pan, features=table.encoder, **sampling).save_pretrained(root / "generator")
    return root
