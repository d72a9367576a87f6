"""What never changes during preference training, computed once: latents of all pictures, conditions of all prompts.

Legend: M pictures, V views of a picture (as it is, mirrored), P distinct prompts, O orders of a prompt's phrases,
T tokens, D width, (C, H, W) a latent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from perfusion.checkpoint import atomic_write
from perfusion.compute import pick_device
from perfusion.config import PLAIN, ComputeConfig, EncodeConfig
from perfusion.data import GroupTable, shuffle_phrases
from perfusion.errors import DataError
from perfusion.fanout import FanOut, in_turn, stamp
from perfusion.generation.backbone import DiffusionBackbone, load_backbone
from perfusion.generation.codec import to_unit
from perfusion.generation.text import embed_prompts
from perfusion.seeding import generator_for

__all__ = ["EncodedData", "encode", "open_encoded"]

_PROMPTS = 256  # encoded at a time
_SHARD = 4  # batches of pictures
_NEGLIGIBLE = 1e-5  # a codec whose posterior is narrower has no spread worth keeping


@dataclass(frozen=True)
class EncodedData:
    """Memory-mapped latents and conditions.

    Attributes:
        mean: (M, V, C, H, W), in the denoiser's units.
        std: the same shape, the codec's posterior spread; None where the codec is deterministic.
        contexts: (P, O, T, D).
        prompts: prompt -> its row of `contexts`.
    """

    mean: np.ndarray
    std: np.ndarray | None
    contexts: np.ndarray
    prompts: Mapping[str, int]

    def draw_views(self, count: int) -> Tensor:
        """Which view of a picture to take (count,), uniformly with torch's global generator where there are several."""
        views = self.mean.shape[1]
        return torch.randint(views, (count,)) if views > 1 else torch.zeros(count, dtype=torch.long)

    def latents(self, rows: Tensor, views: Tensor) -> Tensor:
        """float32 latents of pictures `rows` (n,) in `views` (n,), drawn from the codec's posterior."""
        at = rows.numpy(), views.numpy()
        z = torch.from_numpy(self.mean[at]).float()
        if self.std is not None:
            z = z + torch.from_numpy(self.std[at]).float() * torch.randn_like(z)
        return z

    def conditions(self, prompts: Sequence[str]) -> Tensor:
        """float32 conditions (n, T, D) of prompts, each in one of its encoded orders at random.

        Raises:
            DataError: a prompt was not encoded.
        """
        absent = [prompt for prompt in prompts if prompt not in self.prompts]
        if absent:
            raise DataError(f"prompt {absent[0]!r} was not encoded: run the encode stage on these groups again")
        rows = np.array([self.prompts[prompt] for prompt in prompts])
        orders = torch.randint(self.contexts.shape[1], (len(rows),)).numpy()
        return torch.from_numpy(self.contexts[rows, orders]).float()


def encode(
    tables: Mapping[str, GroupTable], diffusion_dir: Path, config: EncodeConfig, out: Path, seed: int = 0,
    compute: ComputeConfig = PLAIN, fan_out: FanOut = in_turn,
) -> dict[str, float]:  # fmt: skip
    """Encode every picture and prompt of the tables with a frozen backbone.

    Args:
        tables: splits loaded together (they share their pictures).
        diffusion_dir: the backbone.
        out: folder to write (mean.npy, std.npy where the codec has spread, contexts.npy, index.json).
        seed: of the phrase orders.
        compute: its device; encoding is float32 always.
        fan_out: computes the shards: `_SHARD` batches of pictures, or a batch of prompts.

    Returns:
        Counts and the latents' standard deviation.

    Raises:
        DataError: there are no pictures.
    """
    table = next(iter(tables.values()))
    if not len(table.pixels):
        raise DataError("no pictures to encode: the split holds no training groups")
    encoder = _Encoder(diffusion_dir, compute.device, config.batch_images, config.flip, stamp(diffusion_dir))
    out.mkdir(parents=True, exist_ok=True)
    spread = _encode_pictures(encoder, table.pixels, config, out, fan_out)
    prompts = sorted({prompt for part in tables.values() for prompt in part.prompts})
    _encode_prompts(encoder, prompts, config, out, seed, fan_out)
    index = {"pictures": len(table.pixels), "names": _digest(table.image_ids), "prompts": prompts}
    atomic_write(out / "index.json", json.dumps(index, ensure_ascii=False).encode())
    return {"pictures": len(table.pixels), "prompts": len(prompts), "latent_std": spread}


