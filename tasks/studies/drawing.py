"""Charts of tables as PNG: bars with their intervals, and lines with their bands."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from tasks.studies.tables import Bars, Curve

__all__ = ["draw_chart"]

_OURS, _GREY, _LINES = "#0b6e69", "#6b7684", ("#0b6e69", "#a8570b", "#4a4f9c", "#a8326b")
_STYLE = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10}


def draw_chart(chart: Bars | Curve) -> bytes:
    """A chart as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    with plt.rc_context(_STYLE):  # type: ignore[arg-type]
        height = 1.0 + 0.3 * len(chart.bars) if isinstance(chart, Bars) else 3.6
        drawing, axes = plt.subplots(figsize=(7.0, height), layout="constrained")
        try:
            if isinstance(chart, Bars):
                _bars(axes, chart)
            else:
                _curve(axes, chart)
            axes.set_title(chart.title, loc="left")
            buffer = io.BytesIO()
            drawing.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
        finally:
            plt.close(drawing)
    return buffer.getvalue()


def _bars(axes: Any, chart: Bars) -> None:
    """Horizontal, the first on top; the axis begins at the floor where there is one, for bars compare lengths."""
    start = chart.floor or 0.0
    for place, (_, interval) in enumerate(chart.bars):
        color = _OURS if place == _best(chart) else _GREY
        axes.barh(place, interval.mean - start, left=start, color=color, height=0.62)
        if interval.conclusive and interval.high > interval.low:
            axes.plot([interval.low, interval.high], [place, place], color="black", linewidth=1.2)
    axes.set_yticks(range(len(chart.bars)), [title for title, _ in chart.bars])
    axes.invert_yaxis()
    axes.axvline(start, color="black", linewidth=0.6)
    axes.set_xlabel(chart.axis + (f" (from the random floor {chart.floor:g})" if chart.floor else ""))


def _best(chart: Bars) -> int:
    return int(np.argmax([interval.mean for _, interval in chart.bars])) if chart.bars else -1


def _curve(axes: Any, chart: Curve) -> None:
    for color, (name, rows) in zip(_LINES, chart.lines.items(), strict=False):
        axes.plot(rows["low"], rows["mean"], marker="o", markersize=3.5, color=color, label=name)
        if "lo" in rows:
            axes.fill_between(rows["low"], rows["lo"], rows["hi"], color=color, alpha=0.15, linewidth=0)
    if chart.diagonal:
        most = max(float(rows[["low", "mean"]].max().max()) for rows in chart.lines.values())
        axes.plot([0, most], [0, most], color=_GREY, linestyle="--", linewidth=0.8, label="as predicted")
    axes.set_xlabel(chart.x)
    axes.set_ylabel(chart.y)
    axes.legend(frameon=False)
