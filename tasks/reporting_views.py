"""From a run's evidence to what the report shows: sentences, rows and axes. No HTML here, and no file is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from tasks.reporting_charts import Axis, Reference, axis_for
from tasks.reporting_record import Figure, ReportError, RunRecord, figure
from tasks.reporting_summary import NO_TRUTH, data_counts
from tasks.reporting_words import ARMS, GATES, METRICS, SCORERS, STAGES, interval, metric_name, number, percent, signed

__all__ = ["data_view", "gates_view", "generator_view", "reward_view", "tiles_view", "times_view", "verdict_view"]

View = dict[str, Any]
ICONS = {"pass": "✓", "fail": "✗", "inconclusive": "?"}
#: Key of the reward metrics -> (what is compared, tone).
REWARD_DIFFERENCES = {
    "gain_over_user_blind": ("PerFusionRM minus tuned PickScore", "ours"),
    "right_minus_wrong_user": ("the right merchant's features minus another's", "ours"),
    "cold_gain_over_user_blind": ("merchants without history: PerFusionRM minus tuned PickScore", "ours"),
}
LIMITS = frozenset({"random", "user_blind_oracle", "reachable", "full_oracle"})


# -- the verdict ------------------------------------------------------------------------------------------------------


def verdict_view(record: RunRecord, serving: Mapping[str, int | None]) -> View:
    """The verdict in a few words, and the because in one or two sentences."""
    closed = [name for name in GATES if record.gates.get(name, {}).get("verdict", "pass") != "pass"]
    status = (record.outcome or {}).get("status")
    told = " ".join((record.outcome or {}).get("reasons", []))
    if closed:
        tone = record.gates[closed[0]]["verdict"]
        return {"tone": tone, "word": "Not promoted", "rest": _closed_gate(closed[0], tone), "because": _why(record, closed[0])}
    if status == "promoted":
        names = " and ".join(f"{name} {version}" for name, version in _champions(record, serving))
        rest = f"{names} now serve" if names else "the new models now serve"
        return {"tone": "pass", "word": "Promoted", "rest": rest, "because": _praise(record)}
    if status is not None:
        return {"tone": "none", "word": status.replace("_", " ").capitalize(), "rest": "", "because": told or _praise(record)}
    if record.gates:
        return {"tone": "none", "word": "No verdict yet", "rest": "the flow did not run to its end", "because": _praise(record)}
    because = "The stages ran without the flow (`dvc repro`), which asks no gate. " + _praise(record)
    return {"tone": "none", "word": "Not judged", "rest": "no gate was asked", "because": because.strip()}


def _closed_gate(gate: str, verdict: str) -> str:
    if verdict == "fail":
        return f"the {gate} gate said no"
    return f"the {gate} gate could not tell"


def _why(record: RunRecord, gate: str) -> str:
    """The gate's question, and the reasons that kept it closed."""
    reasons = [_split_reason(reason) for reason in record.gates[gate]["reasons"]]
    shut = [text for verdict, text in reasons if verdict != "pass"]
    serving = "What served before goes on serving."
    return f"{GATES.get(gate, '')} {'; '.join(shut[:3])}. {serving}".strip()


def _champions(record: RunRecord, serving: Mapping[str, int | None]) -> list[tuple[str, int]]:
    family = record.params.get("name", "perfusion")
    return [(name, version) for name, version in serving.items() if version is not None and name.startswith(family)]


def _praise(record: RunRecord) -> str:
    """What was measured, in words for somebody who never read the paper."""
    sentences = []
    if (closed := figure(record.reward, "gap_closed")) is not None:
        sentences.append(
            f"Of what past picks let anyone learn about merchants' own taste, the reward model has learned {percent(closed.mean)}."
        )
    gain = _difference(record, "perfusion", "base", _judge(record))
    swap = _difference(record, "perfusion", "wrong_user", _judge(record))
    if gain is not None and swap is not None:
        joint = "and" if gain.side == swap.side else "but"
        sentences.append(
            f"Pictures drawn for a merchant please that merchant {_more(gain)} than the base model's ({_told(gain)}), "
            f"{joint} {_more(swap)} than pictures drawn for another merchant ({_told(swap)})."
        )
    return " ".join(sentences)


def _more(gain: Figure) -> str:
    return {1: "more", -1: "less", 0: "not clearly more"}[gain.side]


def _told(gain: Figure) -> str:
    return f"{signed(gain.mean, 2)} {interval(gain, 2)}"


# -- tiles ------------------------------------------------------------------------------------------------------------


def tiles_view(record: RunRecord) -> list[View]:
    """The three questions a reader comes with."""
    return [tile for tile in (_taste_tile(record), _personal_tile(record), _better_tile(record)) if tile is not None]


