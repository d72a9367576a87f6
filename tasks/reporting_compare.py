"""Two runs side by side: what differs in configuration and data, and whether the difference in results is luck.

Figures are compared on shared items only: the same held-out groups, and the same (user, prompt, seed). What one run has
and the other lacks is counted and left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from pydantic import ValidationError

from perfusion.config import GatesConfig, Params
from perfusion.seeding import derive_seed
from perfusion.statistics import Interval, cluster_bootstrap, paired_difference
from tasks.reporting_charts import Axis
from tasks.reporting_pictures import ITEM, picture_cell, traits
from tasks.reporting_record import Figure, RunRecord
from tasks.reporting_views import gates_view
from tasks.reporting_words import ARMS, METRICS, SCORERS, flatten, interval, metric_name, signed

__all__ = ["comparison_view"]

View = dict[str, Any]
#: Scorer of pictures -> the stage whose model it is; scores of different models are not on one scale.
RULERS = {"perfusion_rm": "reward", "pickscore": "pickscore", "clip_score": "backbones", "aesthetic": "backbones"}
SHOWN_ARMS = ("base", "dpo", "perfusion")
EXTREMES = 4


def comparison_view(a: RunRecord, b: RunRecord, pictures: int = 12) -> View:
    """All that the comparison page shows of runs `a` and `b`.

    Args:
        a: the earlier, or the one that serves.
        b: the one asked about; differences are b minus a.
        pictures: how many shared items to show, beside those that changed most; chosen by name, not by result.
    """
    options = _options(b)
    rewards, generators = _reward_rows(a, b, options), _picture_rows(a, b, options)
    rows = rewards["rows"] + generators["rows"]
    return {
        "a": _head(a),
        "b": _head(b),
        "verdict": _verdict(rows),
        "config": config_difference(a.params, b.params),
        "data": {"a": a.data_digest, "b": b.data_digest, "same": _same(a.data_digest, b.data_digest)},
        "groups": rewards,
        "items": generators,
        "gates": list(_gates(a, b)),
        "pictures": _pictures(a, b, pictures),
    }


def config_difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> View:
    """Parameters whose resolved values differ, each with what it means; what a file leaves out has its default."""
    left, right = _resolve(a), _resolve(b)
    meanings = dict(_meanings(Params))
    ours, theirs = dict(flatten(left["values"])), dict(flatten(right["values"]))
    keys = [*ours, *(key for key in theirs if key not in ours)]
    absent = "not there"
    rows = [
        {"key": key, "a": ours.get(key, absent), "b": theirs.get(key, absent), "meaning": meanings.get(key, "")}
        for key in keys
        if ours.get(key, absent) != theirs.get(key, absent)
    ]
    return {"rows": rows, "same": len(keys) - len(rows), "as_written": left["as_written"] or right["as_written"]}


def _resolve(params: Mapping[str, Any]) -> View:
    """Every parameter with its default filled in; a file of another version of the code stays as it was written."""
    try:
        return {"values": Params.model_validate(dict(params)).model_dump(mode="json"), "as_written": False}
    except ValidationError:
        return {"values": params, "as_written": True}


def _meanings(section: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, description) of every parameter."""
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}", field.description or ""
        if hasattr(field.annotation, "model_fields"):
            yield from _meanings(field.annotation, f"{prefix}{name}.")


def _options(record: RunRecord) -> dict[str, Any]:
    """How the bootstrap is done: as the later run's gates do it."""
    gates = GatesConfig.model_validate(record.params.get("gates", {}))
    return gates.interval_options(int(record.params.get("seed", 0)))


# -- figures ----------------------------------------------------------------------------------------------------------


def _reward_rows(a: RunRecord, b: RunRecord, options: Mapping[str, Any]) -> View:
    """MAP and GAUC of the scorers that both runs had, on the held-out groups that both ranked."""
    if a.groups is None or b.groups is None:
        return _nothing(f"{'A' if a.groups is None else 'B'} kept no table of ranked groups")
    left, right = (table[table["split"] == "test"] for table in (a.groups, b.groups))
    matched = _match(left, right, ["record_id", "user_id"], same=["candidates", "picked"])
    rows = [
        _row(f"{SCORERS[scorer][0]}: {label}", matched["both"], f"{prefix}_{scorer}", options, digits=3, ruler="same")
        for scorer in ("perfusion_rm", "user_blind", "clip")
        for label, prefix in (("GAUC", "auc"), ("MAP", "ap"))
        if f"{prefix}_{scorer}_a" in matched["both"] and f"{prefix}_{scorer}_b" in matched["both"]
    ]
    return {"rows": rows if len(matched["both"]) else [], **matched["counts"]}


