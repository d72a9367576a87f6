"""Tables as values: built from measurements alone, printed and drawn elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from perfusion.statistics import Interval
from perfusion.studies.figures import Contrast, Estimate, contrast, estimate
from tasks.studies.paper import Pair, paper_value

__all__ = [
    "Bars",
    "Cell",
    "Column",
    "Curve",
    "Row",
    "Table",
    "bars_of",
    "figure_table",
    "generator_table",
    "ranking_table",
]

Cell = Estimate | Interval | float | str | None


@dataclass(frozen=True)
class Column:
    """A column of ours.

    Attributes:
        key: metric.
        title: heading.
        digits: after the point.
        paper: whether the paper's values stand beside it.
    """

    key: str
    title: str
    digits: int = 4
    paper: bool = True


@dataclass(frozen=True)
class Row:
    """A row.

    Attributes:
        name: of the system.
        title: what it is called.
        cells: by column; what is absent was not measured.
        paper: by column, (PickaPic, Industrial).
        note: why it is empty, or what to know of it.
    """

    name: str
    title: str
    cells: Mapping[str, Cell]
    paper: Mapping[str, Pair] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Bars:
    """A bar chart: one bar for each (title, interval)."""

    title: str
    axis: str
    bars: Sequence[tuple[str, Interval]]
    floor: float | None = None


@dataclass(frozen=True)
class Curve:
    """Lines with bands: label -> (x, mean, low, high)."""

    title: str
    x: str
    y: str
    lines: Mapping[str, pd.DataFrame]
    diagonal: bool = False


@dataclass(frozen=True)
class Table:
    """A table with all that is said and drawn about it.

    Attributes:
        name: of the study.
        title: its heading.
        columns, rows: its content.
        claims: orderings, judged.
        notes: sentences below it.
        charts: drawings beside it.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    claims: tuple[Contrast, ...] = ()
    notes: tuple[str, ...] = ()
    charts: tuple[Bars | Curve, ...] = ()


RANKING = (Column("ap", "MAP"), Column("floor", "random floor", paper=False), Column("auc", "GAUC"))
PICTURES = (
    Column("aesthetic", "Aesthetic", 3),
    Column("clip_score", "CLIP Score", 2),
    Column("pickscore", "PickScore", 2),
    Column("perfusion_rm", "PerFusionRM", 2),
    Column("true_utility", "true utility", 3, paper=False),
)


def ranking_table(
    name: str, title: str, rows: pd.DataFrame, titles: Mapping[str, str], options: Mapping[str, Any],
    claims: Iterable[tuple[str, str, bool]], missing: Mapping[str, str], notes: Sequence[str] = (),
) -> Table:  # fmt: skip
    """MAP with its floor and GAUC of every system on test groups (Tables 2 and 5, Fig. 5).

    Args:
        name, title: of the table.
        rows: measurements (see `perfusion.studies.figures`) with `ap`, `auc`, `floor` and `scorer`.
        titles: system -> what the table calls it, in the order of its rows.
        options: of `perfusion.statistics.cluster_bootstrap`.
        claims: (left, right, strict): left > right in GAUC, or left >= right.
        missing: system -> why it was not run.
        notes: further sentences.
    """
    made = [_system(name, system, titles[system], rows, RANKING, options, missing) for system in titles]
    judged = [contrast(rows, left, right, "auc", options, strict) for left, right, strict in claims]
    chart = Bars(f"{title}: GAUC", "GAUC", bars_of(made, "auc"), floor=0.5)
    return Table(name, title, RANKING, tuple(made), _judged(judged), tuple(notes), (chart,))


def generator_table(
    name: str, title: str, rows: pd.DataFrame, titles: Mapping[str, str], options: Mapping[str, Any],
    claims: Iterable[tuple[str, str, str]], missing: Mapping[str, str], notes: Sequence[str] = (),
) -> Table:  # fmt: skip
    """Every scorer's mean over an arm's pictures (Table 3, Fig. 6).

    Args:
        rows: measurements with one column a scorer; a twin's carries its mark, e.g. `aesthetic[twin]`.
        claims: (left, right, metric): left > right.
        name, title, titles, options, missing, notes: as in `ranking_table`.
    """
    columns = tuple(_found(column, rows) for column in PICTURES if _found(column, rows).key in rows)
    made = [_system(name, system, titles[system], rows, columns, options, missing) for system in titles]
    judged = [contrast(rows, left, right, metric, options) for left, right, metric in claims]
    last = columns[-1]
    chart = Bars(f"{title}: {last.title}", last.title, bars_of(made, last.key))
    return Table(name, title, columns, tuple(made), _judged(judged), tuple(notes), (chart,))


def figure_table(name: str, title: str, columns: Sequence[Column], rows: Sequence[Row], **more: Any) -> Table:
    """A table of given rows."""
    return Table(name, title, tuple(columns), tuple(rows), **more)


def bars_of(rows: Iterable[Row], key: str) -> list[tuple[str, Interval]]:
    """One bar for each row that was measured."""
    cells = [(row.title, row.cells.get(key)) for row in rows]
    found = [(title, cell.interval if isinstance(cell, Estimate) else cell) for title, cell in cells]
    return [(title, interval) for title, interval in found if isinstance(interval, Interval)]


def _system(
    table: str, system: str, title: str, rows: pd.DataFrame, columns: Sequence[Column], options: Mapping[str, Any],
    missing: Mapping[str, str],
) -> Row:  # fmt: skip
    own = rows[rows["system"] == system]
    if own.empty:
        paper = {column.key: paper_value(table, system, _plain(column.key)) for column in columns}
        return Row(system, title, {}, paper, f"not run: {missing.get(system, 'not measured')}")
    cells: dict[str, Cell] = {column.key: estimate(rows, system, column.key, options) for column in columns}
    if isinstance(floor := cells.get("floor"), Estimate):
        cells["floor"] = floor.interval.mean
    marked = f"{title} [twin]" if "scorer" in own and str(own["scorer"].iloc[0]).endswith("[twin]") else title
    paper = {column.key: paper_value(table, system, _plain(column.key)) for column in columns if column.paper}
    return Row(system, marked, cells, paper)


def _found(column: Column, rows: pd.DataFrame) -> Column:
    """The column as it is called here: a twin's under its own name."""
    twin = f"{column.key}[twin]"
    if twin in rows:
        return Column(twin, f"{column.title} [twin]", column.digits, column.paper)
    return column


def _plain(key: str) -> str:
    return key.partition("[")[0]


def _judged(claims: Iterable[Contrast | None]) -> tuple[Contrast, ...]:
    return tuple(claim for claim in claims if claim is not None)
