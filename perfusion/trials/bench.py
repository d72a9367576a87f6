"""The gate's own test bench: which pairs are simulated, and what their trials add up to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import binomtest

from perfusion.config import GatesConfig
from perfusion.trials.market import Market
from perfusion.trials.scenarios import Scenario, Trial, promotion_trial, random_reward_trial

__all__ = ["FULL", "Batch", "Size", "figures", "plan", "run_batch"]

#: True utility by which a challenger is better; one unit is the spread of personal taste among merchants.
EFFECTS = (0.1, 0.2, 0.3, 0.4, 0.5)
#: (column, value, loss in standard deviations, share of the pairs of `Size.slices`); the first is the headline.
SLICES = (
    ("slice_price_level", "premium", 0.75, 1.0),
    ("slice_season", "winter", 0.75, 0.5),
    ("slice_price_level", "premium", 0.5, 0.5),
    ("slice_price_level", "premium", 0.25, 0.5),
)
SLICE_GAIN = 0.1  # true utility that the challenger gains on the mean, though it loses on the slice
FLATTERY = 2.0  # how strongly a flatterer draws what its reward model wrongly likes
SHARED = (0.0, 0.5, 1.0)  # share of the two reward models' error variance in common
NIGHTS = 365
NULL, RANDOM, BLIND = "null", "random reward", "blind reward"
_BATCH = 20  # trials a batch: seconds, so that progress is told often


@dataclass(frozen=True)
class Size:
    """How many trials of each kind."""

    null: int = 1000
    power: int = 200
    slices: int = 300
    flattery: int = 100
    random: int = 1000


FULL = Size()


@dataclass(frozen=True)
class Batch:
    """Some trials of one kind; what a worker gets.

    Attributes:
        kind: a scenario's name, `RANDOM` or `BLIND`.
        scenario: None for trials of the reward gate.
        seeds: of the trials.
        thorough: of `promotion_trial`.
    """

    kind: str
    scenario: Scenario | None
    seeds: range
    thorough: bool = False


def plan(size: Size) -> list[Batch]:
    """All trials, in batches."""
    kinds = [(Scenario(NULL), size.null, False)]
    kinds += [(Scenario(f"gain {effect:g}", gain=effect), size.power, False) for effect in EFFECTS]
    kinds += [(_slice_scenario(*case[:3]), max(1, round(size.slices * case[3])), True) for case in SLICES]
    kinds += [(_flatterer(truth, shared), size.flattery, False) for truth in (True, False) for shared in SHARED]
    batches = [
        Batch(scenario.name, scenario, seeds, thorough)
        for scenario, count, thorough in kinds
        for seeds in _chunks(count)
    ]
    return batches + [Batch(kind, None, seeds) for kind in (RANDOM, BLIND) for seeds in _chunks(size.random)]


def run_batch(market: Market, config: GatesConfig, batch: Batch, pairs: int, cold_pairs: int) -> list[Trial | bool]:
    """The trials of a batch: what the promotion gate said, or whether the reward gate passed.

    Args:
        market: the population.
        config: the gates' thresholds.
        batch: of `plan`.
        pairs, cold_pairs: as in `promotion_trial`.
    """
    if batch.scenario is None:
        return [random_reward_trial(market, config, seed, batch.kind == BLIND).passed for seed in batch.seeds]
    return [
        promotion_trial(
            market, batch.scenario, config, seed, pairs=pairs, cold_pairs=cold_pairs, thorough=batch.thorough
        )
        for seed in batch.seeds
    ]


def figures(found: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """What the trials add up to.

    Args:
        found: kind -> its trials, as `run_batch` gives them.

    Returns:
        `null`, `power`, `slice_regression` (the headline) and `slice_regressions` (all), `random_reward`, `flattery`:
        plain JSON values. Rates are in [0, 1], `low` and `high` the ends of the exact (Clopper-Pearson) 95 % interval.
    """
    slices = [_slice(case, found[_slice_scenario(*case[:3]).name]) for case in SLICES]
    return {
        "null": _null(found[NULL]),
        "power": [{"effect": effect, **_power(found[f"gain {effect:g}"])} for effect in EFFECTS],
        "slice_regression": slices[0],
        "slice_regressions": slices,
        "random_reward": {
            "tries": len(found[RANDOM]),
            "passed": sum(found[RANDOM]),
            "blind_tries": len(found[BLIND]),
            "blind_passed": sum(found[BLIND]),
        },
        "flattery": [
            {"truth": truth, "shared_error": shared, **_flattery(found[_flatterer(truth, shared).name])}
            for truth in (True, False)
            for shared in SHARED
        ],
    }


def _slice_scenario(column: str, value: str, loss: float) -> Scenario:
    """On data without a truth, where only reward models judge: the harder case."""
    return Scenario(
        f"{column}={value} loses {loss:g}", gain=SLICE_GAIN, slice_column=column, slice_value=value, loss=loss,
        truth=False,
    )  # fmt: skip


def _flatterer(truth: bool, shared: float) -> Scenario:
    return Scenario(f"flattery, truth {truth}, shared {shared:g}", flattery=FLATTERY, shared=shared, truth=truth)


def _chunks(count: int) -> list[range]:
    return [range(start, min(start + _BATCH, count)) for start in range(0, count, _BATCH)]


def _rate(name: str, count: int, trials: int) -> dict[str, float]:
    """A share with its exact interval."""
    bounds = binomtest(count, trials).proportion_ci(0.95, method="exact")
    return {name: count / trials, "low": float(bounds.low), "high": float(bounds.high)}


def _null(trials: Sequence[Trial]) -> dict[str, Any]:
    promoted = sum(trial.promoted for trial in trials)
    rate, high = promoted / len(trials), _rate("", promoted, len(trials))["high"]
    return {
        "pairs": len(trials),
        "promoted": promoted,
        "false_promotion_rate": rate,
        "upper95": high,
        "judges_agree": sum(trial.judges_agree for trial in trials) / len(trials),
        "asked_every_night": {
            "nights": NIGHTS,
            "expected_a_year": NIGHTS * rate,
            "expected_a_year_upper95": NIGHTS * high,
            "at_least_one_a_year": 1 - (1 - rate) ** NIGHTS,
        },
    }


def _power(trials: Sequence[Trial]) -> dict[str, Any]:
    return {
        "pairs": len(trials),
        **_rate("promoted", sum(trial.promoted for trial in trials), len(trials)),
        "judges_agree": sum(trial.judges_agree for trial in trials) / len(trials),
        "closed_by": closed_by([trial for trial in trials if trial.judges_agree]),
    }


def _slice(case: tuple[str, str, float, float], trials: Sequence[Trial]) -> dict[str, Any]:
    """Caught is what a check on this very slice keeps closed; the gate may have closed for another reason too."""
    column, value, loss, _ = case
    name = f"{column}={value}"
    caught = sum(any(f" on {name}," in check for check in trial.open_checks) for trial in trials)
    return {
        "slice": name,
        "effect": loss,
        "gain": SLICE_GAIN,
        "pairs": len(trials),
        **_rate("caught", caught, len(trials)),
        "refused": sum(not trial.promoted for trial in trials) / len(trials),
    }


def _flattery(trials: Sequence[Trial]) -> dict[str, Any]:
    gains = {judge: sum(trial.gains[judge] for trial in trials) / len(trials) for judge in trials[0].gains}
    return {
        "pairs": len(trials),
        **_rate("promoted", sum(trial.promoted for trial in trials), len(trials)),
        "judges_agree": sum(trial.judges_agree for trial in trials) / len(trials),
        "gains": gains,
    }


def closed_by(trials: Sequence[Trial]) -> dict[str, float]:
    """Kind of check -> share of the trials in which one of that kind was open, the most frequent first."""
    counts = Counter(kind for trial in trials for kind in {_kind(name) for name in trial.open_checks})
    return {kind: count / len(trials) for kind, count in counts.most_common()}


def _kind(name: str) -> str:
    """The kind of a check of the promotion gate, by words of its name."""
    kinds = {
        "of challenger minus champion": "judges",
        " on slice_": "slices",
        "reward model's MAP": "reward model",
        "cold-start": "cold start",
        "minus base": "floors",
        "minus a wrong user": "floors",
        "in standard deviations": "general scorers",
    }
    return next((kind for words, kind in kinds.items() if words in name), "other")
