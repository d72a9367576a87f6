"""Work that comes in shards: a pure function of each, results in the order of the shards, wherever they are computed.

The library computes them here, one after the other (`in_turn`), or with whatever it is handed instead: something that
maps the function over the shards and gives results in their order. What a shard is depends on the work alone, never on
how many workers there are, so that results are the same bytes with any number of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol, TypeVar

__all__ = ["FanOut", "in_turn", "stamp"]

T = TypeVar("T")
R = TypeVar("R")


class FanOut(Protocol):
    """Applies a function to every shard; function, shards and results can be pickled."""

    def __call__(self, function: Callable[[T], R], shards: Iterable[T], /) -> Iterator[R]:
        """Results in the order of the shards."""
        ...


def in_turn(function: Callable[[T], R], shards: Iterable[T], /) -> Iterator[R]:
    """Compute here, each when its result is asked for."""
    return map(function, shards)


def stamp(*folders: Path) -> tuple[tuple[str, int, int], ...]:
    """What tells the files of some folders from later ones of the same names: name, size and time of change of each.

    A worker that keeps a model for the next shard keeps it under this, so that one that lives longer than a retraining
    does not draw with the model of the one before.
    """
    files = sorted(file for folder in folders for file in folder.rglob("*") if file.is_file())
    return tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)
