"""Merchants of the sample marketplace and their planted tastes.

A merchant's taste is a table of scores for each free attribute. It comes from the merchant's features (each feature's
value carries a taste, and style crossed with season carries one that neither has alone), and from a part that belongs
to nobody else. Region, shop age and followers say nothing: a model has to find that out.

Every table comes from a stream named after the seed and its place, and every merchant from one named after the seed and
the merchant's number: a marketplace with more merchants holds the smaller one unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from perfusion.seeding import derive_seed
from perfusion.world.garments import CODES, FAMILIES, FREE

__all__ = ["FEATURES", "Merchants", "Tastes", "population_taste", "user_name"]

Floats = NDArray[np.float64]

FEATURES: dict[str, tuple[str, ...]] = {
    "style": ("minimalist", "romantic", "streetwear", "classic", "bohemian", "sporty"),
    "price_level": ("budget", "mid", "premium"),
    "main_category": ("dresses", "tops", "coats", "jumpsuits", "mixed"),
    "season": ("spring", "summer", "autumn", "winter"),
    "region": ("north", "east", "south", "west", "coast", "inland"),
    "shop_age": ("new", "1-3 years", "3-8 years", "over 8 years"),
}
CROSSED = "style x season"
OWN = "own"
SOURCE_SHARE = {  # share of the variance of personal taste that each source carries; they add up to 1
    "style": 0.36,
    "price_level": 0.18,
    "main_category": 0.14,
    "season": 0.14,
    CROSSED: 0.08,
    OWN: 0.10,
}
FAMILY_SHARE = {"palette": 0.34, "pattern": 0.26, "trim": 0.22, "sleeve shape": 0.18}
_NO_REGION, _NO_FOLLOWERS = 0.03, 0.04  # shares of merchants who left the field empty
_COLUMNS = {name: place for place, name in enumerate(FAMILIES)}


def user_name(number: int) -> str:
    """The user id of merchant `number`."""
    return f"m{number:05d}"


def _stream(seed: int, *path: object) -> np.random.Generator:
    return np.random.default_rng(derive_seed(seed, "world", *path))


def _centred(table: Floats) -> Floats:
    """Scores of an attribute's values by a source's values, without a mean either way, of unit variance."""
    table = table - table.mean(0, keepdims=True)
    table = table - table.mean(1, keepdims=True)
    return table / table.std()


@dataclass(frozen=True)
class Tastes:
    """Personal tastes from features: (source, family) -> (values of the source, values of the family).

    Each table is weighted by its source's and its family's share: with the merchants' own part, the sum over all of
    them has unit variance over merchants and garments drawn uniformly.
    """

    tables: dict[tuple[str, str], Floats]

    @classmethod
    def draw(cls, seed: int) -> Tastes:
        tables = {}
        for source in (*[name for name in FEATURES if name in SOURCE_SHARE], CROSSED):
            rows = len(FEATURES["style"]) * len(FEATURES["season"]) if source == CROSSED else len(FEATURES[source])
            for family, share in FAMILY_SHARE.items():
                table = _stream(seed, "taste", source, family).normal(size=(rows, len(FAMILIES[family])))
                if source == CROSSED:
                    table = _interaction(table)
                tables[source, family] = sqrt(SOURCE_SHARE[source] * share) * _centred(table)
        return cls(tables)


def _interaction(table: Floats) -> Floats:
    """Remove what style alone or season alone explains."""
    cube = table.reshape(len(FEATURES["style"]), len(FEATURES["season"]), -1)
    cube = cube - cube.mean(0, keepdims=True)
    cube = cube - cube.mean(1, keepdims=True)
    return cube.reshape(table.shape)


def population_taste(seed: int) -> dict[str, Floats]:
    """What everybody likes: family -> scores of its values; unit variance over uniform garments."""
    tastes = {}
    for family, share in FAMILY_SHARE.items():
        scores = _stream(seed, "taste", "everybody", family).normal(size=len(FAMILIES[family]))
        scores -= scores.mean()
        tastes[family] = sqrt(share) * scores / scores.std()
    return tastes


@dataclass(frozen=True)
class Merchants:
    """Merchants 0 .. U-1.

    Attributes:
        features: feature -> (U,) codes of `FEATURES`.
        followers: (U,) log10 of the number of followers.
        empty: column -> (U,) bool, fields left empty in users.parquet.
        by_feature: family -> (U, values) taste that features explain.
        own: family -> (U, values) taste that is the merchant's own.
    """

    features: dict[str, NDArray[np.int64]]
    followers: Floats
    empty: dict[str, NDArray[np.bool_]]
    by_feature: dict[str, Floats]
    own: dict[str, Floats]

    @classmethod
    def draw(cls, users: int, seed: int) -> Merchants:
        streams = [_stream(seed, "merchant", number) for number in range(users)]
        codes = np.array([[stream.integers(len(values)) for values in FEATURES.values()] for stream in streams])
        codes = codes.reshape(users, len(FEATURES))
        features = {name: codes[:, place] for place, name in enumerate(FEATURES)}
        followers = np.array([round(float(stream.normal(3.2, 0.8)), 2) for stream in streams])
        gaps = np.array([stream.random(2) for stream in streams]).reshape(users, 2)
        own = {}
        for family, share in FAMILY_SHARE.items():
            scores = np.array([stream.normal(size=len(FAMILIES[family])) for stream in streams])
            scores = scores.reshape(users, -1) - scores.reshape(users, len(FAMILIES[family])).mean(1, keepdims=True)
            count = len(FAMILIES[family])
            own[family] = scores * sqrt(SOURCE_SHARE[OWN] * share * count / (count - 1))
        empty = {"region": gaps[:, 0] < _NO_REGION, "followers_log10": gaps[:, 1] < _NO_FOLLOWERS}
        return cls(features, followers, empty, _explained(features, Tastes.draw(seed)), own)

    def __len__(self) -> int:
        return len(self.followers)

    def table(self) -> pd.DataFrame:
        """users.parquet."""
        columns: dict[str, object] = {"user_id": [user_name(number) for number in range(len(self))]}
        for name, values in FEATURES.items():
            hidden = self.empty.get(name, np.zeros(len(self), bool))
            codes = self.features[name]
            columns[name] = [None if hide else values[code] for code, hide in zip(codes, hidden, strict=True)]
        columns["followers_log10"] = np.where(self.empty["followers_log10"], np.nan, self.followers)
        return pd.DataFrame(columns)

    def taste(self, users: NDArray[np.int64], codes: NDArray[np.int64]) -> tuple[Floats, Floats]:
        """Taste of merchants `users` (n,) for garments `codes` (n, 8): by features, and their own, (n,) each."""
        explained, own = np.zeros(len(users)), np.zeros(len(users))
        for family in FREE:
            values = codes[:, _COLUMNS[family]]
            explained += self.by_feature[family][users, values]
            own += self.own[family][users, values]
        return explained, own


def _explained(features: dict[str, NDArray[np.int64]], tastes: Tastes) -> dict[str, Floats]:
    total = {family: np.zeros((len(features["style"]), CODES[_COLUMNS[family]])) for family in FREE}
    crossed = features["style"] * len(FEATURES["season"]) + features["season"]
    for (source, family), table in tastes.tables.items():
        total[family] += table[crossed if source == CROSSED else features[source]]
    return total
