"""The promotion gate: a challenger against the floors of any model and against today's champion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from perfusion.config import GatesConfig
from perfusion.evaluation.items import COLD_SPLITS, ITEM
from perfusion.governance.checks import above, need_columns, not_below
from perfusion.governance.decision import Check, Decision, at_most, decide
from perfusion.governance.pairing import arm, columns, difference, pair, same_items, standardised
from perfusion.statistics import Interval, paired_difference

__all__ = ["GENERAL_SCORERS", "JUDGES", "preferred", "promotion_gate"]

#: General scorers a challenger must not lose on; a column `name` or, from a tiny twin, `name[twin]`.
GENERAL_SCORERS = ("aesthetic", "clip_score", "pickscore")
#: Judges of personal fit when there is a champion; `true_utility` joins them where there is a truth.
JUDGES = ("perfusion_rm", "champion_rm")
#: Cost -> the fields of the config that hold its budget, and its budget in units of the champion's cost.
BUDGETS = {
    "seconds_per_picture": ("max_seconds_per_picture", "max_seconds_ratio", " s"),
    "memory_mib": ("max_memory_mib", "max_memory_ratio", " MiB"),
}


def promotion_gate(
    challenger: pd.DataFrame, champion: pd.DataFrame | None, config: GatesConfig, *,
    challenger_cold: pd.DataFrame | None = None, champion_cold: pd.DataFrame | None = None,
    challenger_reward: pd.DataFrame | None = None, champion_reward: pd.DataFrame | None = None,
    costs: Mapping[str, float] | None = None, champion_costs: Mapping[str, float] | None = None, seed: int = 0,
) -> Decision:  # fmt: skip
    """Is the challenger better than the champion now? Both were re-scored on the same frozen items.

    An item is a (user, prompt, seed). Without a champion the floors alone apply: better than the base, and better with
    the right user than with another's. With one, the floors apply to the challenger, and it must also beat the champion
    for every judge of personal fit: its own reward model, the champion's, and the truth where there is one; and lose
    nowhere more than a margin: on no general scorer, on no slice of users, not on users nothing was learnt of.

    Args:
        challenger: pictures: `user_id`, `prompt`, `seed`, `arm` (base, perfusion, wrong_user, ...), one column per
            scorer (`perfusion_rm`, `true_utility` where there is a truth, general scorers) and `slice_*` columns.
        champion: pictures of the champion's `perfusion` arm on the same items by the same scorers; then both tables
            also hold `champion_rm`, the champion's reward model. None for the first model.
        config: thresholds.
        challenger_cold, champion_cold: as the two above, `perfusion` arms for users nothing was learnt of; needed when
            there is a champion.
        challenger_reward: groups as in `reward_gate`, `record_id` included; needed when there is a champion.
        champion_reward: the same groups by the champion's reward model.
        costs: `seconds_per_picture` and `memory_mib`; needed where the config sets a budget.
        champion_costs: the champion's, measured beside; needed when there is a champion and a relative budget.
        seed: of the bootstrap.

    Raises:
        GateError: a needed column is missing.
    """
    need_columns(challenger, [*ITEM, "arm", "perfusion_rm"], "promotion gate, challenger")
    options = config.interval_options(seed)
    parts = [_floors(challenger, config, options)]
    if champion is not None:
        need_columns(champion, [*ITEM, "arm", "perfusion_rm"], "promotion gate, champion")
        parts += [
            _against_champion(challenger, champion, config, options),
            _cold_start(challenger_cold, champion_cold, config, options),
            _reward_against_champion(challenger_reward, champion_reward, config, options),
        ]
    parts.append(_budgets(costs or {}, None if champion is None else champion_costs or {}, config))
    checks = [check for part in parts for check in part[0]]
    statistics = {name: value for part in parts for name, value in part[1].items()}
    inputs = {"items": statistics["items"], "users": challenger["user_id"].nunique(), "seed": seed}
    return decide("promotion", checks, statistics | {"first_model": champion is None}, config.model_dump(), inputs)


Part = tuple[list[Check], dict[str, Any]]


def _floors(pictures: pd.DataFrame, config: GatesConfig, options: dict[str, Any]) -> Part:
    """What any model must show: better than the base, the right user better than a wrong one, nothing else lost."""
    judges = columns(pictures, ("perfusion_rm", "true_utility"))
    paired = pair(arm(pictures, "perfusion"), arm(pictures, "base"))
    checks = [same_items("perfusion and base", paired)]
    statistics: dict[str, Any] = {"items": len(paired)}
    for judge in judges:
        gain = difference(paired, judge, options)
        statistics[f"{judge}_minus_base"] = gain.to_dict()
        checks.append(above(f"{judge} of PerFusion minus base", gain))
    swapped = pair(arm(pictures, "perfusion"), arm(pictures, "wrong_user"))
    checks.append(same_items("right and wrong user", swapped))
    for judge in judges:
        gain = difference(swapped, judge, options)
        statistics[f"{judge}_right_minus_wrong"] = gain.to_dict()
        checks.append(above(f"{judge} of the right minus a wrong user", gain))
    general, numbers = _general(paired, "base", config, options)
    return checks + general, statistics | numbers


def _against_champion(
    challenger: pd.DataFrame, champion: pd.DataFrame, config: GatesConfig, options: dict[str, Any]
) -> Part:
    """Every judge of personal fit prefers the challenger; general scorers and slices lose at most their margins."""
    paired = pair(arm(challenger, "perfusion"), arm(champion, "perfusion"))
    judges = _judges(challenger)
    parts = [
        _preferred(paired, judges, options),
        _general(paired, "champion", config, options),
        _slices(paired, judges, config, options),
    ]
    checks = [same_items("challenger and champion", paired), *(check for part in parts for check in part[0])]
    return checks, {name: value for part in parts for name, value in part[1].items()}


def preferred(judge: str, gain: Interval) -> Check:
    """Whether a judge of personal fit surely prefers the challenger's pictures.

    Args:
        judge: its column.
        gain: its paired difference, challenger minus champion.
    """
    return above(f"{judge} of challenger minus champion", gain)


def _preferred(paired: pd.DataFrame, judges: Sequence[str], options: dict[str, Any]) -> Part:
    checks, statistics = [], {}
    for judge in judges:
        gain = difference(paired, judge, options)
        statistics[f"{judge}_minus_champion"] = gain.to_dict()
        checks.append(preferred(judge, gain))
    return checks, statistics


def _cold_start(
    challenger: pd.DataFrame | None, champion: pd.DataFrame | None, config: GatesConfig, options: dict[str, Any]
) -> Part:
    """Pictures for users nothing was learnt of lose at most a slice's margin, for every judge."""
    if challenger is None or champion is None:
        name = "cold-start users' pictures"
        reason = f"{name} are missing; draw them for users held out or with too few records, with both models"
        return [Check(name, "inconclusive", reason)], {}
    for table, side in ((challenger, "challenger"), (champion, "champion")):
        need_columns(table, [*ITEM, "arm", "perfusion_rm"], f"promotion gate, {side}'s cold start")
    paired = pair(arm(challenger, "perfusion"), arm(champion, "perfusion"))
    checks = [same_items("challenger and champion, cold start,", paired)]
    statistics: dict[str, Any] = {"cold_items": len(paired)}
    for judge in _judges(challenger):
        gain = standardised(paired, judge, options)
        statistics[f"{judge}_cold_minus_champion_sd"] = gain.to_dict()
        checks.append(not_below(f"{judge} on cold-start users, in standard deviations,", gain, config.slice_margin))
    return checks, statistics


