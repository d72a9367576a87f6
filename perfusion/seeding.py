"""Randomness as a function of names: the same (seed, path) gives the same stream, whatever ran before it.

No generator is carried from step to step, so that a resumed run needs no random state to continue bit for bit.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["derive_seed", "generator_for", "seed_step"]


def derive_seed(seed: int, *path: object) -> int:
    """A 63-bit seed from a root seed and a path of names and numbers, e.g. `derive_seed(0, "reward", step)`."""
    text = "/".join([str(seed), *map(str, path)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator_for(seed: int, *path: object, device: str | torch.device = "cpu") -> torch.Generator:
    """A fresh torch generator for the stream named by `path`."""
    import torch  # here, so that gates and registry, which only derive seeds, do not wait for it

    return torch.Generator(device=device).manual_seed(derive_seed(seed, *path))


def seed_step(seed: int, *path: object) -> None:
    """Seed torch's global generator (dropout and the like) for one training step."""
    import torch

    torch.manual_seed(derive_seed(seed, *path))