@dataclass(frozen=True)
class _Encoder:
    """What a shard needs to know.

    Attributes:
        diffusion_dir: the backbone.
        device: as in `ComputeConfig`.
        batch_images: pictures at a time.
        flip: whether mirrored pictures are encoded too.
        stamp: of the backbone's files.
    """

    diffusion_dir: Path
    device: str
    batch_images: int
    flip: bool
    stamp: tuple[tuple[str, int, int], ...]

    @torch.no_grad()
    def pictures(self, pixels: Tensor) -> tuple[np.ndarray, np.ndarray | None]:
        """Means and spreads (n, V, C, H, W), in the denoiser's units, of pictures (n, 3, S, S) uint8; None for none."""
        vae = _loaded(self).vae
        scale = vae.config.scaling_factor
        means, spreads = [], []
        for part in pixels.split(self.batch_images):
            batch = to_unit(part.to(vae.device))
            views = [batch, batch.flip(-1)] if self.flip else [batch]
            posteriors = [vae.encode(view).latent_dist for view in views]
            means.append(torch.stack([posterior.mean * scale for posterior in posteriors], 1).cpu())
            spreads.append(torch.stack([posterior.std * scale for posterior in posteriors], 1).cpu())
        std = torch.cat(spreads)
        return torch.cat(means).numpy(), std.numpy() if float(std.max()) > _NEGLIGIBLE else None

    @torch.no_grad()
    def prompts(self, written: Sequence[str]) -> np.ndarray:
        """Conditions (n, T, D) of prompts as they are written."""
        backbone = _loaded(self)
        return embed_prompts(backbone.tokenizer, backbone.text_encoder, written).cpu().numpy()


@lru_cache(maxsize=1)
def _loaded(encoder: _Encoder) -> DiffusionBackbone:
    """The backbone, read once for all shards of a process."""
    backbone = load_backbone(encoder.diffusion_dir)
    parts: tuple[torch.nn.Module, ...] = (backbone.vae, backbone.text_encoder)
    for part in parts:
        part.to(pick_device(encoder.device))
    return backbone


def _encode_pictures(
    encoder: _Encoder, pixels: Tensor, config: EncodeConfig, out: Path, fan_out: FanOut
) -> float:  # fmt: skip
    """mean.npy, and std.npy where the codec has spread, shard by shard; returns the standard deviation of some means.

    The first shard says whether the codec has spread.
    """
    mean: np.memmap | None = None
    std: np.memmap | None = None
    done = 0
    shards = (part.clone() for part in pixels.split(_SHARD * config.batch_images))  # a view is pickled with all pixels
    for means, spreads in fan_out(encoder.pictures, shards):
        if mean is None:
            shape = (len(pixels), *means.shape[1:])
            mean = _create(out / "mean.npy", shape, config)
            std = _create(out / "std.npy", shape, config) if spreads is not None else None
        rows = slice(done, done + len(means))
        mean[rows] = means
        if std is not None:
            std[rows] = 0.0 if spreads is None else spreads
        done += len(means)
    assert mean is not None
    for array in (mean, std):
        if array is not None:
            array.flush()
    return float(torch.from_numpy(mean[:1024, 0]).float().std())


def _encode_prompts(
    encoder: _Encoder, prompts: Sequence[str], config: EncodeConfig, out: Path, seed: int, fan_out: FanOut
) -> None:  # fmt: skip
    """contexts.npy, batch by batch: every prompt in several orders of its phrases."""
    written = [shuffle_phrases(p, generator_for(seed, "orders", p, i)) for p in prompts for i in range(config.orders)]
    shards = [written[start : start + _PROMPTS] for start in range(0, len(written), _PROMPTS)]
    contexts: np.memmap | None = None
    done = 0
    for part in fan_out(encoder.prompts, shards):
        if contexts is None:
            contexts = _create(out / "contexts.npy", (len(prompts), config.orders, *part.shape[1:]), config)
        contexts.reshape(-1, *part.shape[1:])[done : done + len(part)] = part
        done += len(part)
    assert contexts is not None
    contexts.flush()


def _create(file: Path, shape: tuple[int, ...], config: EncodeConfig) -> np.memmap:
    return np.lib.format.open_memmap(file, mode="w+", dtype=config.dtype, shape=shape)


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
