"""One builder for each study: reads what its stages left and makes its table."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from perfusion.statistics import Interval
from perfusion.studies.costs import SYSTEMS, ratios
from perfusion.studies.figures import boundary, contrast, estimate, history_curve
from perfusion.studies.views import CAPS
from tasks.studies.paper import paper_value
from tasks.studies.place import Studies
from tasks.studies.systems import DRAWN, STUDIES
from tasks.studies.tables import (
    RANKING,
    Bars,
    Cell,
    Column,
    Curve,
    Row,
    Table,
    bars_of,
    figure_table,
    generator_table,
    ranking_table,
)

__all__ = ["BUILDERS", "build", "measurements"]

Options = dict[str, Any]
_NOT_OURS = (
    "The paper's values are of other pictures and other people; what can be compared is the order of the rows and the "
    "distance from the floor."
)
_TWINS = "A scorer marked [twin] is a tiny model of the real one's class: its numbers are not the published metric's."


def build(studies: Studies, name: str) -> Table:
    """The table of a study whose stages have run."""
    params = studies.workspace.params()
    return BUILDERS[name](studies, params.gates.interval_options(params.seed))


def measurements(studies: Studies, name: str) -> pd.DataFrame:
    """All measurements of a study: `system`, `seed`, `view`, `unit`, `user_id` and the metrics."""
    parts = []
    for one in studies.plan.measured[name]:
        rows = pd.read_parquet(studies.place.root / one.file)
        if one.arm is not None:
            rows = rows[rows["arm"] == one.arm]
        if "item" in rows:
            rows = rows.rename(columns={"item": "unit", "seed": "noise"})
        parts.append(rows.assign(system=one.system, seed=one.seed, view=one.view))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _tested(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["split"] == "test"]


def table1(studies: Studies, options: Options) -> Table:
    """Dataset statistics beside the paper's; a sample is a group record."""
    found = json.loads(studies.workspace.metrics("split").read_text())["table_one"]
    names = {"users": "#Users", "prompts": "#Prompts", "samples": "#Samples", "group_size": "Group Size"}
    columns = [Column(key, title, 0 if key != "group_size" else 2) for key, title in names.items()]
    cells: dict[str, Cell] = {key: float(found[key]) for key in ("users", "prompts", "samples")}
    cells["group_size"] = float(found["group_size_mean"])
    paper = {key: paper_value("table1", "dataset", key) for key in names}
    sizes = [(f"N = {size}", _exactly(count)) for size, count in found["group_size"].items()]
    notes = (
        f"{found['records_per_user']:.2f} records a user, {found['images']:,} distinct pictures; records with "
        + ", ".join(f"{count} picked: {records:,}" for count, records in found["picked"].items())
        + ".",
    )
    row = Row("dataset", "this dataset, as trained on", cells, paper)
    charts = (Bars("Records by group size", "records", sizes),)
    return figure_table("table1", STUDIES["table1"].title, columns, [row], notes=notes, charts=charts)


def table2(studies: Studies, options: Options) -> Table:
    """Reward models rank held-out groups."""
    rows = _tested(measurements(studies, "table2"))
    claims = [("full", other, True) for other in ("pickscore", "clip_score", "shuffled")]
    table = _ranking(studies, "table2", rows, options, claims)
    random = estimate(rows, "random", "auc", options)
    gain = contrast(rows, "shuffled", "pickscore", "auc", options)
    notes = list(table.notes)
    if (rows.loc[rows["system"].isin(["clip_h", "hpsv1", "hpsv2"]), "scorer"].str.endswith("[twin]")).any():
        notes.append(
            "Twins of CLIP-H, HPS and the frozen PickScore have the weights of our own CLIP that never saw a pick: "
            "their rows agree. Give the real weights in evaluate.weights (`perfusion doctor --weights` names them)."
        )
    if random is not None:
        low, high = random.interval.low, random.interval.high
        notes.append(f"Control: a random order has GAUC {random.interval}; 0.5 {_inside(0.5, low, high)} its interval.")
    if gain is not None:
        notes.append(
            f"Control: with the users of the training records shuffled, PerFusionRM minus tuned PickScore is "
            f"{gain.interval}; the personal gain is {'gone' if not gain.interval.low > 0 else 'NOT gone'}."
        )
    return replace(table, notes=tuple(notes), charts=(*table.charts, *_base_curves(studies)))


def table5(studies: Studies, options: Options) -> Table:
    """Backbones of PerFusionRM."""
    rows = _tested(measurements(studies, "table5"))
    table = _ranking(studies, "table5", rows, options, [("full", other, True) for other in ("siglip", "vilt")])
    return replace(table, rows=tuple(replace(r, title="CLIP") if r.name == "full" else r for r in table.rows))


