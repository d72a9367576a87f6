"""Drawings for the pages: positions on a shared axis, and learning curves as SVG that takes the page's colours."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from tasks.reporting_record import Figure

__all__ = ["Axis", "Reference", "axis_for", "curve_svg", "panels"]

# Colours that stand for the page's own, so that one drawing serves light, dark and print.
_INK, _CURVE = "#010203", "#040506"
_SKIPPED = frozenset({"lr", "grad_norm", "step"})
_TELLING = ("loss", "valid_loss", "valid_gauc", "implicit_accuracy", "psnr", "err_theta")
MAX_PANELS = 3


@dataclass(frozen=True)
class Reference:
    """A line across every row of a plot: a floor, a ceiling, zero."""

    value: float
    name: str
    tone: str = "limit"


@dataclass(frozen=True)
class Axis:
    """A horizontal axis shared by the rows of a table."""

    low: float
    high: float
    ticks: tuple[float, ...]
    references: tuple[Reference, ...] = ()
    zero: bool = False

    def at(self, value: float) -> float:
        """Position of a value in percent of the width, kept inside the axis."""
        share = (value - self.low) / (self.high - self.low)
        return round(100.0 * min(1.0, max(0.0, share)), 2)


def axis_for(
    figures: Iterable[Figure | None], references: Sequence[Reference] = (), *, zero: bool = False, count: int = 5
) -> Axis | None:
    """An axis that holds every figure with its bounds and every reference; None when there is nothing to draw."""
    values = [v for f in figures if f is not None for v in (f.mean, f.low, f.high) if v is not None]
    if not values:
        return None
    values += [reference.value for reference in references] + ([0.0] if zero else [])
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.05 * max(abs(high), 1.0)
    low, high = low - margin, high + margin
    return Axis(low, high, tuple(_ticks(low, high, count)), tuple(references), zero)


def _ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers inside [low, high], about `count` of them."""
    rough = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(m * unit for m in (1, 2, 2.5, 5, 10) if m * unit >= rough)
    first = math.ceil(low / step)
    return [round(i * step, 10) for i in range(first, math.floor(high / step) + 1)]


def panels(table: pd.DataFrame) -> list[str]:
    """The metrics of a training worth a picture: those that tell most first, the others as they were logged."""
    names = [str(name) for name in table.columns if name not in _SKIPPED and table[name].notna().sum() > 1]
    telling = [name for name in _TELLING if name in names]
    return [*telling, *(name for name in names if name not in telling)][:MAX_PANELS]


def curve_svg(table: pd.DataFrame, metric: str, salt: str) -> str:
    """One learning curve: what was logged, thin, and its running median, as inline SVG in the page's own colours.

    Args:
        table: columns `step` and `metric`.
        metric: the column to draw.
        salt: makes the ids inside the drawing its own; the same input and salt give the same bytes.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = table[["step", metric]].dropna()
    steps, values = rows["step"].to_numpy(), rows[metric].to_numpy(dtype=float)
    style = {
        "svg.fonttype": "none", "svg.hashsalt": salt, "font.size": 8, "axes.edgecolor": _INK, "xtick.color": _INK,
        "ytick.color": _INK, "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6,
        "xtick.major.width": 0.6, "ytick.major.width": 0.6, "xtick.major.size": 2.5, "ytick.major.size": 2.5,
    }  # fmt: skip
    with plt.rc_context(style):  # type: ignore[arg-type]
        drawing, axes = plt.subplots(figsize=(3.0, 1.35), layout="constrained")
        try:
            few = len(values) < 5
            axes.plot(steps, values, color=_CURVE, linewidth=1.6 if few else 0.7, alpha=1.0 if few else 0.35)
            if not few:
                window = max(3, len(values) // 15)
                middle = pd.Series(values).rolling(window, center=True, min_periods=1).median()
                axes.plot(steps, middle, color=_CURVE, linewidth=1.6)
            axes.locator_params(nbins=4)
            axes.margins(x=0.01)
            _keep_outliers_out(axes, values)
            buffer = io.StringIO()
            drawing.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        finally:
            plt.close(drawing)
    return _inline(buffer.getvalue())


def _keep_outliers_out(axes, values: np.ndarray) -> None:  # type: ignore[no-untyped-def]
    """Scale to the middle 98 %: the first steps of a loss would flatten all that follows."""
    low, high = np.quantile(values, [0.01, 0.99])
    if high > low:
        axes.set_ylim(low - 0.08 * (high - low), high + 0.08 * (high - low))


def _inline(svg: str) -> str:
    """The bare <svg> element: no prolog, no metadata, no outside reference, colours by CSS."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r"(<svg[^>]*?)\swidth=\"[^\"]*\"", r"\1", svg, count=1)
    svg = re.sub(r"(<svg[^>]*?)\sheight=\"[^\"]*\"", r"\1", svg, count=1)
    return svg.replace(_INK, "currentColor").replace(_CURVE, "var(--ours)")
