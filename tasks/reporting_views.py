"""From a run's evidence to what the report shows: sentences, rows and axes. No HTML here, and no file is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from tasks.reporting_charts import Reference, axis_for
from tasks.reporting_record import Figure, ReportError, RunRecord, figure
from tasks.reporting_summary import data_counts
from tasks.reporting_words import ARMS, GATES, ICONS, METRICS, PAIRS, SCORERS, STAGES, humane, metric_name, split_reason

__all__ = ["data_view", "gates_view", "generator_view", "reward_view", "times_view"]

View = dict[str, Any]
#: Key of the reward metrics -> what is compared.
REWARD_DIFFERENCES = {
    "gain_over_user_blind": "PerFusionRM minus tuned PickScore",
    "right_minus_wrong_user": "the right merchant's features minus another's",
    "cold_gain_over_user_blind": "merchants without history: PerFusionRM minus tuned PickScore",
}
SHOWN_PASSES = 6  # checks of a gate that passed and are not folded away
SPLITS = ("train", "valid", "test", "cold")
LIMITS = frozenset({"random", "user_blind_oracle", "reachable", "full_oracle"})


def gates_view(record: RunRecord) -> list[View]:
    """Every gate in the order of the flow; one that was not asked says so."""
    names = [*GATES, *(name for name in record.gates if name not in GATES)]
    run_id = (record.outcome or {}).get("run_id")
    return [_gate(name, record.gates.get(name), run_id) for name in names]


def _gate(name: str, decision: Mapping[str, Any] | None, run_id: str | None) -> View:
    view: View = {
        "name": name,
        "question": GATES.get(name, ""),
        "verdict": "not asked",
        "tone": "none",
        "checks": [],
        "more": [],
        "earlier": None,
    }
    if decision is None:
        return view
    checks = [split_reason(reason) for reason in decision["reasons"]]
    passed = [check for check in checks if check[0] == "pass"]
    more = passed[SHOWN_PASSES:] if len(passed) > SHOWN_PASSES + 1 else []
    shown = [check for check in checks if check not in more]
    statistics = dict(_flatten(decision["statistics"]))
    figures = {key: value for key, value in statistics.items() if isinstance(value, Figure)}
    return view | {
        "verdict": decision["verdict"],
        "tone": decision["verdict"],
        "earlier": asked if (asked := decision.get("run_id")) != run_id else None,
        "checks": [_check(*check) for check in shown],
        "more": [_check(*check) for check in more],
        "figures": figures,
        "numbers": {key: value for key, value in statistics.items() if not isinstance(value, Figure)},
        "thresholds": dict(_flatten(decision["thresholds"])),
    }


def _check(verdict: str, text: str) -> View:
    return {"tone": verdict, "icon": ICONS.get(verdict, "·"), "text": humane(text)}


def _flatten(record: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """(dotted name, value) of a nested record; an interval is one value."""
    for key, value in record.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping) and "mean" in value and "low" in value:
            yield name, figure({"value": value}, "value")
        elif isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key} · ")
        else:
            yield name, value


# -- models -----------------------------------------------------------------------------------------------------------


def reward_view(record: RunRecord) -> View | None:
    """MAP and GAUC of every scorer on one axis of GAUC, between the floor and the ceiling."""
    if record.reward is None:
        return None
    scorers = record.scorers
    names = [name for name in SCORERS if name in scorers] + [name for name in scorers if name not in SCORERS]
    rows = [_scorer_row(name, scorers[name], record.floor_map) for name in names]
    references = [Reference(0.5, "random", "base")]
    if (reachable := figure(scorers.get("reachable"), "gauc")) is not None:
        references.append(Reference(reachable.mean, "reachable", "limit"))
    return {
        "rows": rows,
        "axis": axis_for([row["gauc"] for row in rows], references),
        "floor": record.floor_map,
        "facts": record.reward,
        "slices": _slices(record),
        "differences": _reward_differences(record),
    }


def _scorer_row(name: str, metrics: Mapping[str, Any], floor: float | None) -> View:
    title, tone, note = SCORERS.get(name, (metric_name(name), "base", ""))
    return {
        "name": title,
        "tone": tone,
        "note": note,
        "strong": name == "perfusion_rm",
        "limit": name in LIMITS,
        "map": figure(metrics, "map"),
        "gauc": figure(metrics, "gauc"),
        "floor": metrics.get("floor_map", floor),
    }


def _reward_differences(record: RunRecord) -> View:
    rows: list[View] = [
        {"name": title, "map": figure(gains, "map"), "gauc": gauc, "tone": _tone(gauc)}
        for key, title in REWARD_DIFFERENCES.items()
        if (gains := (record.reward or {}).get(key)) is not None and (gauc := figure(gains, "gauc")) is not None
    ]
    return {"rows": rows, "axis": axis_for([row["gauc"] for row in rows], zero=True)}


def _slices(record: RunRecord) -> View:
    """The gain for every value of every merchant feature, feature by feature."""
    table = record.slices
    if table is None or table.empty:
        return {"rows": [], "axis": None}
    rows: list[View] = []
    for row in table.to_dict("records"):
        low, high = ((None if pd.isna(row[key]) else float(row[key])) for key in ("gain_low", "gain_high"))
        gain = Figure(float(row["gain"]), low, high)
        plain = {key: row[key] for key in ("feature", "value", "users", "groups", "gauc", "user_blind_gauc")}
        rows.append({**plain, "gain": gain, "tone": _tone(gain)})
    return {"rows": rows, "axis": axis_for([row["gain"] for row in rows], zero=True)}


def generator_view(record: RunRecord) -> View | None:
    """Every metric of every arm, the judge's first and drawn; then the paired differences."""
    if record.generator is None:
        return None
    arms = record.arms
    names = [name for name in ARMS if name in arms] + [name for name in arms if name not in ARMS]
    judge = record.judge
    seen = {metric for metrics in arms.values() for metric in metrics if not metric.endswith("_ci")}
    others = sorted((m for m in seen if m != judge and _is_figure(arms, m)), key=_metric_order)
    rows: list[View] = [
        {
            "name": ARMS.get(name, (name, "base", ""))[0],
            "tone": ARMS.get(name, (name, "base", ""))[1],
            "note": ARMS.get(name, (name, "base", ""))[2],
            "strong": name == "perfusion",
            "judge": figure(arms[name], judge),
        }
        for name in names
    ]
    differences = record.differences
    names_of_pairs = [*(p for p in PAIRS if p in differences), *(p for p in differences if p not in PAIRS)]
    pairs = [_pair_row(name, differences[name], judge) for name in names_of_pairs]
    return {
        "judge": judge,
        "others": [
            {
                "name": metric_name(metric),
                "meaning": METRICS.get(metric.partition("[")[0], ("", ""))[1],
                "values": [figure(arms[name], metric) for name in names],
            }
            for metric in others
        ],
        "rows": rows,
        "axis": axis_for([row["judge"] for row in rows]),
        "pairs": pairs,
        "pair_axis": axis_for([row["figure"] for row in pairs], zero=True),
        "facts": record.generator,
        "win_rate": figure(record.generator, "user_swap_win_rate"),
        "swap_share": figure(record.generator, "swap_share_of_gain"),
        "agreement": figure(record.generator.get("rank_agreement"), "kendall"),
        "costs": record.generator.get("costs", {}),
    }


