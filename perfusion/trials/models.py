"""Simulated models: reward models that err as trained ones do, generators whose true worth is known exactly.

The effect model, in one place. What is measured on the sample marketplace (README) fixes the constants; a test holds
the simulated figures to them.

- A reward model knows what everybody likes and what features explain, half of a known merchant's own taste and none of
  a stranger's, and errs: half of the error's variance belongs to values of features (all bohemian merchants are
  misjudged alike), half to single merchants. Two reward models share a part of the error (`SHARED`), because they
  learnt from the same picks; the rest is their own. Each picture adds noise of reading it.
- A generator follows each stated attribute with probability `FOLLOWS` and draws each free attribute by a softmax over
  what it believes the merchant likes, times a strength. It errs as a reward model does. The expected true utility of
  its pictures has a closed form, so that the strength can be solved for a wanted utility: "no better" and "better by
  0.2" hold exactly on the population of merchants, whatever the errors.
- General scorers see the fit to the prompt, the noise of the picture and an offset that belongs to the item.
- Challenger and champion are drawn independently. Real ones begin from the same noise; what they share narrows the
  paired intervals, so the real gate finds improvements sooner than this one.

Shapes: U merchants, V values of the free attributes, n pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from perfusion.errors import GateError
from perfusion.trials.market import VALUES, Market, lookup, prompt_fit
from perfusion.world.garments import CODES, FAMILIES, FREE, STATED
from perfusion.world.merchants import FAMILY_SHARE, FEATURES

__all__ = [
    "CHAMPION_UTILITY",
    "ERROR",
    "FOLLOWS",
    "OWN_KNOWN",
    "READING",
    "SHARED",
    "Generator",
    "believe",
    "draw_general",
    "errors",
    "expected_utility",
    "solve_strength",
    "utility",
]

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]
Numbers = NDArray[np.int64]

CHAMPION_UTILITY = 1.2  # true utility of the champion's pictures; the sample's PerFusion has 1.17
ERROR = 0.4  # standard deviation of a model's error about a garment; one unit is the spread of personal taste
READING = 0.15  # standard deviation of a reward model's noise of reading a picture
SHARED = 0.5  # share of the error's variance that two reward models have in common
OWN_KNOWN = 0.5  # how much of a known merchant's own taste a model knows
FOLLOWS = 0.98  # probability that a drawn picture shows a stated attribute
_BY_FEATURE = ("style", "price_level", "main_category", "season")
_STRENGTHS = (-30.0, 60.0)  # where a strength is looked for


def errors(market: Market, stream: np.random.Generator) -> Floats:
    """An error table (U, V) of unit variance per garment: half by features' values, half by merchant."""
    users, values = len(market.own), market.own.shape[1]
    table = sqrt(0.5) * stream.normal(size=(users, values))
    for name in _BY_FEATURE:
        by_value = stream.normal(size=(len(FEATURES[name]), values))
        table += sqrt(0.5 / len(_BY_FEATURE)) * by_value[market.features[name]]
    for family, columns in zip(FREE, VALUES, strict=True):
        table[:, columns] *= sqrt(FAMILY_SHARE[family])
    return table


def believe(market: Market, error: Floats) -> Floats:
    """What a model with an error table (U, V) of unit variance thinks merchants like, (U, V)."""
    own = market.own.copy()
    own[market.known] *= OWN_KNOWN
    own[market.strangers] = 0.0
    return market.everybody + market.by_feature + own + ERROR * error


@dataclass(frozen=True)
class Generator:
    """A generator.

    Attributes:
        belief: (U, V) what it thinks merchants like.
        strength: (U,) how strongly it acts on it; 0 draws free attributes evenly.
    """

    belief: Floats
    strength: Floats

    def probabilities(self) -> Floats:
        """(U, V) of every value within its attribute."""
        return _softmax(self.belief * self.strength[:, None])

    def draw(self, users: Numbers, stated: Codes, stream: np.random.Generator) -> Codes:
        """Garments (n, 8) for merchants (n,) who asked for stated attributes (n, 8), -1 where they left it open."""
        codes = np.stack([stream.integers(count, size=len(users)) for count in CODES], axis=1)
        for place in range(len(STATED)):
            asked = np.where(
                stream.random(len(users)) < FOLLOWS, stated[:, place],
                (stated[:, place] + stream.integers(1, CODES[place], size=len(users))) % CODES[place],
            )  # fmt: skip
            codes[:, place] = np.where(stated[:, place] >= 0, asked, codes[:, place])
        chances = self.probabilities()[users]
        for family, columns in zip(FREE, VALUES, strict=True):
            edges = chances[:, columns].cumsum(1)
            drawn = (stream.random((len(users), 1)) > edges[:, :-1]).sum(1)
            codes[:, list(FAMILIES).index(family)] = drawn
        return codes


def expected_utility(market: Market, belief: Floats, strength: float) -> Floats:
    """The true utility, but for the fit to the prompt, that a picture has on average for each merchant, (U,)."""
    return (_softmax(belief * strength) * market.taste).sum(1)


def solve_strength(market: Market, belief: Floats, users: Numbers, utility: float) -> float:
    """The strength at which pictures have a wanted true utility, but for the fit to the prompt, on the mean of users.

    Raises:
        GateError: no strength gives it; a generator with these beliefs cannot be that good.
    """

    def missing(strength: float) -> float:
        return float((_softmax(belief[users] * strength) * taste).sum(1).mean()) - utility

    taste = market.taste[users]
    if missing(_STRENGTHS[0]) > 0 or missing(_STRENGTHS[1]) < 0:
        raise GateError(
            f"true utility {utility:.3g}: a simulated generator reaches {missing(_STRENGTHS[0]) + utility:.3g} to "
            f"{missing(_STRENGTHS[1]) + utility:.3g}; choose a smaller effect"
        )
    return float(brentq(missing, *_STRENGTHS, xtol=1e-6))


def draw_general(fit: Floats, offset: Floats, stream: np.random.Generator) -> Floats:
    """A general scorer's (n,) scores: fit to the prompt, the item's offset and the picture's noise, half and half."""
    return fit + sqrt(0.5) * offset + sqrt(0.5) * stream.normal(size=len(fit))


def utility(market: Market, table: Floats, users: Numbers, stated: Codes, codes: Codes) -> Floats:
    """What garments are worth by a table of tastes (U, V) and by their fit to the prompt, (n,)."""
    return prompt_fit(stated, codes) + lookup(table, users, codes)


def _softmax(logits: Floats) -> Floats:
    """Within each free attribute's columns."""
    chances = np.empty_like(logits)
    for columns in VALUES:
        part = np.exp(logits[:, columns] - logits[:, columns].max(1, keepdims=True))
        chances[:, columns] = part / part.sum(1, keepdims=True)
    return chances
