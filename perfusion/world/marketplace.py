"""The sample marketplace as a dataset, and the truth behind it, recomputed from world.json and never stored."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from perfusion.data.hashing import content_hash
from perfusion.data.layout import write_dataset
from perfusion.data.pictures import encode_png
from perfusion.errors import DataError
from perfusion.progress import Progress
from perfusion.world.dirt import plant
from perfusion.world.garments import render
from perfusion.world.judge import Reading, read
from perfusion.world.merchants import Merchants, user_name
from perfusion.world.picking import Records, Utility, log_records, stated_codes, utility

__all__ = ["VERSION", "Truth", "load_truth", "write_marketplace"]

VERSION = 1  # of everything that decides the content: raise it when a constant or a drawing changes


@dataclass(frozen=True)
class Truth:
    """What only the world knows: merchants' tastes and the garments in the pictures.

    Attributes:
        users: number of merchants.
        seed: of the world.
        personal: False in the control world, where personal taste weighs nothing.
    """

    users: int
    seed: int
    personal: bool

    @cached_property
    def merchants(self) -> Merchants:
        return Merchants.draw(self.users, self.seed)

    @cached_property
    def records(self) -> Records:
        """The records as logged, before any dirt."""
        return log_records(self.merchants, self.seed, self.personal)

    @cached_property
    def _row(self) -> dict[str, int]:
        return {image_id: row for row, image_id in enumerate(self.records.image_ids)}

    @cached_property
    def _number(self) -> dict[str, int]:
        return {user_name(number): number for number in range(self.users)}

    def codes(self, image_ids: Sequence[str]) -> NDArray[np.int64]:
        """The garments that stored pictures show, (n, 8).

        Raises:
            DataError: a picture is not of this world.
        """
        try:
            return self.records.codes[[self._row[image_id] for image_id in image_ids]]
        except KeyError as error:
            raise DataError(f"image {error}: not one of this world's {len(self._row)} pictures") from None

    def utility(self, user_ids: Sequence[str], prompts: Sequence[str], codes: NDArray[np.int64]) -> Utility:
        """What garments (n, 8) are worth to users (n) who asked with prompts (n): parts and total, without noise.

        Raises:
            DataError: a user or a phrase is not of this world.
        """
        stated = {prompt: stated_codes(prompt) for prompt in set(prompts)}
        asked = np.array([stated[prompt] for prompt in prompts]).reshape(-1, 8)
        return utility(self.merchants, self.seed, self.personal, self.numbers(user_ids), asked, np.asarray(codes))

    def numbers(self, user_ids: Sequence[str]) -> NDArray[np.int64]:
        """Merchants' numbers, (n,)."""
        strangers = [user for user in user_ids if user not in self._number]
        if strangers:
            raise DataError(f"user {strangers[0]!r}: not one of this world's {self.users} merchants")
        return np.array([self._number[user] for user in user_ids], np.int64)

    @staticmethod
    def read(pixels: Tensor) -> Reading:
        """Which garments pictures show, (n, 3, S, S) uint8, and how cleanly; see `perfusion.world.judge`."""
        return read(pixels)


def write_marketplace(
    out: Path | str, users: int = 600, seed: int = 0, dirt: bool = False, personal: bool = True, replace: bool = False
) -> str:
    """Write the sample marketplace as a dataset and return its content hash; the same arguments give the same hash.

    Args:
        out: folder to create.
        users: number of merchants, about 20 groups each.
        seed: another seed is another marketplace.
        dirt: plant one of every defect that validation must find; the list goes to dirt.json.
        personal: False is the control in which personal taste weighs nothing.
        replace: put it in the place of an older dataset.

    Raises:
        DataError: no merchants were asked for, or see `write_dataset`.
    """
    if users < 1:
        raise DataError(f"users = {users}: a marketplace needs at least one merchant")
    truth = Truth(users, seed, personal)
    table, groups = truth.merchants.table(), truth.records.groups
    images: Iterator[tuple[str, bytes]] = _pictures(truth.records)
    world = {"world": "flat-lay", "version": VERSION, "users": users, "seed": seed, "personal": personal}
    beside = {"world.json": json.dumps(world).encode()}
    if dirt:
        table, groups, images, planted = plant(table, groups, images, seed)
        beside["dirt.json"] = json.dumps(planted, indent=1).encode()
    write_dataset(out, table, groups, images, beside=beside, replace=replace)
    return content_hash(out)


def load_truth(data_dir: Path | str) -> Truth | None:
    """The truth behind a dataset; None when it is not a sample (no world.json).

    Raises:
        DataError: world.json is damaged, or another version of the world wrote it.
    """
    path = Path(data_dir) / "world.json"
    if not path.exists():
        return None
    try:
        world = json.loads(path.read_text())
        truth = Truth(int(world["users"]), int(world["seed"]), bool(world["personal"]))
        name, version = world["world"], world["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a description of a sample world ({error!r}); write the sample again") from None
    if (name, version) != ("flat-lay", VERSION):
        raise DataError(
            f"{path}: world {name!r} version {version}, this is 'flat-lay' version {VERSION}; write it again"
        )
    return truth


def _pictures(records: Records) -> Iterator[tuple[str, bytes]]:
    progress = Progress("pictures", len(records.image_ids))
    for start in range(0, len(records.image_ids), 1024):
        rows = slice(start, start + 1024)
        for image_id, pixels in zip(records.image_ids[rows], render(records.codes[rows]), strict=True):
            yield image_id, encode_png(pixels)
        progress.show(min(start + 1024, len(records.image_ids)), {})