def _taste_tile(record: RunRecord) -> View | None:
    ours = figure(record.scorers.get("perfusion_rm"), "gauc")
    if ours is None:
        return None
    blind = figure(record.scorers.get("user_blind"), "gauc")
    reachable = figure(record.scorers.get("reachable"), "gauc")
    closed = figure(record.reward, "gap_closed")
    marks = [Reference(0.5, "random", "base")]
    marks += [Reference(blind.mean, "user-blind", "blind")] if blind else []
    marks += [Reference(reachable.mean, "reachable", "limit")] if reachable else []
    text = "of the way from a user-blind model to the best that the same records allow." if closed else NO_TRUTH + "."
    return {
        "question": "Does it know a merchant's taste?",
        "big": percent(closed.mean) if closed else number(ours.mean),
        "unit": interval_percent(closed) if closed else f"GAUC {interval(ours)}",
        "text": text,
        "ruler": _ruler(ours, blind.mean if blind else 0.5, marks),
    }


def _ruler(value: Figure, start: float, marks: list[Reference]) -> View:
    """Marks along one line; names that would collide stand on two levels."""
    low = min(0.48, value.mean, *(mark.value for mark in marks))
    axis = Axis(low, 1.0, ())
    marks = sorted(marks, key=lambda mark: mark.value)
    at = [axis.at(mark.value) for mark in marks]
    crowded = any(right - left < 42 for left, right in zip(at, at[1:], strict=False))
    levels = [index % 2 if crowded else 0 for index in range(len(marks))]
    return {"axis": axis, "start": start, "value": value, "marks": marks, "levels": levels}


def interval_percent(value: Figure | None) -> str:
    """The bounds of a share, in percent."""
    if value is None or value.low is None or value.high is None:
        return ""
    return f"[{percent(value.low)}, {percent(value.high)}]"


def _personal_tile(record: RunRecord) -> View | None:
    judge = _judge(record)
    swap = _difference(record, "perfusion", "wrong_user", judge)
    if swap is None:
        return None
    rate = figure(record.generator, "user_swap_win_rate")
    share = f" The right picture wins for {percent(rate.mean)} of merchants." if rate else ""
    return {
        "question": "Does each merchant get their own pictures?",
        "big": signed(swap.mean, 2),
        "unit": interval(swap, 2),
        "text": f"{metric_name(judge)} of a picture made for the merchant, minus one made for another.{share}",
        "ruler": None,
        "axis": axis_for([swap], zero=True, count=4),
        "figure": swap,
        "tone": "ours" if swap.side > 0 else "wrong",
    }


def _better_tile(record: RunRecord) -> View | None:
    judge = _judge(record)
    gain = _difference(record, "perfusion", "base", judge)
    if gain is None:
        return None
    dpo = _difference(record, "perfusion", "dpo", judge)
    text = f"{metric_name(judge)} of PerFusion minus the base model, same prompts and noise."
    if dpo is not None:
        text += f" Against DPO, which knows no merchant: {signed(dpo.mean, 2)} {interval(dpo, 2)}."
    return {
        "question": "Are the pictures better?",
        "big": signed(gain.mean, 2),
        "unit": interval(gain, 2),
        "text": text,
        "ruler": None,
        "axis": axis_for([gain], zero=True, count=4),
        "figure": gain,
        "tone": "ours" if gain.side > 0 else "wrong",
    }


def _judge(record: RunRecord) -> str:
    """True utility where there is a truth, else our own reward model."""
    known = any("true_utility" in metrics for metrics in record.arms.values())
    return "true_utility" if known else "perfusion_rm"


def _difference(record: RunRecord, arm: str, other: str, metric: str) -> Figure | None:
    return figure(record.differences.get(f"{arm} - {other}"), metric)


# -- gates ------------------------------------------------------------------------------------------------------------


def gates_view(record: RunRecord) -> list[View]:
    """Every gate in the order of the flow; one that was not asked says so."""
    names = [*GATES, *(name for name in record.gates if name not in GATES)]
    return [_gate(name, record.gates.get(name)) for name in names]


def _gate(name: str, decision: Mapping[str, Any] | None) -> View:
    view: View = {"name": name, "question": GATES.get(name, ""), "verdict": "not asked", "tone": "none", "checks": []}
    if decision is None:
        return view
    checks = [_split_reason(reason) for reason in decision["reasons"]]
    statistics = dict(_flatten(decision["statistics"]))
    figures = {key: value for key, value in statistics.items() if isinstance(value, Figure)}
    return view | {
        "verdict": decision["verdict"],
        "tone": decision["verdict"],
        "checks": [{"tone": verdict, "icon": ICONS.get(verdict, "·"), "text": text} for verdict, text in checks],
        "figures": figures,
        "numbers": {key: value for key, value in statistics.items() if not isinstance(value, Figure)},
        "thresholds": dict(_flatten(decision["thresholds"])),
    }


