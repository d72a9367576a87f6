"""One trial: simulate a pair of models, make the tables that the stages would have made, ask the real gate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from perfusion.config import GatesConfig
from perfusion.evaluation.ranking import group_average_precision
from perfusion.governance import Check, Decision, promotion_gate, reward_gate
from perfusion.governance.promotion import GENERAL_SCORERS, JUDGES, preferred
from perfusion.seeding import derive_seed
from perfusion.statistics import paired_difference
from perfusion.trials.market import VALUES, Floats, Market, Numbers, prompt_fit
from perfusion.trials.models import (
    CHAMPION_UTILITY,
    READING,
    SHARED,
    Generator,
    believe,
    draw_general,
    errors,
    solve_strength,
    utility,
)

__all__ = ["Scenario", "Trial", "promotion_trial", "random_reward_trial"]

COSTS = {"seconds_per_picture": 1.0, "memory_mib": 1000.0}  # both models cost the same


@dataclass(frozen=True)
class Scenario:
    """What is true of a pair of models.

    Attributes:
        name: of the stream of random numbers, too.
        gain: true utility of the challenger's pictures minus the champion's, on the mean of merchants.
        slice_column, slice_value: merchants to whom the challenger is worse, e.g. "slice_season", "winter".
        loss: how much worse, in standard deviations of the true utility of the champion's pictures to them; others gain
            so much more that `gain` holds.
        flattery: how strongly the challenger draws what its own reward model wrongly likes; 0 not at all.
        shared: share of the two reward models' error variance that they have in common.
        truth: whether the gate is shown the true utility, as on planted data, or not, as on real data.
    """

    name: str
    gain: float = 0.0
    slice_column: str = ""
    slice_value: str = ""
    loss: float = 0.0
    flattery: float = 0.0
    shared: float = SHARED
    truth: bool = True


@dataclass(frozen=True)
class Trial:
    """What the gate said of one pair.

    Attributes:
        promoted: whether it passed.
        judges_agree: whether every judge of personal fit surely preferred the challenger, whatever else was open.
        open_checks: names of the checks that did not pass; the judges' alone where the others were not asked.
        gains: judge -> challenger minus champion, on the mean of items; `true_utility` even where it was hidden.
    """

    promoted: bool
    judges_agree: bool
    open_checks: tuple[str, ...]
    gains: dict[str, float]


@dataclass(frozen=True)
class _Pair:
    """A challenger and a champion: generators, and the beliefs (U, V) of their reward models."""

    challenger: Generator
    champion: Generator
    challenger_rm: Floats
    champion_rm: Floats


@dataclass(frozen=True)
class _Frame:
    """Who was asked for what: merchants drawn with replacement, who are users of their own where one stands twice.

    Attributes:
        users: (n,) merchants' numbers.
        rows: (n,) the group whose prompt is drawn.
        names: (n,) the users' names.
        offsets: general scorer -> (n,) what belongs to the item and not to the picture.
    """

    market: Market
    users: Numbers
    rows: Numbers
    names: NDArray[np.str_]
    offsets: dict[str, Floats]

    @cached_property
    def stated(self) -> Numbers:
        return self.market.groups.stated[self.rows]

    @cached_property
    def items(self) -> pd.DataFrame:
        """user_id, prompt, seed, and the users' slices."""
        named = {
            "user_id": self.names,
            "prompt": self.market.groups.prompt[self.rows],
            "seed": np.arange(len(self.users)),
        }
        slices = self.market.slices.iloc[self.users].reset_index(drop=True)
        return pd.concat([pd.DataFrame(named), slices], axis=1)


def promotion_trial(
    market: Market, scenario: Scenario, config: GatesConfig, seed: int, *, pairs: int = 320, cold_pairs: int = 160,
    thorough: bool = False,
) -> Trial:  # fmt: skip
    """Simulate one pair and ask the promotion gate.

    The gate passes only when every check does. So the judges' checks are asked first, by the gate's own functions;
    where one of them is open the answer is no, and the rest of the evidence is not simulated.

    Args:
        market: the population.
        scenario: what is true of the pair.
        config: the gate's thresholds.
        seed: of everything random; the gate's own resampling keeps its seed 0, as in a retraining.
        pairs: items, one a user.
        cold_pairs: items of users nothing was learnt of.
        thorough: ask the whole gate in any case, for the sake of the other checks.
    """
    stream = np.random.default_rng(derive_seed(seed, "trial", scenario.name))
    models = _pair(market, scenario, stream)
    known = stream.choice(market.known, len(market.known))
    frame = _frame(market, known, "test", min(pairs, len(known)), "u", stream)
    pictures = [_scores(frame, models, generator, stream) for generator in (models.challenger, models.champion)]
    gains = {judge: float((pictures[0][judge] - pictures[1][judge]).mean()) for judge in (*JUDGES, "true_utility")}
    judges = (*JUDGES, "true_utility") if scenario.truth else JUDGES
    options = config.interval_options(0)
    checks = [
        preferred(judge, paired_difference(pictures[0][judge], pictures[1][judge], frame.names, **options))
        for judge in judges
    ]
    if _open(checks) and not thorough:
        return Trial(False, False, _open(checks), gains)
    decision = _whole_gate(market, models, known, frame, pictures, scenario, config, cold_pairs, stream)
    return Trial(decision.passed, not _open(checks), _open(decision.checks), gains)