def _picture_rows(a: RunRecord, b: RunRecord, options: Mapping[str, Any]) -> View:
    """Every scorer that both runs had, on PerFusion's pictures of the items that both drew."""
    if a.pictures is None or b.pictures is None:
        return _nothing(f"{'A' if a.pictures is None else 'B'} kept no table of pictures")
    left, right = _items(a.pictures, "perfusion"), _items(b.pictures, "perfusion")
    matched = _match(left, right, list(ITEM), same=[name for name in left if name.startswith("slice_")])
    both = matched["both"]
    scorers = [name for name in _scorers(left) if f"{name}_a" in both and f"{name}_b" in both]
    rows = [
        _row(f"PerFusion: {metric_name(name)}", both, name, options, digits=2, ruler=_ruler(a, b, name))
        for name in scorers
    ]
    return {"rows": rows if len(both) else [], **matched["counts"]}


def _nothing(why: str) -> View:
    return {"rows": [], "shared": 0, "only_a": 0, "only_b": 0, "differ": 0, "missing": why}


def _match(left: pd.DataFrame, right: pd.DataFrame, keys: list[str], same: list[str]) -> View:
    """Items of both tables, paired by name; a name that means different things in the two runs is left out.

    Args:
        left, right: one row per item.
        keys: what names an item.
        same: columns that must agree for a name to mean the same item.
    """
    both = left.merge(right, on=keys, suffixes=("_a", "_b"))
    known = [name for name in same if f"{name}_a" in both and f"{name}_b" in both]
    equal = np.ones(len(both), dtype=bool)
    for name in known:
        one, other = both[f"{name}_a"], both[f"{name}_b"]
        equal &= ((one == other) | (one.isna() & other.isna())).to_numpy(dtype=bool)
    shared = int(equal.sum())
    counts = {
        "shared": shared,
        "only_a": len(left) - len(both),
        "only_b": len(right) - len(both),
        "differ": len(both) - shared,
        "missing": None if shared else "the runs share no item",
    }
    return {"both": both[equal].reset_index(drop=True), "counts": counts}


def _items(pictures: pd.DataFrame, arm: str) -> pd.DataFrame:
    """An arm's scores, averaged per item where an item has several pictures."""
    rows = pictures[pictures["arm"] == arm]
    items = rows.groupby(list(ITEM), sort=True)
    slices = [name for name in rows if name.startswith("slice_")]
    return items[slices].first().join(items[_scorers(rows)].mean()).reset_index()


def _scorers(pictures: pd.DataFrame) -> list[str]:
    """The columns that are scores, the judge's first."""
    order = list(METRICS)
    names = [name for name in pictures.select_dtypes("number") if name.partition("[")[0] in order]
    return sorted(names, key=lambda name: order.index(name.partition("[")[0]))


def _ruler(a: RunRecord, b: RunRecord, scorer: str) -> str:
    """Whether both runs' numbers come from one and the same scoring model: "same", "other" or "unknown"."""
    stage = RULERS.get(scorer.partition("[")[0])
    if stage is None:
        return "same"
    left, right = a.models.get(stage), b.models.get(stage)
    if left is None or right is None:
        return "unknown"
    return "same" if left == right else "other"


def _row(name: str, both: pd.DataFrame, column: str, options: Mapping[str, Any], *, digits: int, ruler: str) -> View:
    """A figure of both runs on shared items and the interval of their paired difference, on a scale of its own."""
    left, right, users = both[f"{column}_a"], both[f"{column}_b"], both["user_id"]
    difference = _figure(paired_difference(right, left, users, **options))
    reach = 1.15 * max(abs(v) for v in (difference.mean, difference.low, difference.high, 1e-9) if v is not None)
    return {
        "name": name, "column": column, "ruler": ruler, "digits": digits,
        "tone": {1: "ours", -1: "wrong", 0: "base"}[difference.side] if ruler != "other" else "base",
        "a": _figure(cluster_bootstrap(left, users, **options)),
        "b": _figure(cluster_bootstrap(right, users, **options)),
        "difference": difference,
        "axis": Axis(-reach, reach, (), (), zero=True),
    }  # fmt: skip


def _figure(value: Interval) -> Figure:
    low, high = (v if np.isfinite(v) else None for v in (value.low, value.high))
    return Figure(value.mean, low, high)


# -- words ------------------------------------------------------------------------------------------------------------


def _head(record: RunRecord) -> View:
    return {"title": record.title, "status": (record.outcome or {}).get("status", "")}