def _pair_row(name: str, metrics: Mapping[str, Any], judge: str) -> View:
    left, _, right = name.partition(" - ")
    value = figure(metrics, judge)
    return {
        "name": PAIRS.get(name, f"{left} minus {right}"),
        "figure": value,
        "tone": _tone(value),
        "wins": figure(metrics, "wins"),
    }


def _tone(value: Figure | None) -> str:
    """The colour of a difference: ours when surely above 0, wrong when surely below."""
    return {1: "ours", -1: "wrong", 0: "base"}[0 if value is None else value.side]


def _is_figure(arms: Mapping[str, Mapping[str, Any]], metric: str) -> bool:
    values = [metrics.get(metric) for metrics in arms.values()]
    return any(isinstance(value, (int, float, Mapping)) for value in values)


def _metric_order(metric: str) -> tuple[int, str]:
    plain = metric.partition("[")[0]
    return (list(METRICS).index(plain) if plain in METRICS else len(METRICS), metric)


# -- data, time -------------------------------------------------------------------------------------------------------


def data_view(record: RunRecord) -> View | None:
    """Group records by fate, each fate with its reasons; Table 1; coverage."""
    missing: dict[str, str] = {}
    counts = data_counts(record, missing)
    if counts is None:
        return None
    checked, split = record.metrics["validate"], record.metrics["split"]
    fates = [
        ("used", "ours", {name: split["splits"][name] for name in SPLITS if name in split.get("splits", {})}),
        ("filtered", "base", {"merchants under the record minimum; kept for the cold-start slice": split["filtered"]}),
        ("dropped", "blind", split["dropped"]),
        ("quarantined", "wrong", _quarantine_reasons(checked)),
    ]
    if sum(counts[name] for name, _, _ in fates) != counts["groups_in"]:
        raise ReportError(f"{record.work}: the fates of {counts['groups_in']} records do not add up: {counts}")
    total = max(1, counts["groups_in"])
    start, segments = 0.0, []
    for name, tone, reasons in fates:
        width = 100.0 * counts[name] / total
        segments.append({"name": name, "tone": tone, "count": counts[name], "share": counts[name] / total,
                         "start": round(start, 3), "width": round(width, 3), "reasons": reasons})  # fmt: skip
        start += width
    return {"in": counts["groups_in"], "segments": segments, "table_one": split.get("table_one"),
            "coverage": checked.get("coverage"), "drift": checked.get("drift"), "users": split.get("users"),
            "rules": [rule for rule in checked.get("rules") or [] if rule.get("failed")]}  # fmt: skip


def _quarantine_reasons(checked: Mapping[str, Any]) -> dict[str, int]:
    """Rules of the groups table that failed, the worst first; a record that broke several counts under each."""
    failed = [rule for rule in checked.get("rules") or [] if rule["table"] == "groups" and rule["failed"]]
    return {rule["rule"]: rule["failed"] for rule in sorted(failed, key=lambda rule: -rule["failed"])}


def times_view(record: RunRecord) -> View:
    """Seconds by stage in the order of the graph; a part of a stage that ran beside another is not added up."""
    seconds = record.seconds
    names = [name for name in (*STAGES, *(name for name in seconds if name not in STAGES)) if name in seconds]
    longest = max([1e-9, *(seconds[name] for name in names)])
    rows = [
        {
            "name": name,
            "does": STAGES.get(name, ""),
            "seconds": seconds[name],
            "part": name not in STAGES,
            "width": 100 * seconds[name] / longest,
        }
        for name in names
    ]
    return {"rows": rows, "total": sum(seconds[name] for name in names if name in STAGES)}
