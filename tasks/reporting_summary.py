"""The headline figures of the last run, for machines: what `perfusion report --json` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tasks.reporting_record import Figure, ReportError, RunRecord, figure

__all__ = ["GENERATOR_ARMS", "champions", "data_counts", "summarise"]

GENERATOR_ARMS = ("base", "sft", "dpo", "perfusion", "wrong_user")
NO_GAP = "the reachable ceiling is not surely above the user-blind baseline, so there is no gap to close"
NO_TRUTH = "this dataset has no planted truth (no world.json), so nothing knows what is reachable"


def summarise(record: RunRecord, serving: Mapping[str, int | None]) -> dict[str, Any]:
    """The summary of a run. What does not exist is None, and `missing` says why.

    Args:
        record: what the run left behind.
        serving: registered model name -> champion's version.

    Raises:
        ReportError: the data counts do not add up.
    """
    missing: dict[str, str] = {}
    summary = {
        "data": data_counts(record, missing),
        "reward": _reward(record, missing),
        "generator": _generator(record, missing),
        "gates": {name: decision["verdict"] for name, decision in record.gates.items()},
        "gate_runs": {name: decision.get("run_id") for name, decision in record.gates.items()},
        "champion": champions(record, serving),
        "seconds": dict(record.seconds),
        "outcome": record.outcome,
    }
    if not record.gates:
        missing["gates"] = "no gate was asked: the flow has not run here (`dvc repro` alone runs none)"
    return {**summary, "missing": missing}


def data_counts(record: RunRecord, missing: dict[str, str]) -> dict[str, int] | None:
    """Group records by fate; in = used + quarantined + filtered + dropped, or nothing is reported.

    Raises:
        ReportError: the counts do not add up; names them.
    """
    checked, split = record.metrics.get("validate"), record.metrics.get("split")
    if checked is None or split is None:
        missing["data"] = _not_reached(record, "validate" if checked is None else "split")
        return None
    counts = {
        "groups_in": int(checked["groups_in"]),
        "quarantined": int(checked["quarantined"]),
        "filtered": int(split["filtered"]),
        "dropped": sum(split["dropped"].values()),
        "used": int(split["used"]),
    }
    fates = counts["used"] + counts["quarantined"] + counts["filtered"] + counts["dropped"]
    if fates != counts["groups_in"]:
        raise ReportError(
            f"{record.work}/metrics: {counts['groups_in']} group records came in, but {fates} are accounted for "
            f"({counts})\nremedy: validate.json and split.json are of different runs; run `make retrain` again"
        )
    return counts


def _reward(record: RunRecord, missing: dict[str, str]) -> dict[str, Any] | None:
    if record.reward is None:
        missing["reward"] = _not_reached(record, "evaluate-reward")
        return None
    scorers = record.scorers
    ours, blind, reachable = (_gauc(scorers, name) for name in ("perfusion_rm", "user_blind", "reachable"))
    if reachable is None:
        missing["reward.reachable_gauc"] = missing["reward.gap_closed"] = NO_TRUTH
    closed = figure(record.reward, "gap_closed")
    if reachable is not None and closed is None:
        missing["reward.gap_closed"] = NO_GAP
    mean_ap = figure(scorers.get("perfusion_rm"), "map")
    return {
        "floor_map": record.floor_map,
        "user_blind_gauc": blind.mean if blind else None,
        "reachable_gauc": reachable.mean if reachable else None,
        "perfusion_rm": {
            "map": mean_ap.mean if mean_ap else None,
            "gauc": ours.mean if ours else None,
            "gauc_ci": _bounds(ours),
        },
        "gap_closed": closed.mean if closed else None,
        "gap_closed_ci": _bounds(closed),
    }


def _generator(record: RunRecord, missing: dict[str, str]) -> dict[str, Any] | None:
    if record.generator is None:
        missing["generator"] = _not_reached(record, "evaluate-generator")
        return None
    arms = record.arms
    shown: dict[str, Any] = {arm: _arm(arms[arm]) if arm in arms else None for arm in GENERATOR_ARMS}
    for arm in GENERATOR_ARMS:
        if shown[arm] is None:
            missing[f"generator.{arm}"] = "this arm was not generated"
        elif shown[arm]["true_utility"] is None:
            missing[f"generator.{arm}.true_utility"] = NO_TRUTH
    swap = figure(record.generator, "user_swap_win_rate")
    return {
        **shown,
        "user_swap_win_rate": swap.mean if swap else None,
        "user_swap_win_rate_ci": _bounds(swap),
        "paired": {name: _arm(metrics) for name, metrics in record.differences.items()},
    }


def _arm(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """true_utility and ci first, as the contract has it; every other metric with its own `.._ci` behind them."""
    found = {name: figure(metrics, name) for name in metrics if not name.endswith("_ci")}
    truth = found.pop("true_utility", None)
    record: dict[str, Any] = {"true_utility": truth.mean if truth else None, "ci": _bounds(truth)}
    for name, value in found.items():
        record |= {name: value.mean if value else None, f"{name}_ci": _bounds(value)}
    return record


def champions(record: RunRecord, serving: Mapping[str, int | None]) -> dict[str, int | None]:
    """The version that serves, by role."""
    family = record.params.get("name", "perfusion")
    return {role: serving.get(f"{family}-{role}") for role in ("reward", "generator")}


def _gauc(scorers: Mapping[str, Mapping[str, Any]], name: str) -> Figure | None:
    return figure(scorers.get(name), "gauc")


def _bounds(value: Figure | None) -> list[float] | None:
    return [value.low, value.high] if value is not None and value.low is not None and value.high is not None else None


def _not_reached(record: RunRecord, stage: str) -> str:
    closed = [name for name, decision in record.gates.items() if decision["verdict"] != "pass"]
    if closed:
        return f"stage {stage!r} was not reached: the {closed[0]} gate is closed"
    return f"stage {stage!r} was not reached" if record.outcome else f"stage {stage!r} has not run"
