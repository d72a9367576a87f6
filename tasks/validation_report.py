"""A validation report for people: what came in, what was set aside and why, what changed since the accepted data."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

__all__ = ["render_report", "report_text"]

WIDTH = 140


def render_report(report: Mapping[str, Any]) -> RenderableType:
    """Tables for a rich console: the ledger, failed rules, coverage, drift. Values from the data are no markup."""
    return Group(*_parts(report))


def report_text(report: Mapping[str, Any], width: int = WIDTH) -> str:
    """The same as plain text, for logs and error messages."""
    buffer = io.StringIO()
    Console(file=buffer, width=width, color_system=None, force_terminal=False).print(render_report(report))
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())


def _parts(report: Mapping[str, Any]) -> Iterator[RenderableType]:
    yield _ledger(report)
    yield Text(_no_comparison(report))
    failed = [row for row in report["rules"] if row["failed"]]
    if failed:
        yield from _rules(failed)
    else:
        yield Text(f"All {len(report['rules'])} rules hold for every row.")
    for item in report["coercions"]:
        yield Text(f"Converted: {item['file']}, column {item['column']!r}: {item['says']}")
    for file, columns in report["ignored_columns"].items():
        for name, why in columns.items():
            yield Text(f"Ignored: {file}, column {name!r}: {why}")
    yield from _changes(report)
    yield _features(report)


def _ledger(report: Mapping[str, Any]) -> Table:
    table = Table("", "in", "quarantined", "valid", title="Rows", title_justify="left")
    images = report["images_in"], report["images_quarantined"], report["images_in"] - report["images_quarantined"]
    table.add_row("groups", *map(str, (report["groups_in"], report["quarantined"], report["valid"])))
    table.add_row("users", *map(str, (report["users_in"], report["users_quarantined"], report["users_valid"])))
    table.add_row("images", *map(str, images))
    return table


def _no_comparison(report: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{name}: {count}" for name, count in report["no_comparison"].items())
    return f"Valid groups without a comparison, dropped by the split stage: {counts}"


def _rules(failed: list[Mapping[str, Any]]) -> Iterator[Text]:
    """Three lines a rule, most failures first: what failed, an example (cut at the line's end), what to do."""
    yield Text("Rules that failed")
    for row in sorted(failed, key=lambda row: -row["failed"]):
        example = row["examples"][0]
        shown = f"{example['record_id']} ({example['file']}, row {example['row']}): {example['value']}"
        failures = f"{row['rule']} ({row['table']}): {row['failed']} of {row['checked']} break it: {row['says']}"
        yield Text(f"  {failures}")
        yield Text(f"      e.g. {shown}", no_wrap=True, overflow="ellipsis")
        yield Text(f"      remedy: {row['remedy']}")


def _changes(report: Mapping[str, Any]) -> Iterator[Text]:
    if report["accepted"] is None:
        yield Text("No data was accepted before: nothing to measure drift against.")
        return
    for what, names in report["schema_changes"].items():
        if names:
            yield Text(f"Features {what} since the accepted data: {', '.join(names)}")
    for name, found in report["unseen_categories"].items():
        examples = ", ".join(found["examples"])
        yield Text(f"Unseen categories of {name!r}: {found['categories']} ({found['share']:.1%} of users): {examples}")


def _features(report: Mapping[str, Any]) -> RenderableType:
    """Coverage and drift by variable; one line where every feature is there and nothing can have drifted."""
    coverage = report["coverage"]
    drift = {row["name"]: row for row in report["drift"] or ()}
    if not drift and min(coverage.values(), default=1.0) == 1.0:
        return Text(f"Coverage: every clean user has a value of each of the {len(coverage)} features.")
    table = Table("variable", "coverage", "drift (PSI)", "PSI by chance", "KS", title="Variables", title_justify="left")
    for name in dict.fromkeys([*coverage, *drift]):
        row = drift.get(name, {})
        cover = [f"{coverage[name]:.1%}" if name in coverage else ""]
        numbers = (row.get("psi"), row.get("psi_by_chance"), row.get("ks"))
        table.add_row(Text(name), *cover, *("" if number is None else f"{number:.3f}" for number in numbers))
    return table
