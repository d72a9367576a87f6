"""The promotion gate: a challenger against the floors of any model and against today's champion."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from perfusion.config import GatesConfig
from perfusion.evaluation.items import ITEM
from perfusion.governance.checks import above, need_columns, not_below
from perfusion.governance.decision import Check, Decision, at_most, decide
from perfusion.statistics import Interval, cluster_bootstrap, paired_difference

__all__ = ["GENERAL_SCORERS", "promotion_gate"]

#: General scorers a challenger must not lose on; a column `name` or, from a tiny twin, `name[twin]`.
GENERAL_SCORERS = ("aesthetic", "clip_score", "pickscore")


def promotion_gate(
    challenger: pd.DataFrame, champion: pd.DataFrame | None, config: GatesConfig, *,
    challenger_reward: pd.DataFrame | None = None, champion_reward: pd.DataFrame | None = None,
    costs: Mapping[str, float] | None = None, seed: int = 0,
) -> Decision:  # fmt: skip
    """Is the challenger better than the champion now? Both were re-scored on the same frozen items.

    An item is a (user, prompt, seed). Without a champion the floors alone apply: better than the base, and better with
    the right user than with another's. With one, the floors apply to the challenger, and it must also beat the champion
    for every judge of personal fit: its own reward model, the champion's, and the truth where there is one.

    Args:
        challenger: pictures: `user_id`, `prompt`, `seed`, `arm` (base, perfusion, wrong_user, ...), one column per
            scorer (`perfusion_rm`, `true_utility` where there is a truth, general scorers) and `slice_*` columns.
        champion: pictures of the champion's `perfusion` arm on the same items by the same scorers; then both tables
            also hold `champion_rm`, the champion's reward model. None for the first model.
        config: thresholds.
        challenger_reward: groups as in `reward_gate`, `record_id` included; needed when there is a champion.
        champion_reward: the same groups by the champion's reward model.
        costs: `seconds_per_picture` and `memory_mib`; needed where the config sets a budget.
        seed: of the bootstrap.

    Raises:
        GateError: a needed column is missing.
    """
    need_columns(challenger, [*ITEM, "arm", "perfusion_rm"], "promotion gate, challenger")
    options = config.interval_options(seed)
    checks, statistics = _floors(challenger, config, options)
    if champion is not None:
        need_columns(champion, [*ITEM, "arm", "perfusion_rm"], "promotion gate, champion")
        for part in (
            _against_champion(challenger, champion, config, options),
            _reward_against_champion(challenger_reward, champion_reward, config, options),
        ):
            checks += part[0]
            statistics |= part[1]
    budgets = {"seconds_per_picture": config.max_seconds_per_picture, "memory_mib": config.max_memory_mib}
    for name, budget in budgets.items():
        if budget is not None:
            checks.append(at_most(name, (costs or {}).get(name), budget))
    statistics["costs"] = dict(costs or {})
    statistics["first_model"] = champion is None
    return decide("promotion", checks, statistics, config.model_dump())


Part = tuple[list[Check], dict[str, Any]]


def _floors(pictures: pd.DataFrame, config: GatesConfig, options: dict[str, Any]) -> Part:
    """What any model must show: better than the base, the right user better than a wrong one, nothing else lost."""
    judges = _columns(pictures, ("perfusion_rm", "true_utility"))
    paired = _pair(_arm(pictures, "perfusion"), _arm(pictures, "base"))
    checks = [_same_items("perfusion and base", paired)]
    statistics: dict[str, Any] = {"items": len(paired)}
    for judge in judges:
        gain = _difference(paired, judge, options)
        statistics[f"{judge}_minus_base"] = gain.to_dict()
        checks.append(above(f"{judge} of PerFusion minus base", gain))
    swapped = _pair(_arm(pictures, "perfusion"), _arm(pictures, "wrong_user"))
    checks.append(_same_items("right and wrong user", swapped))
    for judge in judges:
        gain = _difference(swapped, judge, options)
        statistics[f"{judge}_right_minus_wrong"] = gain.to_dict()
        checks.append(above(f"{judge} of the right minus a wrong user", gain))
    general, numbers = _general(paired, "base", config, options)
    return checks + general, statistics | numbers


def _against_champion(
    challenger: pd.DataFrame, champion: pd.DataFrame, config: GatesConfig, options: dict[str, Any]
) -> Part:
    """Every judge of personal fit prefers the challenger; general scorers and slices lose at most their margins."""
    paired = _pair(_arm(challenger, "perfusion"), _arm(champion, "perfusion"))
    checks = [_same_items("challenger and champion", paired)]
    statistics: dict[str, Any] = {}
    truth = ("true_utility",) if "true_utility" in challenger else ()
    for judge in ("perfusion_rm", "champion_rm", *truth):
        gain = _difference(paired, judge, options)
        statistics[f"{judge}_minus_champion"] = gain.to_dict()
        checks.append(above(f"{judge} of challenger minus champion", gain))
    general, numbers = _general(paired, "champion", config, options)
    slices, slice_numbers = _slices(paired, config, options)
    return checks + general + slices, statistics | numbers | slice_numbers


def _reward_against_champion(
    challenger: pd.DataFrame | None, champion: pd.DataFrame | None, config: GatesConfig, options: dict[str, Any]
) -> Part:
    """The challenger's reward model ranks held-out picks no worse than the champion's, on the same groups."""
    name = "reward model's MAP minus the champion's"
    if challenger is None or champion is None:
        return [
            Check(name, "inconclusive", f"{name} is missing; score the champion's reward model on today's groups")
        ], {}
    for table, side in ((challenger, "challenger"), (champion, "champion")):
        need_columns(table, ["record_id", "user_id", "split", "ap_perfusion_rm"], f"promotion gate, {side}'s groups")
    both = challenger[challenger["split"] == "test"].merge(
        champion[champion["split"] == "test"], on=["record_id", "user_id"], how="outer", suffixes=("", "_champion")
    )
    gain = paired_difference(both["ap_perfusion_rm"], both["ap_perfusion_rm_champion"], both["user_id"], **options)
    return [not_below(name, gain, config.reward_promotion_margin)], {"reward_map_minus_champion": gain.to_dict()}


def _general(paired: pd.DataFrame, other: str, config: GatesConfig, options: dict[str, Any]) -> Part:
    """Non-inferiority on every general scorer; one that is absent from both tables is inconclusive."""
    checks, statistics = [], {}
    for scorer in GENERAL_SCORERS:
        names = _columns(paired, (scorer, f"{scorer}[twin]"))
        name = names[0] if names else scorer
        gain = _standardised(paired, name, options)
        statistics[f"{name}_minus_{other}_sd"] = gain.to_dict()
        checks.append(not_below(f"{name} minus {other}, in standard deviations,", gain, config.general_margin))
    return checks, statistics


def _slices(paired: pd.DataFrame, config: GatesConfig, options: dict[str, Any]) -> Part:
    """Non-inferiority of personal fit on every value of every `slice_*` column with enough users."""
    checks, statistics = [], {}
    for column in sorted(name for name in paired if name.startswith("slice_") and not name.endswith("_other")):
        for value, part in paired.groupby(column, sort=True, dropna=False):
            name = f"{column}={value}"
            gain = _standardised(part, "perfusion_rm", options)
            statistics[name] = gain.to_dict()
            if gain.clusters >= config.slice_min_users:
                checks.append(not_below(f"perfusion_rm on {name}, in standard deviations,", gain, config.slice_margin))
    return checks, statistics


def _arm(pictures: pd.DataFrame, arm: str) -> pd.DataFrame:
    """One arm's pictures, averaged per item where an item has several."""
    rows = pictures[pictures["arm"] == arm]
    numbers = rows.select_dtypes("number").columns.difference([*ITEM])
    labels = [name for name in rows if name.startswith("slice_")]
    items = rows.groupby(list(ITEM), sort=True)
    return (
        items[labels]
        .first()
        .join(items[[name for name in numbers if name not in labels]].mean(skipna=False))
        .reset_index()
    )


