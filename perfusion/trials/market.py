"""The planted marketplace as arrays: tastes, held-out groups with their picks, and who is known.

What `perfusion.world` draws is taken from it: merchants, features, tastes, prompts, candidates and picks; the split is
that of the split stage. The merchants are the population: a trial draws merchants from it with replacement, so that
whatever holds on the mean of the population holds in truth.

Shapes: U merchants, V values of the free attributes (20), G groups, N candidates, n pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from perfusion.config import DataConfig
from perfusion.data.splitting import cold_users, split_records
from perfusion.evaluation.items import with_slices
from perfusion.world.garments import CODES, FAMILIES, FREE
from perfusion.world.marketplace import Truth
from perfusion.world.merchants import population_taste, user_name
from perfusion.world.picking import WEIGHTS, stated_codes, violations

__all__ = ["VALUES", "Groups", "Market", "lookup", "prompt_fit"]

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]
Numbers = NDArray[np.int64]

_PLACES = [list(FAMILIES).index(family) for family in FREE]
_OFFSETS = np.cumsum([0, *(len(FAMILIES[family]) for family in FREE)])
#: Columns of each free attribute in a table of tastes (U, V).
VALUES = tuple(slice(int(a), int(b)) for a, b in pairwise(_OFFSETS))


def lookup(table: Floats, users: Numbers, codes: Codes) -> Floats:
    """What a table of tastes (U, V) says of garments (n, 8) to merchants (n,): the sum over free attributes, (n,)."""
    return table[users[:, None], codes[:, _PLACES] + _OFFSETS[:-1]].sum(1)


def prompt_fit(stated: Codes, codes: Codes) -> Floats:
    """Minus the penalty for stated attributes (n, 8) that garments (n, 8) lack, (n,)."""
    return -WEIGHTS["prompt"] * violations(stated, codes)


@dataclass(frozen=True)
class Groups:
    """Held-out groups that hold a comparison.

    Attributes:
        split: (G,) "test", "cold" or "few".
        user: (G,) merchants' numbers.
        prompt: (G,) text.
        stated: (G, 8) what it states, -1 where nothing.
        codes: (G, N, 8) candidates; garment 0 at padding.
        valid, picked: (G, N).
    """

    split: NDArray[np.str_]
    user: Numbers
    prompt: NDArray[np.str_]
    stated: Codes
    codes: Codes
    valid: NDArray[np.bool_]
    picked: NDArray[np.bool_]

    def scores(self, table: Floats) -> Floats:
        """True fit to the prompt plus what a table of tastes (U, V) says, (G, N)."""
        size = self.valid.shape[1]
        users, stated, codes = self.user.repeat(size), self.stated.repeat(size, axis=0), self.codes.reshape(-1, 8)
        return (prompt_fit(stated, codes) + lookup(table, users, codes)).reshape(self.valid.shape)


@dataclass(frozen=True)
class Market:
    """The population of a trial.

    Attributes:
        everybody: (V,) taste that all share.
        by_feature: (U, V) personal taste that features explain.
        own: (U, V) personal taste that is the merchant's own.
        features: name -> (U,) codes.
        slices: (U,) rows of `slice_*` columns.
        groups: held-out groups.
        known: merchants with test groups.
        strangers: merchants nothing was learnt of, with groups.
    """

    everybody: Floats
    by_feature: Floats
    own: Floats
    features: dict[str, Numbers]
    slices: pd.DataFrame
    groups: Groups
    known: Numbers
    strangers: Numbers

    @property
    def taste(self) -> Floats:
        """True taste for every value, (U, V): what everybody likes, and what is personal."""
        return self.everybody + self.by_feature + self.own

    @classmethod
    def draw(cls, users: int = 600, seed: int = 0, config: DataConfig | None = None) -> Market:
        """The sample marketplace of so many merchants.

        Args:
            users: merchants, about 20 groups each, of which a tenth are test groups.
            seed: of the world and of the split.
            config: filter and split, which is by record; None takes the defaults.
        """
        truth = Truth(users, seed, personal=True)
        merchants = truth.merchants
        taste = population_taste(seed)
        split = _split(truth.records.groups, config or DataConfig(), seed)
        groups = _groups(truth, split)
        names = pd.DataFrame({"user_id": [user_name(number) for number in range(users)]})
        held_out = groups.user[groups.split == "test"]
        return cls(
            everybody=WEIGHTS["everybody"] * np.concatenate([taste[family] for family in FREE]),
            by_feature=WEIGHTS["personal"] * np.concatenate([merchants.by_feature[family] for family in FREE], axis=1),
            own=WEIGHTS["personal"] * np.concatenate([merchants.own[family] for family in FREE], axis=1),
            features=merchants.features,
            slices=with_slices(names, merchants.table()).filter(like="slice_"),
            groups=groups,
            known=np.unique(held_out),
            strangers=np.unique(groups.user[groups.split != "test"]),
        )

    def groups_of(self, users: Numbers, split: str = "") -> tuple[Numbers, Numbers]:
        """Rows of the held-out groups of merchants (n,), and for each row its merchant's place among the n.

        Args:
            users: merchants' numbers; one who stands twice has the groups twice.
            split: only of this split.
        """
        wanted = np.flatnonzero(self.groups.split == split) if split else np.arange(len(self.groups.user))
        order = wanted[np.argsort(self.groups.user[wanted], kind="stable")]
        sorted_users = self.groups.user[order]
        first, last = (np.searchsorted(sorted_users, users, side) for side in ("left", "right"))
        counts = last - first
        place = np.arange(len(users)).repeat(counts)
        within = np.arange(counts.sum()) - (np.cumsum(counts) - counts).repeat(counts)
        return order[first.repeat(counts) + within], place


def _split(groups: pd.DataFrame, config: DataConfig, seed: int) -> pd.Series:
    """The split of every group that holds a comparison, as the split stage makes it; others are left out."""
    picks = groups["picked"].map(sum)
    usable = groups[(picks > 0) & (picks < groups["picked"].map(len))]
    counts = usable["user_id"].value_counts()
    salt = f"perfusion/{seed}"
    kept = sorted(counts.index[counts >= config.min_records])
    cold = cold_users(kept, config.cold_users, salt)
    dealt = np.array(["train", "valid", "test"])[split_records(usable["record_id"].tolist(), config.ratios, salt)]
    split = pd.Series(dealt, index=usable.index)
    split[usable["user_id"].isin(cold)] = "cold"
    split[~usable["user_id"].isin(kept)] = "few"
    return split[split.isin(("test", "cold", "few"))]


def _groups(truth: Truth, split: pd.Series) -> Groups:
    rows = truth.records.groups.loc[split.index]
    sizes = rows["picked"].map(len).to_numpy()
    valid = np.arange(sizes.max()) < sizes[:, None]
    codes = np.zeros((*valid.shape, len(CODES)), np.int64)
    codes[valid] = truth.codes([image for images in rows["image_ids"] for image in images])
    picked = np.zeros(valid.shape, bool)
    picked[valid] = [pick for picks in rows["picked"] for pick in picks]
    return Groups(
        split=split.to_numpy(dtype=str), user=truth.numbers(rows["user_id"].tolist()),
        prompt=rows["prompt"].to_numpy(dtype=str), stated=np.stack([stated_codes(text) for text in rows["prompt"]]),
        codes=codes, valid=valid, picked=picked,
    )  # fmt: skip