def _reward_against_champion(
    challenger: pd.DataFrame | None, champion: pd.DataFrame | None, config: GatesConfig, options: dict[str, Any]
) -> Part:
    """The challenger's reward model ranks held-out picks no worse than the champion's, on the same groups."""
    name = "reward model's MAP minus the champion's"
    if challenger is None or champion is None:
        reason = f"{name} is missing; score the champion's reward model on today's groups"
        return [Check(name, "inconclusive", reason)], {}
    for table, side in ((challenger, "challenger"), (champion, "champion")):
        need_columns(table, ["record_id", "user_id", "split", "ap_perfusion_rm"], f"promotion gate, {side}'s groups")
    checks, statistics = [], {}
    for splits, where, key in ((("test",), "", ""), (COLD_SPLITS, " of cold-start users", "cold_")):
        mine, theirs = (table[table["split"].isin(splits)] for table in (challenger, champion))
        both = mine.merge(theirs, on=["record_id", "user_id"], how="outer", suffixes=("", "_champion"))
        gain = paired_difference(both["ap_perfusion_rm"], both["ap_perfusion_rm_champion"], both["user_id"], **options)
        statistics[f"{key}reward_map_minus_champion"] = gain.to_dict()
        checks.append(
            not_below(f"reward model's MAP{where} minus the champion's", gain, config.reward_promotion_margin)
        )
    return checks, statistics


