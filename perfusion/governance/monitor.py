"""The monitor's two questions about a model that serves, as decisions: is it still fed with what it was trained on, and
do people return more of what it made? Pure: tables in, a frozen decision with reasons out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from perfusion.config import GatesConfig, MonitorConfig
from perfusion.governance import drift
from perfusion.governance.checks import above, not_below
from perfusion.governance.decision import Check, Decision, decide
from perfusion.governance.shift import Shift
from perfusion.governance.snapshot import Snapshot
from perfusion.statistics import Interval, cluster_statistic

__all__ = ["calibration_error", "monitor_gate", "outcomes_gate"]

BINS = 10


def monitor_gate(
    snapshot: Snapshot, users: pd.DataFrame, groups: pd.DataFrame, moved: list[Shift], ranked: pd.DataFrame,
    candidates: pd.DataFrame, config: MonitorConfig, gates: GatesConfig, seed: int = 0,
) -> Decision:  # fmt: skip
    """Are fresh picks like those the model was trained on, and does it still predict them?

    Args:
        snapshot: of the model's training data.
        users: user_id and features.
        groups: the fresh records.
        moved: of `shift.shifts`; empty where there are too few records.
        ranked: one row a fresh group with a comparison: user_id, and auc by the model.
        candidates: one row a candidate of those: user_id, predicted and picked share.
        config: thresholds.
        gates: options of intervals.
        seed: of the bootstrap.
    """
    active = users[users["user_id"].isin(groups["user_id"])]
    options = gates.interval_options(seed)
    gauc, error = _gauc(snapshot, ranked, options), calibration_error(candidates, options)
    checks = [*_enough(active, groups, config), *_schema(snapshot, active, config), *map(_shift, moved)]
    if len(snapshot.gauc):
        checks.append(not_below("GAUC of fresh picks minus GAUC when it was evaluated", gauc, config.max_gauc_drop))
    else:
        checks.append(above("GAUC of fresh picks", gauc, 0.5))
    checks.append(_at_most("calibration error of fresh picks", error, config.max_calibration_error))
    statistics = {
        "records": len(groups), "users": len(active), "ranked_groups": len(ranked), "gauc": gauc.to_dict(),
        "fresh_gauc": float(ranked["auc"].mean()) if len(ranked) else None, "calibration_error": error.to_dict(),
        "shifts": {row.variable: row.size for row in moved}, "p_values": {row.variable: row.adjusted for row in moved},
    }  # fmt: skip
    return decide("monitor", checks, statistics, config.model_dump())


def outcomes_gate(report: Mapping[str, Any], config: MonitorConfig) -> Decision:
    """Did people return more of what the model made than of what it is compared with, in the same shops?

    Args:
        report: of `perfusion.evaluation.outcomes.evaluate_outcomes`; "events", the hash of their file, is kept.
        config: `max_return_rise`.
    """
    rate = report["metrics"]["return_rate"]
    rise = Interval.from_dict(rate["improvement"])
    check = _at_most("relative rise of the return rate", rise, config.max_return_rise, "shops")
    others = {name: figures["improvement"] for name, figures in report["metrics"].items()}
    statistics = {
        "events": report.get("events"),
        "return_rise": rise.to_dict(),
        "stores": rate["stores"],
        "left_out": rate["left_out"],
        **others,
    }
    return decide("outcomes", [check], statistics, {"max_return_rise": config.max_return_rise})


def calibration_error(candidates: pd.DataFrame, options: Mapping[str, Any]) -> Interval:
    """Mean absolute gap of predicted and true share over ten equally filled bins of the predicted one.

    Chance alone gives more than 0: the interval errs on the side of alarm where candidates are few.

    Args:
        candidates: user_id, predicted and picked (shares of the group's picks, in [0, 1]).
        options: of `perfusion.statistics.cluster_statistic`.
    """
    gaps = (candidates["picked"] - candidates["predicted"]).to_numpy(float)
    order = candidates["predicted"].rank(method="first").to_numpy() - 1
    bins = (order * BINS // max(1, len(candidates))).astype(int)
    columns = np.where(bins[:, None] == np.arange(BINS), gaps[:, None], 0.0)
    return cluster_statistic(
        columns, candidates["user_id"].to_numpy(), lambda means: np.abs(means).sum(-1), **options
    )  # fmt: skip


def _gauc(snapshot: Snapshot, ranked: pd.DataFrame, options: Mapping[str, Any]) -> Interval:
    """GAUC now minus GAUC when evaluated, users resampled with all that is theirs; GAUC now where that is all."""
    then = snapshot.gauc
    auc = np.concatenate([ranked["auc"], then["auc"]])
    now = np.arange(len(auc)) < len(ranked)
    users = np.concatenate([ranked["user_id"], then["user_id"]])
    columns = np.column_stack([auc * now, now, auc * ~now, ~now])

    def statistic(means: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            fresh = means[..., 0] / means[..., 1]
            return fresh - means[..., 2] / means[..., 3] if len(then) else fresh

    return cluster_statistic(columns, users, statistic, **options)


def _enough(users: pd.DataFrame, groups: pd.DataFrame, config: MonitorConfig) -> Iterator[Check]:
    wanted = {"merchants": (len(users), config.min_users), "records": (len(groups), config.min_groups)}
    for name, (found, least) in wanted.items():
        reason = f"fresh {name} {found}, at least {least} are needed to tell"
        yield Check(f"fresh {name}", "pass" if found >= least else "inconclusive", reason)


def _schema(snapshot: Snapshot, users: pd.DataFrame, config: MonitorConfig) -> Iterator[Check]:
    changes = drift.schema_changes(snapshot.profile, users)
    for name in changes["missing"]:
        yield Check("features", "fail", f"feature {name!r} of the training data is missing")
    for name in changes["retyped"]:
        yield Check("features", "fail", f"feature {name!r} has turned from text to numbers or back")
    if not changes["missing"] and not changes["retyped"]:
        yield Check("features", "pass", "every feature of the training data is there")
    for name, new in drift.unseen_categories(snapshot.profile, users).items():
        reason = (
            f"feature {name!r}: {new['share']:.1%} of merchants have a value the model never saw "
            f"({', '.join(new['examples'][:3])}), may be at most {config.max_unseen:.1%}"
        )
        yield Check(f"unseen {name}", "pass" if new["share"] <= config.max_unseen else "fail", reason)


def _shift(row: Shift) -> Check:
    """A shift as a check; a variable without values on a side cannot be compared."""
    if row.size is None:
        return Check(row.variable, "inconclusive", f"{row.variable}: no value on one side, nothing to compare")
    unit = "population stability index" if row.measure == "psi" else "standard deviations"
    means = f" (mean {row.before:.4g} before, {row.after:.4g} now)" if row.before is not None else ""
    reason = (
        f"{row.variable}{means} moved by {row.size:.3g} {unit}, may by {row.limit:.3g}; "
        f"chance of as much by luck {row.adjusted:.2g}"
    )
    return Check(row.variable, "fail" if row.shifted else "pass", reason)


def _at_most(name: str, interval: Interval, limit: float, of: str = "merchants") -> Check:
    """Fail when the whole interval is above the limit, pass when none of it is, inconclusive between."""
    if not interval.conclusive:
        return Check(name, "inconclusive", f"{name}: too few {of} for an interval ({interval.clusters})")
    shown = f"{interval.mean:.4g} [{interval.low:.4g}, {interval.high:.4g}] ({interval.clusters} {of})"
    reason = f"{name} is {shown}, may be at most {limit:g}"
    if interval.low > limit:
        return Check(name, "fail", reason)
    return Check(name, "pass" if interval.high <= limit else "inconclusive", reason)