def fig5(studies: Studies, options: Options) -> Table:
    """Ablation of PerFusionRM."""
    claims = [("full", "shared", False), ("full", "text_only", True), ("full", "vision_only", True)]
    notes = ("The paper draws Fig. 5 without numbers: both datasets' bars are highest for the full model.",)
    return _ranking(studies, "fig5", _tested(measurements(studies, "fig5")), options, claims, notes)


def table3(studies: Studies, options: Options) -> Table:
    """Generators judged by every scorer."""
    return _generators(studies, "table3", options, ["base", "sft", "spo", "dpo", "pmg"])


def fig6(studies: Studies, options: Options) -> Table:
    """Ablation of PerFusion."""
    notes = (
        "The paper draws Fig. 6 without numbers: the complete model's bars are highest. w/o GOBJ trains by Eq. 1 "
        "(Sec. 5.4).",
    )
    return _generators(studies, "fig6", options, ["wo_gobj", "wo_pan", "wo_both"], notes)


def table4(studies: Studies, options: Options) -> Table:
    """Cost of training and inference."""
    rows = pd.read_parquet(studies.place.root / "work/cost/all/costs.parquet")
    means = rows.groupby(["system", "what"])["seconds"].median()
    relative = ratios(rows).groupby(["system", "what"])["ratio"]
    middle, least, most = relative.median(), relative.min(), relative.max()
    columns = [
        Column("train", "training, seconds a batch", 3),
        Column("train_ratio", "training, over Diffusion", 2, paper=False),
        Column("draw", "inference, seconds a picture", 3),
        Column("draw_ratio", "inference, over Diffusion", 2, paper=False),
    ]  # fmt: skip
    titles = {"diffusion": "Diffusion", "dpo": "DiffusionDPO", "perfusion": "PerFusion"}
    made = []
    for system in SYSTEMS:
        cells: dict[str, Cell] = {}
        for what in ("train", "draw"):
            at = (system, what)
            cells[what] = float(means[at])
            cells[f"{what}_ratio"] = f"{middle[at]:.2f} ({least[at]:.2f} to {most[at]:.2f})"
        paper = {what: paper_value("table4", system, what) for what in ("train", "draw")}
        made.append(Row(system, titles[system], cells, paper))
    printed = "; ".join(
        f"{titles[system]} {_ratio('train', system):.2f} and {_ratio('draw', system):.2f}" for system in SYSTEMS[1:]
    )
    notes = (
        "Measured in one process, rounds of all systems alternating, every training batch with the same number of "
        "pictures; ratios are medians over rounds with their range. Seconds of another machine say nothing: compare "
        f"ratios. The paper's, training and inference over Diffusion (Industrial): {printed}.",
        "Here the frozen encoder runs once for policy and reference, and the decoder once a step for all that guidance "
        "needs (docs/performance.md).",
    )
    return figure_table("table4", STUDIES["table4"].title, columns, made, notes=notes)


def coldstart(studies: Studies, options: Options) -> Table:
    """What a user's own records are worth."""
    rows = measurements(studies, "coldstart")
    slices = {
        "test": "known users, held-out records", "few": "users under the record filter, none trained on",
        "cold": "users held out entirely",
    }  # fmt: skip
    columns = [
        Column("users", "users", 0, paper=False), Column("gauc", "GAUC", 4, paper=False),
        Column("blind", "tuned PickScore", 4, paper=False), Column("gain", "gain", 4, paper=False),
    ]  # fmt: skip
    made = []
    for split, title in slices.items():
        part = rows[rows["split"] == split]
        made.append(_gain_row(split, title, part, "full", options))
    curves, lines, notes = {}, {}, list[str]()
    learnt = _learnt(studies)
    titles = {"thinned": "with the profile", "thinned_id": "the id alone"}
    edges = sorted({0, 1, *(cap + 1 for cap in CAPS if cap)})
    known = rows[rows["split"].isin(["test"])]
    for system, title in titles.items():
        curve = history_curve(known, learnt, system, "pickscore", edges, options)
        curves[system] = curve
        made += [_bin_row(system, title, row) for row in curve.to_dict("records")]
        lines[f"PerFusionRM, {title}"] = curve.rename(columns={"gauc": "mean", "gauc_low": "lo", "gauc_high": "hi"})
        sure = boundary(curve)
        notes.append(
            f"Operational boundary, {title}: "
            + (
                f"from {sure} records of a user on, the gain over tuned PickScore is surely above 0."
                if sure is not None
                else "none; at no length of history is the gain surely above 0 from there on."
            )
        )
    blind = curves["thinned"].rename(columns={"blind": "mean", "blind_low": "lo", "blind_high": "hi"})
    lines["tuned PickScore"] = blind
    notes.append(
        "The curve is of a model that learnt from a number of records drawn for each user at random (a view of the "
        "split), so that users with short and with long histories differ in nothing else; the rows above it are of "
        "the full model. PickScore learnt from all records."
    )
    chart = Curve("GAUC by the records learnt from", "training records of a user", "GAUC", lines)
    return figure_table("coldstart", STUDIES["coldstart"].title, columns, made, notes=tuple(notes), charts=(chart,))


