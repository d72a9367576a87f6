"""The same bits again: randomness as a function of names, whatever ran before it, and sums in one order.

No generator is carried from step to step, so that a resumed run needs no random state to continue bit for bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["derive_seed", "generator_for", "repeatable", "seed_step"]


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


@contextmanager
def repeatable() -> Iterator[None]:
    """Inside, everything on a CPU is summed in one order, however its threads are scheduled.

    Otherwise torch adds up the gradient of `x[rows]`, where a row is taken more than once, as its threads come, and two
    trainings part in their last bits. For CPUs: on CUDA it would refuse operations that have no such order.
    """
    import torch

    utils, before = torch.utils.deterministic, torch.are_deterministic_algorithms_enabled()
    filled = utils.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)
    utils.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs time and says nothing about sums
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        utils.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
