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
        yield _rules(failed)
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


def _rules(failed: list[Mapping[str, Any]]) -> Table:
    table = Table("table", "rule", "failed", "of", "example", "remedy", title="Rules that failed", title_justify="left")
    for row in failed:
        example = row["examples"][0]
        shown = f"{example['record_id']} ({example['file']}, row {example['row']}): {example['value']}"
        counts = str(row["failed"]), str(row["checked"])
        table.add_row(row["table"], Text(f"{row['rule']}: {row['says']}"), *counts, Text(shown), Text(row["remedy"]))
    return table


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


def _features(report: Mapping[str, Any]) -> Table:
    table = Table("variable", "coverage", "drift (PSI)", "PSI by chance", "KS", title="Variables", title_justify="left")
    drift = {row["name"]: row for row in report["drift"] or ()}
    for name in dict.fromkeys([*report["coverage"], *drift]):
        row = drift.get(name, {})
        numbers = (row.get("psi"), row.get("psi_by_chance"), row.get("ks"))
        cover = report["coverage"].get(name)
        shown = ["" if cover is None else f"{cover:.1%}", *("" if n is None else f"{n:.3f}" for n in numbers)]
        table.add_row(Text(name), *shown)
    return table