def _general(paired: pd.DataFrame, other: str, config: GatesConfig, options: dict[str, Any]) -> Part:
    """Non-inferiority on every general scorer; one that is absent from both tables is inconclusive."""
    checks, statistics = [], {}
    for scorer in GENERAL_SCORERS:
        names = columns(paired, (scorer, f"{scorer}[twin]"))
        name = names[0] if names else scorer
        gain = standardised(paired, name, options)
        statistics[f"{name}_minus_{other}_sd"] = gain.to_dict()
        checks.append(not_below(f"{name} minus {other}, in standard deviations,", gain, config.general_margin))
    return checks, statistics


def _slices(paired: pd.DataFrame, judges: Sequence[str], config: GatesConfig, options: dict[str, Any]) -> Part:
    """Non-inferiority of personal fit on every value of every `slice_*` column with enough users, for every judge."""
    checks = []
    statistics: dict[str, Any] = {"slices_not_judged": []}
    scores = columns(paired, [name for judge in judges for name in (judge, f"{judge}_other")])
    needed = {name: paired[name].to_numpy() for name in ("user_id", *scores)}
    for column in sorted(name for name in paired if name.startswith("slice_") and not name.endswith("_other")):
        codes, values = pd.factorize(paired[column], sort=True, use_na_sentinel=False)
        for code, value in enumerate(values):
            name = f"{column}={value}"
            part = {key: numbers[codes == code] for key, numbers in needed.items()}
            gains = {judge: standardised(part, judge, options) for judge in judges}
            statistics |= {_slice_key(name, judge): gain.to_dict() for judge, gain in gains.items()}
            if gains["perfusion_rm"].clusters < config.slice_min_users:
                statistics["slices_not_judged"].append(name)
                continue
            for judge, gain in gains.items():
                checks.append(not_below(f"{judge} on {name}, in standard deviations,", gain, config.slice_margin))
    return checks, statistics


def _slice_key(name: str, judge: str) -> str:
    return name if judge == "perfusion_rm" else f"{name} by {judge}"


def _budgets(costs: Mapping[str, float], champion: Mapping[str, float] | None, config: GatesConfig) -> Part:
    """What drawing costs: in its own unit where a budget is set, and in units of the champion's cost."""
    checks = []
    for name, (absolute, relative, unit) in BUDGETS.items():
        if (budget := getattr(config, absolute)) is not None:
            checks.append(at_most(name, costs.get(name), budget, unit))
        if champion is not None and (budget := getattr(config, relative)) is not None:
            mine, theirs = costs.get(name), champion.get(name)
            ratio = mine / theirs if mine is not None and theirs else None
            checks.append(at_most(f"{name} over the champion's", ratio, budget))
    statistics: dict[str, Any] = {"costs": dict(costs)}
    return checks, statistics if champion is None else statistics | {"champion_costs": dict(champion)}


def _judges(pictures: pd.DataFrame) -> tuple[str, ...]:
    return (*JUDGES, "true_utility") if "true_utility" in pictures else JUDGES
