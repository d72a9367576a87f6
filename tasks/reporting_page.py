"""Pages that open anywhere: one HTML file with style, drawings and pictures inside, and no link to the outside."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from perfusion.checkpoint import atomic_write
from tasks import reporting_words as words
from tasks.reporting_record import Figure

__all__ = ["render", "write_page"]

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, **values: Any) -> str:
    """Fill a template; text is escaped, and a name that is not given is an error."""
    return _environment().get_template(template).render(**values)


def write_page(path: Path, template: str, **values: Any) -> Path:
    """Render a page into a file, whole or not at all."""
    atomic_write(path, render(template, **values).encode())
    return path


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "number": words.number, "signed": words.signed, "interval": words.interval, "percent": words.percent,
        "seconds": words.seconds, "metric": words.metric_name, "plain": _plain,
    }  # fmt: skip
    # our own drawings and style sheet: the only text that is not escaped
    environment.globals |= {"style": Markup((TEMPLATES / "style.css").read_text()), "markup": Markup}
    return environment


def _plain(value: object) -> str:
    """A parameter, statistic or threshold as text."""
    if isinstance(value, Figure):
        return f"{words.number(value.mean)} {words.interval(value)}"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "not set"}[value]
    if isinstance(value, float):
        return f"{value:.6g}".replace("-", words.MINUS)
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_plain, value))
    return str(value)
