"""Commands for what people say about the pictures: expert ratings (Table 6), outcomes in shops (Table 7)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli_common import AsJson, print_json, print_table, shown

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["COMMANDS", "evaluate_experts", "evaluate_outcomes"]

Out = Annotated[
    Path | None, typer.Option("--out", "-o", help="Folder to write the report (JSON), the chart and bad rows to.")
]


def evaluate_experts(
    ratings: Annotated[Path | None, typer.Argument(help="CSV or parquet: rater, item, arm, aspect, score.")] = None,
    baseline: Annotated[str, typer.Option("--baseline", help="The arm that the others are divided by.")] = "human",
    template: Annotated[
        Path | None, typer.Option("--template", help="Write an empty sheet to this file, for raters to fill in.")
    ] = None,
    items: Annotated[
        Path | None, typer.Option("--items", help="For --template: CSV with the columns item, arm.")
    ] = None,
    rater: Annotated[
        list[str] | None, typer.Option("--rater", help="For --template: a rater; may be repeated.")
    ] = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Compare arms by the ratings of experts, as in the paper's Table 6.

    Scores are 0, 1 or 2 for six aspects and, as a rating of its own, overall. Prints each arm's mean, its ratio to the
    baseline with an interval over items, and how far the raters agree (Krippendorff's alpha, 1 is perfect). Bad rows
    are set aside, counted by reason and, with --out, listed.

    Examples:

      perfusion evaluate-experts --template sheet.csv --items items.csv --rater anna --rater ben
      perfusion evaluate-experts ratings.csv --baseline human --out work/experts
    """
    from perfusion.errors import DataError
    from perfusion.evaluation import experts

    if template is not None:
        if items is None:
            raise DataError("--template needs --items FILE, a CSV with the columns item and arm")
        typer.echo(f"{template}: {experts.write_template(template, items, rater or [])} ratings to give")
        return
    if ratings is None:
        raise DataError("no ratings given: name the file, or write an empty sheet with --template")
    report, bad = experts.evaluate_experts(ratings, baseline)
    if out is not None:
        _keep(out, "experts", report, bad, _ratio_chart(report))
    if as_json:
        print_json(report)
        return
    for arm in report["arms"]:
        if arm != baseline:
            _print_ratios(report, arm, baseline, experts.PAPER_TABLE_6)
    six = ", ".join(f"{arm} {shown(mean)}" for arm, mean in report["mean_of_aspects"].items())
    typer.echo(f"overall is a rating of its own; the mean of the aspects would be: {six}")
    typer.echo(f"{report['raters']} raters, {report['items']} items; intervals: 95 %, other items, the same raters")
    _print_set_aside(report, experts.RULES)