def _whole_gate(
    market: Market, models: _Pair, known: Numbers, frame: _Frame, pictures: Sequence[dict[str, Floats]],
    scenario: Scenario, config: GatesConfig, cold_pairs: int, stream: np.random.Generator,
) -> Decision:  # fmt: skip
    """The gate's decision on all evidence, of which the pair's own pictures are there already."""
    strangers = stream.choice(market.strangers, len(market.strangers))
    cold = _frame(market, strangers, "", cold_pairs, "c", stream)
    arms = {"perfusion": pictures[0]}
    arms |= {arm: _scores(frame, models, each, stream) for arm, each in _floors(models, stream).items()}
    tables = [pd.concat([_table(frame, arm, scores) for arm, scores in arms.items()], ignore_index=True)]
    tables.append(_table(frame, "perfusion", pictures[1]))
    for each in (models.challenger, models.champion):
        tables.append(_table(cold, "perfusion", _scores(cold, models, each, stream)))
    if not scenario.truth:
        tables = [table.drop(columns="true_utility") for table in tables]
    rewards = [
        _reward_groups(market, belief, known, strangers, stream)
        for belief in (models.challenger_rm, models.champion_rm)
    ]
    return promotion_gate(
        tables[0], tables[1], config, challenger_cold=tables[2], champion_cold=tables[3], challenger_reward=rewards[0],
        champion_reward=rewards[1], costs=COSTS, champion_costs=COSTS,
    )  # fmt: skip


def _open(checks: Sequence[Check]) -> tuple[str, ...]:
    return tuple(check.name for check in checks if check.verdict != "pass")


def random_reward_trial(market: Market, config: GatesConfig, seed: int, blind: bool = False) -> Decision:
    """Ask the reward gate about a reward model that knows nothing of merchants.

    Args:
        market: the population.
        config: the gate's thresholds.
        seed: of everything random.
        blind: False: scores are random. True: it ranks by the prompt and by what everybody likes, exactly as well as
            the tuned PickScore beside it, and by noise where the merchants' own taste should be.
    """
    stream = np.random.default_rng(derive_seed(seed, "random reward", blind))
    groups = market.groups
    everybody = np.broadcast_to(market.everybody, market.own.shape)
    tuned = groups.scores(everybody) + stream.normal(0, READING, groups.valid.shape)
    score = groups.scores(everybody) if blind else np.zeros(groups.valid.shape)
    noise = READING if blind else 1.0
    columns = {
        f"ap_{name}": group_average_precision(scores, groups.picked, groups.valid)
        for name, scores in (
            ("user_blind", tuned),
            ("perfusion_rm", score + stream.normal(0, noise, score.shape)),
            ("wrong_user", score + stream.normal(0, noise, score.shape)),
        )
    }
    known, strangers = (stream.choice(users, len(users)) for users in (market.known, market.strangers))
    return reward_gate(_group_table(market, columns, known, strangers), config)


def _pair(market: Market, scenario: Scenario, stream: np.random.Generator) -> _Pair:
    """Models of which the scenario is true."""
    common, *own = (errors(market, stream) for _ in range(3))
    wrong = [np.sqrt(scenario.shared) * common + np.sqrt(1 - scenario.shared) * part for part in own]
    rewards = [believe(market, error) for error in wrong]
    champion = _level(market, believe(market, errors(market, stream)), CHAMPION_UTILITY)
    belief = believe(market, errors(market, stream) + scenario.flattery * wrong[0])
    if not scenario.slice_column:
        challenger = _level(market, belief, CHAMPION_UTILITY + scenario.gain)
    else:
        challenger = _worse_on_slice(market, belief, champion, scenario)
    return _Pair(challenger, champion, *rewards)


def _level(market: Market, belief: Floats, wanted: float) -> Generator:
    """A generator whose pictures have a wanted true utility on the mean of known merchants."""
    return Generator(belief, np.full(len(belief), solve_strength(market, belief, market.known, wanted)))


