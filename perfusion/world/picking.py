"""Prompts, candidates and picks: what a platform would have logged."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from perfusion.data.prompts import phrases
from perfusion.errors import DataError
from perfusion.seeding import derive_seed
from perfusion.world.garments import CODES, FAMILIES, STATED
from perfusion.world.merchants import FEATURES, Merchants, population_taste, user_name

__all__ = ["WEIGHTS", "Records", "Utility", "log_records", "stated_codes", "utility", "violations"]

Codes = NDArray[np.int64]
Floats = NDArray[np.float64]

# Calibrated once, on 600 merchants and before any model was trained, so that the references on the test split come out
# like the paper's Table 2 (CLIP-H .635 / .706, PerFusionRM .922 / .956): user-blind oracle .63-.70 MAP, .70-.77 GAUC;
# reachable .91-.93 GAUC; full oracle .95-.96 GAUC. MAP / GAUC of seed 0 (seed 1): user-blind .653 / .735 (.625 / .714),
# reachable .885 / .927 (.882 / .927), full .933 / .961 (.931 / .959). Frozen since.
WEIGHTS = {"prompt": 2.4, "everybody": 0.3, "personal": 1.0, "noise": 0.2}
FOLLOWS = 0.9  # probability that a candidate shows a stated attribute
STATES = 0.6  # probability that the prompt states neckline, sleeve length and fit, each
OWN_CATEGORY = 0.6  # share of a merchant's prompts that are about the main category; the rest is about any
_GROUP_SIZES = {5: 0.85, 3: 0.04, 4: 0.06, 6: 0.05}
_UNPICKED, _ALL_PICKED, _TWO_PICKED = 0.04, 0.005, 0.06
_FEW_RECORDS = 0.1  # share of merchants with 3 to 9 records; the others have 12 to 30
_FIRST_DAY = datetime(2025, 1, 6)
_PHRASES = {
    phrase: (place, code) for place, values in enumerate(FAMILIES.values()) for code, phrase in enumerate(values)
}


@dataclass(frozen=True)
class Records:
    """Group records in the order they were logged, merchant by merchant.

    Attributes:
        groups: groups.parquet.
        image_ids: n picture names, in the order of the groups.
        codes: (n, 8) their garments.
    """

    groups: pd.DataFrame
    image_ids: list[str]
    codes: Codes


@dataclass(frozen=True)
class Utility:
    """What a garment is worth to a merchant, without noise; one unit is the spread of personal taste. All (n,).

    Attributes:
        prompt: minus a penalty for each stated attribute that the garment lacks.
        everybody: taste that all merchants share.
        features: personal taste that the merchant's features explain.
        own: personal taste that is the merchant's own.
    """

    prompt: Floats
    everybody: Floats
    features: Floats
    own: Floats

    @property
    def personal(self) -> Floats:
        return self.features + self.own

    @property
    def total(self) -> Floats:
        return self.prompt + self.everybody + self.features + self.own


def stated_codes(prompt: str) -> Codes:
    """The attributes that a prompt states, (8,); -1 where it says nothing.

    Raises:
        DataError: a phrase is not one of the world's.
    """
    codes = np.full(len(CODES), -1)
    for phrase in phrases(prompt):
        if phrase not in _PHRASES:
            raise DataError(f"prompt {prompt!r}: the sample world knows no {phrase!r}; it knows {', '.join(_PHRASES)}")
        place, code = _PHRASES[phrase]
        codes[place] = code
    return codes


def violations(stated: Codes, codes: Codes) -> Floats:
    """How many stated attributes (n, 8) the garments (n, 8) lack, (n,)."""
    return ((stated >= 0) & (stated != codes)).sum(1).astype(np.float64)


def utility(
    merchants: Merchants, seed: int, personal: bool, users: NDArray[np.int64], stated: Codes, codes: Codes
) -> Utility:
    """The utility of garments `codes` (n, 8) to merchants `users` (n,) who asked for `stated` (n, 8).

    Args:
        merchants: whose taste.
        seed: of the world, for the taste that everybody shares.
        personal: False is the control in which personal taste weighs nothing.
    """
    everybody = population_taste(seed)
    shared = np.zeros(len(codes))
    for place, family in enumerate(FAMILIES):
        if family in everybody:
            shared += everybody[family][codes[:, place]]
    by_feature, own = merchants.taste(users, codes)
    weight = WEIGHTS["personal"] if personal else 0.0
    return Utility(
        -WEIGHTS["prompt"] * violations(stated, codes), WEIGHTS["everybody"] * shared, weight * by_feature, weight * own
    )


def log_records(merchants: Merchants, seed: int, personal: bool) -> Records:
    """Every merchant's group records."""
    logs = [_log(number, merchants, seed) for number in range(len(merchants))]
    asked = [group for log in logs for group in log]
    sizes = [len(group.codes) for group in asked]
    codes = np.concatenate([group.codes for group in asked])
    stated = np.repeat([group.stated for group in asked], sizes, axis=0)
    users = np.repeat([group.user for group in asked], sizes)
    worth = utility(merchants, seed, personal, users, stated, codes).total
    scores = np.split(
        worth + WEIGHTS["noise"] * np.concatenate([group.noise for group in asked]), np.cumsum(sizes)[:-1]
    )
    groups = pd.DataFrame(
        {
            "record_id": [group.record_id for group in asked],
            "user_id": [user_name(group.user) for group in asked],
            "created_at": [group.created_at for group in asked],
            "prompt": [group.prompt for group in asked],
            "image_ids": [group.image_ids() for group in asked],
            "picked": [_picks(group.mood, own) for group, own in zip(asked, scores, strict=True)],
        }
    )
    return Records(groups, [image_id for group in asked for image_id in group.image_ids()], codes)


