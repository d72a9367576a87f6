"""What never changes during preference training, computed once: latents of all pictures, conditions of all prompts.

Legend: M pictures, P distinct prompts, O orders of a prompt's phrases, T tokens, D width, (C, H, W) a latent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from perfusion.checkpoint import atomic_write
from perfusion.config import EncodeConfig
from perfusion.data import GroupTable, shuffle_phrases
from perfusion.errors import DataError
from perfusion.generation.backbone import load_backbone
from perfusion.generation.codec import to_unit
from perfusion.generation.text import embed_prompts
from perfusion.seeding import generator_for

__all__ = ["EncodedData", "encode", "open_encoded"]

_NEGLIGIBLE = 1e-5  # a codec whose posterior is narrower has no spread worth keeping


@dataclass(frozen=True)
class EncodedData:
    """Memory-mapped latents and conditions.

    Attributes:
        mean: (M, C, H, W) float32, in the denoiser's units.
        std: the same shape, the codec's posterior spread; None where the codec is deterministic.
        contexts: (P, O, T, D) float32.
        prompts: prompt -> its row of `contexts`.
    """

    mean: np.ndarray
    std: np.ndarray | None
    contexts: np.ndarray
    prompts: Mapping[str, int]

    def latents(self, rows: Tensor) -> Tensor:
        """Latents of pictures `rows` (n,), drawn from the codec's posterior with torch's global generator."""
        z = torch.from_numpy(self.mean[rows.numpy()])
        if self.std is not None:
            z = z + torch.from_numpy(self.std[rows.numpy()]) * torch.randn_like(z)
        return z

    def conditions(self, prompts: Sequence[str]) -> Tensor:
        """Conditions (n, T, D) of prompts, each in one of its encoded orders at random.

        Raises:
            DataError: a prompt was not encoded.
        """
        absent = [prompt for prompt in prompts if prompt not in self.prompts]
        if absent:
            raise DataError(f"prompt {absent[0]!r} was not encoded: run the encode stage on these groups again")
        rows = np.array([self.prompts[prompt] for prompt in prompts])
        orders = torch.randint(self.contexts.shape[1], (len(rows),)).numpy()
        return torch.from_numpy(self.contexts[rows, orders])


@torch.no_grad()
def encode(
    tables: Mapping[str, GroupTable], diffusion_dir: Path, config: EncodeConfig, out: Path, seed: int = 0
) -> dict[str, float]:
    """Encode every picture and prompt of the tables with a frozen backbone.

    Args:
        tables: splits loaded together (they share their pictures).
        diffusion_dir: the backbone.
        out: folder to write (mean.npy, std.npy where the codec has spread, contexts.npy, index.json).
        seed: of the phrase orders.

    Returns:
        Counts and the latents' standard deviation.
    """
    backbone = load_backbone(diffusion_dir)
    table = next(iter(tables.values()))
    out.mkdir(parents=True, exist_ok=True)
    scale = backbone.vae.config.scaling_factor
    mean: np.memmap | None = None
    std: np.memmap | None = None
    for start in range(0, len(table.pixels), config.batch_images):
        posterior = backbone.vae.encode(to_unit(table.pixels[start : start + config.batch_images])).latent_dist
        if mean is None:
            shape = (len(table.pixels), *posterior.mean.shape[1:])
            mean = np.lib.format.open_memmap(out / "mean.npy", mode="w+", dtype=np.float32, shape=shape)
            if float(posterior.std.max()) * scale > _NEGLIGIBLE:
                std = np.lib.format.open_memmap(out / "std.npy", mode="w+", dtype=np.float32, shape=shape)
        mean[start : start + len(posterior.mean)] = (posterior.mean * scale).float().numpy()
        if std is not None:
            std[start : start + len(posterior.mean)] = (posterior.std * scale).float().numpy()
    if mean is None:
        raise DataError("no pictures to encode: the split holds no training groups")
    prompts = sorted({prompt for part in tables.values() for prompt in part.prompts})
    written = [shuffle_phrases(p, generator_for(seed, "orders", p, i)) for p in prompts for i in range(config.orders)]
    contexts = embed_prompts(backbone.tokenizer, backbone.text_encoder, written)
    np.save(out / "contexts.npy", contexts.unflatten(0, (len(prompts), config.orders)).float().numpy())
    for array in (mean, std):
        if array is not None:
            array.flush()
    spread = float(torch.from_numpy(mean[:1024]).std())
    index = {"pictures": len(mean), "names": _digest(table.image_ids), "prompts": prompts}
    atomic_write(out / "index.json", json.dumps(index, ensure_ascii=False).encode())
    return {"pictures": len(mean), "prompts": len(prompts), "latent_std": spread}


def open_encoded(folder: Path, table: GroupTable) -> EncodedData:
    """Open what `encode` wrote, for a table of the same pictures.

    Raises:
        DataError: absent, or of other pictures.
    """
    try:
        index = json.loads((folder / "index.json").read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}/index.json: {error}; run the encode stage") from None
    if index["names"] != _digest(table.image_ids):
        raise DataError(f"{folder}: encodes {index['pictures']} other pictures than the table's {len(table.image_ids)}")
    std = folder / "std.npy"
    return EncodedData(
        np.load(folder / "mean.npy", mmap_mode="r"),
        np.load(std, mmap_mode="r") if std.exists() else None,
        np.load(folder / "contexts.npy", mmap_mode="r"),
        {prompt: row for row, prompt in enumerate(index["prompts"])},
    )


def _digest(names: Sequence[str]) -> str:
    return blake2b("\n".join(names).encode(), digest_size=16).hexdigest()