def evaluate_outcomes(
    events: Annotated[
        Path, typer.Argument(help="CSV or parquet: store, arm, {search,recommendation}_{impressions,clicks}, orders, "
                                  "returns.")
    ],
    treated: Annotated[str, typer.Option("--treated", help="The arm of AI-generated items.")] = "ai",
    control: Annotated[str, typer.Option("--control", help="The arm it is compared with in the same store.")] = "human",
    min_impressions: Annotated[
        int, typer.Option("--min-impressions", help="Impressions each arm of a store needs to be averaged.")
    ] = 1000,
    out: Out = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Compare two arms by what became of them in the same stores, as in the paper's Table 7.

    Within each store, the relative improvement of search and recommendation click-through, conversion (orders of
    clicks) and return rate (returns of orders); then the mean over stores, with an interval. Stores that cannot be
    compared are counted by reason and, with --out, listed.

    Examples:

      perfusion evaluate-outcomes events.csv --treated ai --control human
      perfusion evaluate-outcomes events.parquet --min-impressions 5000 --out work/outcomes
    """
    from perfusion.evaluation import outcomes

    report, by_store, bad = outcomes.evaluate_outcomes(events, treated, control, min_impressions=min_impressions)
    if out is not None:
        _keep(out, "outcomes", report, bad, _improvement_chart(report))
        by_store.to_csv(out / "stores.csv", index=False)
    if as_json:
        print_json(report)
        return
    rows = [
        (
            name,
            _share(figures["improvement"]["mean"]),
            _bounds(figures["improvement"]),
            _share(figures["median"]),
            figures["stores"],
            _share(outcomes.PAPER_TABLE_7[name]),
        )
        for name, figures in report["metrics"].items()
    ]
    head = ("rate", "improvement", "95 % interval", "median", "stores", "paper")
    print_table(f"{treated} against {control} in the same store", head, rows)
    typer.echo("of return_rate, less is better; ctr is the mean of both click-through rates' improvements")
    reasons = [
        (name, figures["left_out"][reason], says)
        for name, figures in report["metrics"].items()
        for reason, says in outcomes.REASONS.items()
        if figures["left_out"][reason]
    ]
    if reasons:
        print_table(f"of {report['stores']} stores, not averaged", ("rate", "stores", "because"), reasons)
    _print_set_aside(report, outcomes.RULES)


def _print_ratios(
    report: dict[str, Any], arm: str, baseline: str, paper: dict[str, tuple[float, float, float]]
) -> None:
    rows = []
    for row in report["aspects"]:
        ratio = row["ratios"][arm]
        agreed = shown(row["alpha"]) if row["alpha"] is not None else row["alpha_missing"]
        means = (row["means"][arm], row["means"][baseline])
        rows.append(
            (row["aspect"], *means, _share(ratio["mean"], ""), _bounds(ratio, ""), agreed,
             _share(paper[row["aspect"]][2], ""))
        )  # fmt: skip
    print_table(
        f"{arm} against {baseline}", ("aspect", arm, baseline, "ratio", "95 % interval", "alpha", "paper"), rows
    )


def _print_set_aside(report: dict[str, Any], rules: dict[str, str]) -> None:
    broken = [(rule, rules[rule], count) for rule, count in report["set_aside"].items() if count]
    if broken:
        title = f"{report['rows']} rows, {report['used']} used; set aside"
        print_table(title, ("rule", "a row that is used", "rows"), broken)


def _share(value: float | None, sign: str = "+") -> str:
    return "-" if value is None else f"{value:{sign}.2%}"


def _bounds(interval: dict[str, Any], sign: str = "+") -> str:
    if interval["low"] is None:
        return "too few for bounds" if interval["mean"] is not None else "-"
    return f"[{100 * interval['low']:{sign}.1f}, {100 * interval['high']:{sign}.1f}] %"


def _keep(out: Path, name: str, report: dict[str, Any], bad: pd.DataFrame, chart: bytes) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(report, indent=1, allow_nan=False, ensure_ascii=False))
    (out / f"{name}.png").write_bytes(chart)
    bad.to_csv(out / "quarantine.csv")


def _ratio_chart(report: dict[str, Any]) -> bytes:
    from perfusion.data.charts import bar_chart
    from perfusion.evaluation.experts import PAPER_TABLE_6

    rows = [(row["aspect"], arm, ratio) for row in report["aspects"] for arm, ratio in row["ratios"].items()]
    several = len(report["arms"]) > 2
    return bar_chart(
        f"Mean rating as a share of {report['baseline']}",
        [f"{aspect}: {arm}" if several else aspect for aspect, arm, _ in rows],
        [_number(ratio["mean"]) for *_, ratio in rows],
        intervals=[_ends(ratio) for *_, ratio in rows],
        marks=("the paper", [PAPER_TABLE_6[aspect][2] for aspect, *_ in rows]),
        line=1.0,
        flat=True,
    )


def _improvement_chart(report: dict[str, Any]) -> bytes:
    from perfusion.data.charts import bar_chart
    from perfusion.evaluation.outcomes import PAPER_TABLE_7

    found = {name: figures["improvement"] for name, figures in report["metrics"].items()}
    return bar_chart(
        f"Relative improvement within stores, {report['treated']} against {report['control']}",
        list(found),
        [_number(interval["mean"]) for interval in found.values()],
        intervals=[_ends(interval) for interval in found.values()],
        marks=("the paper", [PAPER_TABLE_7[name] for name in found]),
        line=0.0,
        flat=True,
    )


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _ends(interval: dict[str, Any]) -> tuple[float, float] | None:
    return None if interval["low"] is None else (interval["low"], interval["high"])


COMMANDS = {"evaluate-experts": evaluate_experts, "evaluate-outcomes": evaluate_outcomes}