@dataclass(frozen=True)
class _Asked:
    """One group before anything is picked: `noise` (N,) Gumbel, `mood` in [0, 1) decides how many are picked."""

    user: int
    record_id: str
    created_at: datetime
    stated: Codes
    prompt: str
    codes: Codes
    noise: Floats
    mood: float

    def image_ids(self) -> list[str]:
        return [f"{self.record_id}-{place}" for place in range(len(self.codes))]


def _log(number: int, merchants: Merchants, seed: int) -> list[_Asked]:
    stream = np.random.default_rng(derive_seed(seed, "world", "records", number))
    category = FEATURES["main_category"][merchants.features["main_category"][number]]
    log = []
    for count, created_at in enumerate(_times(stream, _record_count(stream))):
        stated, prompt = _prompt(stream, category)
        size = int(stream.choice(list(_GROUP_SIZES), p=list(_GROUP_SIZES.values())))
        codes = _candidates(stream, stated, size)
        record = f"{user_name(number)}-{count:03d}"
        log.append(_Asked(number, record, created_at, stated, prompt, codes, stream.gumbel(size=size), stream.random()))
    return log


def _record_count(stream: np.random.Generator) -> int:
    few, many = int(stream.integers(3, 10)), int(stream.integers(12, 31))
    return few if stream.random() < _FEW_RECORDS else many


def _times(stream: np.random.Generator, count: int) -> list[datetime]:
    seconds = np.sort(stream.integers(0, 300 * 86400, size=count))
    return [_FIRST_DAY + timedelta(seconds=int(second)) for second in seconds]


def _prompt(stream: np.random.Generator, category: str) -> tuple[Codes, str]:
    """What the merchant asks for: the type, and some of the other attributes that can be stated, in any order."""
    stated = np.full(len(CODES), -1)
    kinds = FAMILIES["type"]
    home = ("dresses", "tops", "coats", "jumpsuits").index(category) if category != "mixed" else -1
    any_kind = int(stream.integers(len(kinds)))
    stated[0] = home if stream.random() < OWN_CATEGORY and home >= 0 else any_kind
    for place, family in enumerate(STATED[1:], start=1):
        code = int(stream.integers(len(FAMILIES[family])))
        if stream.random() < STATES:
            stated[place] = code
    said = [FAMILIES[family][stated[place]] for place, family in enumerate(STATED) if stated[place] >= 0]
    return stated, ", ".join(said[i] for i in stream.permutation(len(said)))


def _candidates(stream: np.random.Generator, stated: Codes, size: int) -> Codes:
    """Garments a generator might have offered: stated attributes mostly followed, the others at random."""
    codes = np.stack([stream.integers(count, size=size) for count in CODES], axis=1)
    other = np.stack([stream.integers(1, count, size=size) for count in CODES], axis=1)
    follows = stream.random(codes.shape) < FOLLOWS
    asked = np.where(follows, stated, (stated + other) % np.array(CODES))
    return np.where(stated >= 0, asked, codes)


def _picks(mood: float, scores: Floats) -> list[bool]:
    """The best candidate, sometimes the two best, sometimes none (the merchant asks again) or all."""
    if mood < _UNPICKED:
        count = 0
    elif mood < _UNPICKED + _ALL_PICKED:
        count = len(scores)
    else:
        count = 2 if mood > 1 - _TWO_PICKED else 1
    best = set(np.argsort(-scores, kind="stable")[:count].tolist())
    return [place in best for place in range(len(scores))]