def _worse_on_slice(market: Market, belief: Floats, champion: Generator, scenario: Scenario) -> Generator:
    """A generator that is `loss` worse than the champion on a slice, and `gain` better over all."""
    taste, chances = market.taste, champion.probabilities()
    mean = (chances * taste).sum(1)
    inside = market.slices[scenario.slice_column].to_numpy() == scenario.slice_value
    known = np.isin(np.arange(len(taste)), market.known)
    spread = np.sqrt(_variance(chances, taste)[inside & known].mean() + mean[inside & known].var())
    wanted = mean[inside & known].mean() - scenario.loss * spread
    share = inside[market.known].mean()
    rest = (CHAMPION_UTILITY + scenario.gain - share * wanted) / (1 - share)
    strength = np.empty(len(belief))
    for users, utility_wanted in ((inside, wanted), (~inside, rest)):
        strength[users] = solve_strength(market, belief, np.flatnonzero(users & known), float(utility_wanted))
    return Generator(belief, strength)


def _variance(chances: Floats, taste: Floats) -> Floats:
    """Variance of the true utility of one merchant's pictures, (U,): free attributes are drawn independently."""
    parts = []
    for columns in VALUES:
        p, t = chances[:, columns], taste[:, columns]
        parts.append((p * t**2).sum(1) - (p * t).sum(1) ** 2)
    return np.sum(parts, axis=0)


def _floors(models: _Pair, stream: np.random.Generator) -> dict[str, Generator]:
    """What the challenger is held against as any model is: a base that knows nobody, and itself for somebody else."""
    mine = models.challenger
    other = stream.permutation(len(mine.belief))
    return {
        "base": Generator(mine.belief, np.zeros(len(other))),
        "wrong_user": Generator(mine.belief[other], mine.strength[other]),
    }


def _frame(market: Market, users: Numbers, split: str, items: int, prefix: str, stream: np.random.Generator) -> _Frame:
    """Items for users: one of each user's groups a round, until there are enough."""
    rounds = -(-items // len(users))
    places = np.tile(np.arange(len(users)), rounds)[:items]
    rows, owner = market.groups_of(users, split)
    first = np.searchsorted(owner, np.arange(len(users)))
    counts = np.bincount(owner, minlength=len(users))
    chosen = rows[first[places] + (stream.random(items) * counts[places]).astype(int)]
    offsets = {name: stream.normal(size=items) for name in GENERAL_SCORERS}
    return _Frame(market, users[places], chosen, _names(prefix, places), offsets)


def _names(prefix: str, places: Numbers) -> NDArray[np.str_]:
    return np.char.add(prefix, np.char.zfill(places.astype(str), 4))


def _scores(frame: _Frame, models: _Pair, generator: Generator, stream: np.random.Generator) -> dict[str, Floats]:
    """Every score (n,) of one picture of each item."""
    market, users, stated = frame.market, frame.users, frame.stated
    codes = generator.draw(users, stated, stream)
    scores = {"true_utility": utility(market, market.taste, users, stated, codes)}
    for name, belief in (("perfusion_rm", models.challenger_rm), ("champion_rm", models.champion_rm)):
        noise = stream.normal(0, READING, len(users))
        scores[name] = utility(market, belief, users, stated, codes) + noise
    fit = prompt_fit(stated, codes)
    return scores | {name: draw_general(fit, offset, stream) for name, offset in frame.offsets.items()}


def _table(frame: _Frame, arm: str, scores: dict[str, Floats]) -> pd.DataFrame:
    """One arm's pictures, as `pictures.parquet` has them."""
    return frame.items.assign(arm=arm, **scores)


def _reward_groups(
    market: Market, belief: Floats, known: Numbers, strangers: Numbers, stream: np.random.Generator
) -> pd.DataFrame:
    """A reward model's average precision on every held-out group of the users, as `groups.parquet` has it."""
    groups = market.groups
    scores = groups.scores(belief) + stream.normal(0, READING, groups.valid.shape)
    columns = {"ap_perfusion_rm": group_average_precision(scores, groups.picked, groups.valid)}
    return _group_table(market, columns, known, strangers)


def _group_table(market: Market, columns: dict[str, Floats], known: Numbers, strangers: Numbers) -> pd.DataFrame:
    """Columns of all held-out groups (G,) -> the groups of these users, who bear names of their own."""
    parts = []
    for users, split, prefix in ((known, "test", "u"), (strangers, "", "c")):
        rows, owner = market.groups_of(users, split)
        named = {"record_id": [f"{prefix}{k}" for k in range(len(rows))], "user_id": _names(prefix, owner)}
        own = {name: values[rows] for name, values in columns.items()}
        parts.append(pd.DataFrame({**named, "split": market.groups.split[rows], **own}))
    return pd.concat(parts, ignore_index=True)