def _verdict(rows: Sequence[View]) -> View:
    """One sentence: what B changed for merchants, and what it changed for the reward model."""
    told = [_tell(rows, "true_utility", "pictures"), _tell(rows, "auc_perfusion_rm", "the reward model's ranking")]
    sides = [side for side, _ in filter(None, told)]
    if not sides:
        because = "The runs share no item that both were measured on."
        return {"tone": "none", "word": "Not comparable", "because": because}
    word, tone = "No clear difference", "none"
    if {1, -1} <= set(sides):
        word, tone = "Mixed", "open"
    elif 1 in sides:
        word, tone = "B is better", "pass"
    elif -1 in sides:
        word, tone = "B is worse", "fail"
    return {"tone": tone, "word": word, "because": " ".join(text for _, text in filter(None, told))}


def _tell(rows: Sequence[View], column: str, what: str) -> tuple[int, str] | None:
    row = next((row for row in rows if row["column"] == column), None)
    if row is None or row["ruler"] == "other":
        return None
    change, digits = row["difference"], row["digits"]
    verb = {1: "gained", -1: "lost", 0: "did not clearly change"}[change.side]
    unit = "true utility" if column == "true_utility" else "GAUC"
    sentence = f"{what}: {unit} {verb} ({signed(change.mean, digits)} {interval(change, digits)})."
    return change.side, sentence[0].upper() + sentence[1:]


def _same(left: str | None, right: str | None) -> str:
    if left is None or right is None:
        return "unknown"
    return "same" if left == right else "other"


def _gates(a: RunRecord, b: RunRecord) -> Iterator[View]:
    others = {gate["name"]: gate for gate in gates_view(b)}
    for gate in gates_view(a):
        yield {"name": gate["name"], "question": gate["question"], "a": gate, "b": others[gate["name"]]}


# -- pictures ---------------------------------------------------------------------------------------------------------


def _pictures(a: RunRecord, b: RunRecord, count: int) -> View | None:
    """Shared items with both runs' pictures: some chosen by their names alone, and those that changed most."""
    if a.pictures is None or b.pictures is None:
        return None
    left, right = _first_pictures(a.pictures), _first_pictures(b.pictures)
    arms = [arm for arm in SHOWN_ARMS if arm in left and arm in right]
    if "perfusion" not in arms:
        return None
    common = left["perfusion"].index.intersection(right["perfusion"].index)
    shared = sorted(common, key=lambda item: derive_seed(0, *item))
    if not shared:
        return None
    judge = _judge(left["perfusion"], right["perfusion"])
    changes = _changes(left["perfusion"], right["perfusion"], shared, judge)
    ordered = sorted(changes, key=lambda item: changes[item])
    blocks = [("Chosen by name alone, not by result", shared[:count])]
    if judge is not None and len(shared) > count:
        blocks += [("Where B gained most", ordered[::-1][:EXTREMES]), ("Where B lost most", ordered[:EXTREMES])]

    def row(item: tuple[Any, ...]) -> View:
        cells = []
        for arm in arms:
            pair = [_cell(record, table[arm], item) for record, table in ((a, left), (b, right))]
            same = pair[0] is not None and pair[1] is not None and pair[0]["uri"] == pair[1]["uri"]
            cells.append({"a": pair[0], "b": pair[1], "same": same})
        user, prompt, seed = item
        return {"user": user, "prompt": prompt, "seed": seed, "traits": traits(left["perfusion"].loc[[item]]),
                "cells": cells, "change": changes.get(item)}  # fmt: skip

    return {
        "arms": [ARMS[arm][0] for arm in arms],
        "judge": judge,
        "blocks": [{"title": title, "rows": [row(item) for item in items]} for title, items in blocks],
        "shared": len(shared),
    }


def _first_pictures(pictures: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Arm -> its first picture of every item, by item."""
    first = pictures.drop_duplicates(["arm", *ITEM])
    return {str(arm): rows.set_index(list(ITEM), drop=False) for arm, rows in first.groupby("arm")}


def _judge(left: pd.DataFrame, right: pd.DataFrame) -> str | None:
    """True utility if both runs know it; no other judge is sure to be the same in both."""
    return "true_utility" if "true_utility" in left and "true_utility" in right else None


def _changes(left: pd.DataFrame, right: pd.DataFrame, items: Sequence[Any], judge: str | None) -> dict[Any, float]:
    if judge is None:
        return {}
    return {item: float(right.loc[item, judge]) - float(left.loc[item, judge]) for item in items}


def _cell(record: RunRecord, table: pd.DataFrame, item: tuple[Any, ...]) -> View | None:
    return picture_cell(record, table.loc[item]) if item in table.index else None
