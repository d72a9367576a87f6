"""Tables as text: the same cells for the terminal, the page and MLflow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from perfusion.statistics import Interval
from perfusion.studies.figures import Contrast, Estimate
from tasks.studies.paper import Pair
from tasks.studies.tables import Cell, Column, Row, Table

__all__ = ["cell_text", "claim_text", "header", "metrics_of", "paper_text", "plain_rows"]

NOTHING = "-"
DATASETS = ("PickaPic", "Industrial")


def cell_text(cell: Cell, digits: int) -> str:
    """A cell: mean, bounds, and the spread over seeds where there are several."""
    if cell is None:
        return NOTHING
    if isinstance(cell, str):
        return cell
    if isinstance(cell, float):
        return f"{cell:,.{digits}f}"
    interval = cell.interval if isinstance(cell, Estimate) else cell
    text = f"{interval.mean:.{digits}f}"
    if interval.conclusive:
        text += f" [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"
    if isinstance(cell, Estimate) and math.isfinite(cell.spread):
        text += f" ±{cell.spread / 2:.{digits}f}"
    return text


def paper_text(pair: Pair | None) -> str:
    """The paper's values on its two datasets."""
    if pair is None or pair == (None, None):
        return NOTHING
    return " / ".join(NOTHING if value is None else f"{value:,}" for value in pair)


def header(table: Table) -> list[str]:
    """Headings; beside a column of ours stands the paper's, where it has one."""
    heads = [""]
    for column in table.columns:
        heads.append(column.title)
        if column.paper:
            heads.append(f"paper: {' / '.join(DATASETS)}")
    return heads


def plain_rows(table: Table) -> list[list[str]]:
    """Cells as text, by row."""
    return [[_titled(row), *_cells(table.columns, row)] for row in table.rows]


def _cells(columns: tuple[Column, ...], row: Row) -> list[str]:
    texts = []
    for column in columns:
        texts.append(cell_text(row.cells.get(column.key), column.digits))
        if column.paper:
            texts.append(paper_text(row.paper.get(column.key)))
    return texts


def _titled(row: Row) -> str:
    return f"{row.title} ({row.note})" if row.note else row.title


def claim_text(claim: Contrast, titles: Mapping[str, str]) -> str:
    """One ordering with its verdict first."""
    left, right = (titles.get(name, name) for name in (claim.left, claim.right))
    sign = ">" if claim.strict else "≥"
    metric = {"auc": "GAUC", "true_utility": "true utility", "perfusion_rm": "PerFusionRM"}.get(
        claim.metric, claim.metric
    )
    return f"{claim.verdict}: {left} {sign} {right} in {metric}; difference {claim.interval}"


def metrics_of(table: Table) -> dict[str, float]:
    """Every number of a table by `row/column`, with bounds: what MLflow keeps as metrics."""
    found: dict[str, float] = {}
    for row in table.rows:
        for key, cell in row.cells.items():
            name = f"{row.name}/{key}"
            interval: Any = cell.interval if isinstance(cell, Estimate) else cell
            if isinstance(interval, Interval):
                values = {"": interval.mean, "/low": interval.low, "/high": interval.high}
                found |= {f"{name}{end}": value for end, value in values.items() if math.isfinite(value)}
            elif isinstance(interval, float):
                found[name] = interval
    return found