def _split_reason(reason: str) -> tuple[str, str]:
    """ "fail: too few" -> ("fail", "too few"); a reason without a verdict keeps its text."""
    verdict, colon, text = reason.partition(": ")
    return (verdict, text) if colon and verdict in ICONS else ("", reason)


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
    rows = [
        {"name": title, "map": figure(gains, "map"), "gauc": figure(gains, "gauc"), "tone": tone}
        for key, (title, tone) in REWARD_DIFFERENCES.items()
        if (gains := (record.reward or {}).get(key)) is not None
    ]
    return {"rows": rows, "axis": axis_for([row["gauc"] for row in rows], zero=True)}


def _slices(record: RunRecord) -> View:
    """The gain for every value of every merchant feature, feature by feature."""
    table = record.slices
    if table is None or table.empty:
        return {"rows": [], "axis": None}
    rows = []
    for row in table.to_dict("records"):
        low, high = ((None if pd.isna(row[key]) else float(row[key])) for key in ("gain_low", "gain_high"))
        gain = Figure(float(row["gain"]), low, high)
        tone = "base" if gain.side == 0 else "ours" if gain.side > 0 else "wrong"
        plain = {key: row[key] for key in ("feature", "value", "users", "groups", "gauc", "user_blind_gauc")}
        rows.append({**plain, "gain": gain, "tone": tone})
    return {"rows": rows, "axis": axis_for([row["gain"] for row in rows], zero=True)}


def generator_view(record: RunRecord) -> View | None:
    """Every metric of every arm, the judge's first and drawn; then the paired differences."""
    if record.generator is None:
        return None
    arms = record.arms
    names = [name for name in ARMS if name in arms] + [name for name in arms if name not in ARMS]
    judge = _judge(record)
    seen = {metric for metrics in arms.values() for metric in metrics if not metric.endswith("_ci")}
    others = sorted((m for m in seen if m != judge and _is_figure(arms, m)), key=_metric_order)
    rows = [
        {
            "name": ARMS.get(name, (name, "base", ""))[0],
            "tone": ARMS.get(name, (name, "base", ""))[1],
            "note": ARMS.get(name, (name, "base", ""))[2],
            "strong": name == "perfusion",
            "judge": figure(arms[name], judge),
            "others": [figure(arms[name], metric) for metric in others],
        }
        for name in names
    ]
    pairs = [_pair_row(name, metrics, judge) for name, metrics in record.differences.items()]
    return {
        "judge": judge,
        "others": others,
        "rows": rows,
        "axis": axis_for([row["judge"] for row in rows]),
        "pairs": pairs,
        "pair_axis": axis_for([row["figure"] for row in pairs], zero=True),
        "facts": record.generator,
        "win_rate": figure(record.generator, "user_swap_win_rate"),
    }


def _pair_row(name: str, metrics: Mapping[str, Any], judge: str) -> View:
    left, _, right = name.partition(" - ")
    value = figure(metrics, judge)
    tone = "base" if value is None or value.side == 0 else "ours" if value.side > 0 else "wrong"
    return {
        "name": f"{ARMS.get(left, (left,))[0]} minus {ARMS.get(right, (right,))[0]}",
        "figure": value,
        "tone": tone,
        "wins": figure(metrics, "wins") or figure(metrics, f"{judge}_wins"),
    }


def _is_figure(arms: Mapping[str, Mapping[str, Any]], metric: str) -> bool:
    return any(figure(metrics, metric) is not None for metrics in arms.values() if not isinstance(metrics.get(metric), str))


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
        ("used", "ours", {f"{name}": n for name, n in split.get("splits", {}).items() if name != "few"}),
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
    rules = [rule for rule in checked.get("rules") or [] if rule.get("failed")]
    return {f"{rule['table']}: {rule['rule']}": rule["failed"] for rule in sorted(rules, key=lambda rule: -rule["failed"])}


def times_view(record: RunRecord) -> View:
    """Seconds by stage in the order of the graph; a part of a stage that ran beside another is not added up."""
    rows = [{"name": name, "does": STAGES.get(name, ""), "seconds": record.seconds[name], "part": name not in STAGES}
            for name in [*STAGES, *(n for n in record.seconds if n not in STAGES)] if name in record.seconds]  # fmt: skip
    longest = max((row["seconds"] for row in rows), default=1.0)
    total = sum(row["seconds"] for row in rows if not row["part"])
    return {"rows": [row | {"width": 100 * row["seconds"] / max(longest, 1e-9)} for row in rows], "total": total}
