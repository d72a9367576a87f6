"""Bar charts as PNG, drawn without a display or a global state."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np

__all__ = ["bar_chart"]

_BAR, _MARK = "#4477aa", "#cc3311"


def bar_chart(
    title: str,
    labels: Sequence[object],
    values: Sequence[float],
    *,
    axis: str = "",
    unit: str = "",
    intervals: Sequence[tuple[float, float] | None] = (),
    marks: tuple[str, Sequence[float]] | None = None,
    line: float | None = None,
    flat: bool = False,
) -> bytes:
    """A chart of bars as PNG.

    Args:
        title: above it.
        labels: (n,) of the bars; numbers are placed on a scale, text in order.
        values: (n,) heights; NaN leaves a gap.
        axis: what the labels are.
        unit: what the heights are.
        intervals: (n,) low and high of each bar, None where there is none.
        marks: name and (n,) values of a second row, drawn as dots; NaN leaves one out.
        line: a value to draw a line at.
        flat: bars lie, for long labels; the first is on top.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    scaled = all(isinstance(label, int | float) for label in labels)
    places = np.asarray(labels, float) if scaled and not flat else np.arange(len(labels), dtype=float)
    tall = max(2.2, 0.28 * len(labels) + 1.1) if flat else 3.0
    figure = Figure(figsize=(6.4, tall), layout="constrained", dpi=110)
    axes = figure.subplots()
    heights = np.asarray(values, float)
    draw, plot = (axes.barh, axes.plot) if flat else (axes.bar, axes.plot)
    draw(places, np.nan_to_num(heights), 0.8 if len(places) < 2 else 0.8 * _gap(places), color=_BAR)
    for place, bounds in zip(places, intervals, strict=False):
        if bounds is not None:
            ends = (bounds, (place, place))
            plot(*(ends if flat else ends[::-1]), color="black", linewidth=1.4)
    if marks is not None:
        rows = (np.asarray(marks[1], float), places)
        plot(*(rows if flat else rows[::-1]), "o", color=_MARK, markersize=5, label=marks[0])
        figure.legend(loc="outside lower center", frameon=False)
    if line is not None:
        (axes.axvline if flat else axes.axhline)(line, color="grey", linewidth=0.8, linestyle="--")
    if flat:
        axes.set_yticks(places, [_short(label) for label in labels])
        axes.invert_yaxis()
    elif scaled:
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=bool((places == places.round()).all())))
    else:
        axes.set_xticks(places, [_short(label) for label in labels])
    axes.set(title=title, xlabel=unit if flat else axis, ylabel=axis if flat else unit)
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _gap(places: np.ndarray) -> float:
    return float(np.diff(np.unique(places)).min(initial=np.inf)) if len(np.unique(places)) > 1 else 1.0


def _short(label: object) -> str:
    """A label without what a chart's text would read as mathematics."""
    text = str(label).replace("$", r"\$")
    return text if len(text) <= 40 else text[:39] + "…"