def _pair(left: pd.DataFrame, right: pd.DataFrame) -> pd.DataFrame:
    """Items of two arms side by side, the second with the suffix `_other`; an item of one arm only has NaN scores."""
    return left.merge(right, on=list(ITEM), how="outer", suffixes=("", "_other"), indicator="found_in")


def _same_items(name: str, paired: pd.DataFrame) -> Check:
    """Both arms hold exactly the same frozen items, and at least one."""
    lonely = int((paired["found_in"] != "both").sum())
    if lonely or paired.empty:
        reason = (
            f"{name}: {lonely} of {len(paired)} (user, prompt, seed) items are in one table only; generate both anew"
        )
        return Check(name, "inconclusive", reason)
    return Check(name, "pass", f"{name} share the same {len(paired)} (user, prompt, seed) items")


def _difference(paired: pd.DataFrame, scorer: str, options: dict[str, Any]) -> Interval:
    """Paired difference of a scorer, in its own unit; NaN when a table lacks it."""
    if scorer not in paired or f"{scorer}_other" not in paired:
        return cluster_bootstrap(np.full(len(paired), np.nan), paired["user_id"], **options)
    return paired_difference(paired[scorer], paired[f"{scorer}_other"], paired["user_id"], **options)


def _standardised(paired: pd.DataFrame, scorer: str, options: dict[str, Any]) -> Interval:
    """Paired difference in standard deviations of the other arm's scores, so that one margin serves every scorer."""
    gain = _difference(paired, scorer, options)
    spread = float(np.std(paired[f"{scorer}_other"])) if f"{scorer}_other" in paired else math.nan
    if not spread > 0:  # a constant scorer: any difference at all is large
        spread = 1.0 if gain.mean == 0 else math.nan
    return Interval(
        gain.mean / spread, gain.low / spread, gain.high / spread, gain.confidence, gain.clusters, gain.records
    )


def _columns(table: pd.DataFrame, names: Sequence[str]) -> list[str]:
    return [name for name in names if name in table]