def groupsize(studies: Studies, options: Options) -> Table:
    """Two candidates against five, from the same records."""
    rows = _tested(measurements(studies, "groupsize"))
    titles = {"full": "learnt from N = 5", "pairs": "learnt from N = 2"}
    tests = {"": "tested on N = 5", "pairs": "tested on N = 2"}
    made, claims = [], []
    for view, tested in tests.items():
        part = rows[rows["view"] == view]
        for system, title in titles.items():
            cells: dict[str, Cell] = {column.key: estimate(part, system, column.key, options) for column in RANKING}
            cells["floor"] = float(part["floor"].mean())
            made.append(Row(f"{system}-{view}", f"{title}, {tested}", cells))
        found = contrast(part, "full", "pairs", "auc", options)
        if found is not None:
            claims.append(replace(found, left=f"{titles['full']} ({tested})", right=titles["pairs"]))
    notes = (
        "N = 2 keeps, of every record, a picked candidate and one that was not, drawn at random: as many records, two "
        "fifths of the pictures.",
    )
    columns = [replace(column, paper=False) for column in RANKING]
    chart = Bars("GAUC by group size", "GAUC", bars_of(made, "auc"), floor=0.5)
    return figure_table(
        "groupsize", STUDIES["groupsize"].title, columns, made, claims=tuple(claims), notes=notes, charts=(chart,)
    )


def coverage(studies: Studies, options: Options) -> Table:
    """Which features carry the gain."""
    rows = _tested(measurements(studies, "coverage"))
    permuted = _permuted(studies)
    minimum = json.loads((studies.place.root / "work/coverage/full-0/minimum.json").read_text())["minimum"]
    columns = [
        Column("left_out", "gain lost when left out of training", 4, paper=False),
        Column("shuffled", "gain lost when shuffled", 4, paper=False),
    ]
    seeds = permuted[permuted["shuffled"] == "nothing"].assign(system="nothing")
    made = []
    for name in [*studies.plan.features, "user_id", "everything"]:
        own = permuted[permuted["shuffled"] == name].assign(system=name)
        shuffled = contrast(pd.concat([seeds, own]), "nothing", name, "auc", options)
        first = rows[rows["seed"] == 0]  # left out in one training, so compared with one
        left_out = contrast(first, "full", f"without_{name}", "auc", options)
        made.append(
            Row(
                name, name, {
                    "left_out": left_out.interval if left_out else None,
                    "shuffled": shuffled.interval if shuffled else None,
                },
            )
        )  # fmt: skip
    gain = contrast(rows, "full", "pickscore", "auc", options)
    retrained = contrast(rows[rows["seed"] == 0], "minimum", "pickscore", "auc", options)
    gone = [step["feature"] for step in minimum["steps"] if step["feature"] not in minimum["features"]]
    order, kept = (", ".join(names) or "none" for names in (gone, minimum["features"]))
    notes = [f"The gain of all features over tuned PickScore is {gain.interval if gain else 'not measured'}."]
    notes.append(
        f"The minimum set, by greedy removal at test time until the gain leaves the full one's interval: {kept} "
        f"(could go, in this order: {order})."
    )
    if retrained is not None:
        notes.append(f"Trained anew on the minimum set (and the id), the gain is {retrained.interval}.")
    chart = Bars("GAUC lost when a feature is shuffled", "GAUC lost", bars_of(made, "shuffled"))
    return figure_table(
        "coverage", STUDIES["coverage"].title, columns, made, notes=tuple(notes), charts=(chart,)
    )  # fmt: skip


def _ranking(
    studies: Studies, name: str, rows: pd.DataFrame, options: Options, claims: list[tuple[str, str, bool]],
    notes: tuple[str, ...] = (),
) -> Table:  # fmt: skip
    systems = studies.plan.ranked()
    titles = {system: systems[system].title for system in STUDIES[name].ranked}
    said = (*notes, _NOT_OURS, _TWINS)
    return ranking_table(name, STUDIES[name].title, rows, titles, options, claims, studies.plan.missing, said)


