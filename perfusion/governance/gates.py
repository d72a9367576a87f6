"""The reward gate and the load gate: pure functions from evidence to a decision.

Evidence is the table of single measurements, not a summary of it, so that a gate computes its own paired intervals
over users. A check asks for a lower bound above a limit; where the interval straddles the limit the data cannot tell,
and the check is inconclusive. A tie has the interval [0, 0] and fails. docs/operations.md lists the thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from perfusion.config import GatesConfig
from perfusion.evaluation.items import COLD_SPLITS
from perfusion.governance.checks import above, need_columns, not_below, same_numbers, same_pictures
from perfusion.governance.decision import Check, Decision, at_least, decide
from perfusion.statistics import paired_difference

__all__ = ["load_gate", "reward_gate"]

#: How a check names each of them.
COLD_NAMES = {"cold": "held out entirely", "few": "with too few records"}


def reward_gate(groups: pd.DataFrame, config: GatesConfig, seed: int = 0) -> Decision:
    """Does personal information help? PerFusionRM against tuned PickScore on the same groups.

    Args:
        groups: one row per group with `user_id`, `split` (test, cold, few) and the average precision of each scorer:
            `ap_perfusion_rm`, `ap_user_blind` and, where the control was run, `ap_wrong_user`.
        config: thresholds.
        seed: of the bootstrap.

    Raises:
        GateError: a needed column is missing.
    """
    need_columns(groups, ["user_id", "split", "ap_perfusion_rm", "ap_user_blind"], "reward gate")
    options = config.interval_options(seed)
    test, cold = groups[groups["split"] == "test"], groups[groups["split"].isin(COLD_SPLITS)]
    personal, blind = _mean(test["ap_perfusion_rm"]), _mean(test["ap_user_blind"])
    relative = personal / blind - 1 if blind > 0 else math.nan
    gain = paired_difference(test["ap_perfusion_rm"], test["ap_user_blind"], test["user_id"], **options)
    cold_gain = paired_difference(cold["ap_perfusion_rm"], cold["ap_user_blind"], cold["user_id"], **options)
    statistics = {
        "map": personal, "user_blind_map": blind, "relative_map_gain": relative, "map_gain": gain.to_dict(),
        "cold_map_gain": cold_gain.to_dict(), "groups": len(test), "cold_groups": len(cold),
    }  # fmt: skip
    inputs = {"groups": len(test), "users": test["user_id"].nunique(), "cold_groups": len(cold),
              "cold_users": cold["user_id"].nunique(), "seed": seed}  # fmt: skip
    checks = [
        at_least("relative MAP gain over tuned PickScore", relative, config.reward_min_relative_map_gain),
        above("MAP gain over tuned PickScore", gain),
        not_below("MAP gain of cold-start users", cold_gain, config.reward_cold_margin),
    ]
    for split, words in COLD_NAMES.items():
        part = cold[cold["split"] == split]
        part_gain = paired_difference(part["ap_perfusion_rm"], part["ap_user_blind"], part["user_id"], **options)
        statistics[f"{split}_map_gain"] = part_gain.to_dict()
        if part_gain.clusters >= config.slice_min_users:
            checks.append(not_below(f"MAP gain of cold-start users {words}", part_gain, config.reward_cold_margin))
    if "ap_wrong_user" in groups:
        right = paired_difference(test["ap_perfusion_rm"], test["ap_wrong_user"], test["user_id"], **options)
        statistics["right_minus_wrong_user_map"] = right.to_dict()
        checks.append(above("MAP of the right minus a wrong user's features", right))
    return decide("reward", checks, statistics, config.model_dump(), inputs)


def load_gate(
    evaluated: Mapping[str, ArrayLike], reloaded: Mapping[str, ArrayLike] | None, config: GatesConfig,
    error: str | None = None,
) -> Decision:  # fmt: skip
    """Does the exact artifact load in a clean process and predict what was evaluated?

    Args:
        evaluated: named numbers that the evaluation measured: scores (any shape), or pictures (n, H, W, 3) in [0, 1].
        reloaded: the same outputs from the registered artifact in a clean process; None when it gave none.
        config: `load_tolerance` and `load_picture_tolerance`.
        error: what went wrong in the clean process, or None.
    """
    if error is not None:
        return decide("load", [Check("loads", "fail", f"the artifact does not load: {error}")], {}, config.model_dump())
    if reloaded is None:
        return decide("load", [], {}, config.model_dump())
    checks, differences = [], {}
    inputs = {"outputs": {name: list(np.shape(value)) for name, value in evaluated.items()}}
    for name, value in evaluated.items():
        if name not in reloaded:
            checks.append(Check(name, "fail", f"{name}: the reloaded artifact gives no such output"))
            continue
        if np.ndim(value) == 4:
            check, differences[name] = same_pictures(name, value, reloaded[name], config.load_picture_tolerance)
        else:
            check, differences[name] = same_numbers(name, value, reloaded[name], config.load_tolerance)
        checks.append(check)
    return decide("load", checks, {"largest_difference": differences}, config.model_dump(), inputs)


def _mean(values: pd.Series) -> float:
    """The mean, NaN when any value is (pandas would skip it)."""
    return float(np.mean(values.to_numpy(dtype=np.float64))) if len(values) else math.nan