def _generators(
    studies: Studies, name: str, options: Options, others: list[str], notes: tuple[str, ...] = ()
) -> Table:  # fmt: skip
    rows = measurements(studies, name)
    judge = "true_utility" if "true_utility" in rows else "perfusion_rm"
    titles = {system: DRAWN[system].title for system in STUDIES[name].drawn}
    judges = dict.fromkeys((judge, "perfusion_rm"))
    claims = [("perfusion", other, metric) for metric in judges for other in others]
    said = (*notes, _NOT_OURS, _TWINS)
    return generator_table(name, STUDIES[name].title, rows, titles, options, claims, studies.plan.missing, said)


def _gain_row(name: str, title: str, rows: pd.DataFrame, system: str, options: Options) -> Row:
    gain = contrast(rows, system, "pickscore", "auc", options)
    cells: dict[str, Cell] = {
        "users": float(rows["user_id"].nunique()), "gauc": estimate(rows, system, "auc", options),
        "blind": estimate(rows, "pickscore", "auc", options), "gain": gain.interval if gain else None,
    }  # fmt: skip
    return Row(name, title, cells)


def _bin_row(system: str, title: str, row: Mapping[str, Any]) -> Row:
    """A bin of the curve as a row of the table."""
    low, high = int(row["low"]), row["high"]
    span = f"{low} or more" if high is None or pd.isna(high) else f"{low}" if high == low else f"{low} to {int(high)}"
    cells: dict[str, Cell] = {"users": float(row["users"])}
    for key in ("gauc", "blind", "gain"):
        bounds = (float(row[f"{key}_low"]), float(row[f"{key}_high"]))
        cells[key] = Interval(float(row[key]), *bounds, 0.95, int(row["users"]), int(row["groups"]))
    return Row(f"{system}-{low}", f"{title}: {span} records learnt from", cells)


def _learnt(studies: Studies) -> dict[str, int]:
    """User -> training records in the thinned view."""
    groups = pd.read_parquet(studies.place.root / "work/view/thinned/groups.parquet", columns=["user_id", "split"])
    return {str(k): int(v) for k, v in groups[groups["split"] == "train"]["user_id"].value_counts().items()}


def _permuted(studies: Studies) -> pd.DataFrame:
    """Shuffled scores of every seed."""
    keys = studies.plan.items["coverage"]
    files = {int(key.rpartition("-")[2]): f"work/coverage/{key}/permuted.parquet" for key in keys}
    return pd.concat([pd.read_parquet(studies.place.root / file).assign(seed=seed) for seed, file in files.items()])


def _base_curves(studies: Studies) -> tuple[Curve | Bars, ...]:
    """Calibration and gain by slice, of the retraining's own PerFusionRM."""
    folder = studies.workspace.reward_evaluation
    bins = pd.read_csv(folder / "calibration.csv").rename(columns={"predicted": "low", "picked": "mean"})
    curve = Curve(
        "Calibration of PerFusionRM", "predicted share of the picks", "true share", {"PerFusionRM": bins}, diagonal=True
    )
    slices = pd.read_parquet(folder / "slices.parquet").dropna(subset=["gain_low"])
    bars = [
        (f"{row.feature} = {row.value}", Interval(row.gain, row.gain_low, row.gain_high, 0.95, row.users, row.groups))
        for row in slices.itertuples()
    ]
    return curve, Bars("Gain over tuned PickScore, by what is known of the user", "GAUC gained", bars)


def _exactly(value: float) -> Interval:
    """A count, which has no interval."""
    return Interval(float(value), float(value), float(value), 0.95, 0, 0)


def _inside(value: float, low: float, high: float) -> str:
    return "lies in" if low <= value <= high else "lies OUTSIDE"


def _ratio(what: str, system: str) -> float:
    """The paper's time over that of Diffusion, on Industrial."""
    ours, first = (paper_value("table4", name, what)[1] for name in (system, SYSTEMS[0]))
    assert ours is not None
    assert first is not None
    return ours / first


BUILDERS: dict[str, Callable[[Studies, Options], Table]] = {
    "table1": table1,
    "table2": table2,
    "table3": table3,
    "table4": table4,
    "table5": table5,
    "fig5": fig5,
    "fig6": fig6,
    "coldstart": coldstart,
    "groupsize": groupsize,
    "coverage": coverage,
}
