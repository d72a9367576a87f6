"""A dataset looked at more closely than by Table 1's numbers: how users, groups, picks and prompts are distributed."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from perfusion.data.charts import bar_chart
from perfusion.data.query import database
from perfusion.data.statistics import whole_records

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["distributions", "draw_distributions", "write_description"]

BINS = 40  # bars of a histogram over more different values than that

_PER_USER = "SELECT n, count(*) FROM (SELECT count(*) AS n FROM whole GROUP BY user_id) GROUP BY n ORDER BY n"
_PER_RECORD = "SELECT {of} AS n, count(*) FROM whole GROUP BY n ORDER BY n"
_PHRASES = "list_filter(list_transform(string_split(prompt, ','), lambda p: trim(p)), lambda p: p <> '')"
_TOP = f"""
    SELECT phrase, count(*) AS records FROM (SELECT unnest(list_distinct({_PHRASES})) AS phrase FROM whole)
    GROUP BY phrase ORDER BY records DESC, phrase LIMIT ?
"""
_POSITIONS = """
    SELECT place, count(*), avg(pick::INT), avg(share) FROM (
        SELECT generate_subscripts(picked, 1) AS place, unnest(picked) AS pick,
               list_sum(picked::UTINYINT[]) / len(picked) AS share FROM whole)
    GROUP BY place ORDER BY place
"""


def distributions(groups: Path, top: int = 20) -> dict[str, Any]:
    """How the group records that lack nothing are distributed; read by column, in bounded memory.

    Args:
        groups: groups.parquet.
        top: phrases to list.

    Returns:
        {"records_per_user", "group_size", "picked", "prompt_characters", "prompt_phrases": each {"median", "p10",
        "p90", "least", "most", "counts": [[value, how many]]}, in users for the first and in records for the others;
        "positions": [{"position" from 1, "records" that have it, "picked": share picked there, "expected": share if
        the place did not matter}], "top_phrases": [[phrase, records]]}.

    Raises:
        DataError: the file cannot be read.
    """
    counted = {
        "records_per_user": _PER_USER,
        "group_size": _PER_RECORD.format(of="len(image_ids)"),
        "picked": _PER_RECORD.format(of="coalesce(list_sum(picked::UTINYINT[]), 0)"),
        "prompt_characters": _PER_RECORD.format(of="length(prompt)"),
        "prompt_phrases": _PER_RECORD.format(of=f"len({_PHRASES})"),
    }
    with database() as query:
        whole_records(query, groups, "true")
        found: dict[str, Any] = {name: _summary(query, sql) for name, sql in counted.items()}
        found["positions"] = [
            dict(zip(("position", "records", "picked", "expected"), row, strict=True))
            for row in query.sql(_POSITIONS).fetchall()
        ]
        found["top_phrases"] = [list(row) for row in query.sql(_TOP, params=[top]).fetchall()]
    return found


def _summary(query: DuckDBPyConnection, sql: str) -> dict[str, Any]:
    rows = [(int(value), int(count)) for value, count in query.sql(sql).fetchall()]
    if not rows:
        return {"counts": []}
    values, counts = np.array(rows).T
    ends = np.cumsum(counts)
    at = {name: int(values[np.searchsorted(ends, share * ends[-1])]) for name, share in _SHARES.items()}
    return {**at, "least": int(values[0]), "most": int(values[-1]), "counts": [list(row) for row in rows]}


_SHARES = {"median": 0.5, "p10": 0.1, "p90": 0.9}


def draw_distributions(found: Mapping[str, Any]) -> dict[str, bytes]:
    """The charts of `distributions`: file name -> PNG."""
    places = found["positions"]
    charts = {
        "records_per_user": _histogram("Group records of a user", found["records_per_user"], "records", "users"),
        "group_size": _histogram("Candidates of a group", found["group_size"], "candidates", "records"),
        "picked": _histogram("Picked candidates of a group", found["picked"], "picked", "records"),
        "prompt_characters": _histogram("Length of prompts", found["prompt_characters"], "characters", "records"),
        "prompt_phrases": _histogram("Phrases of prompts", found["prompt_phrases"], "phrases", "records"),
        "positions": bar_chart(
            "Share picked by position", [row["position"] for row in places], [row["picked"] for row in places],
            axis="position in the group", unit="share picked",
            marks=("if the place did not matter", [row["expected"] for row in places]),
        ),
        "top_phrases": bar_chart(
            "Most frequent phrases", [phrase for phrase, _ in found["top_phrases"]],
            [records for _, records in found["top_phrases"]], unit="records", flat=True,
        ),
    }  # fmt: skip
    return {f"{name}.png": picture for name, picture in charts.items()}


def _histogram(title: str, summary: Mapping[str, Any], axis: str, unit: str) -> bytes:
    """Counts of whole numbers, put together in `BINS` bars of one width where they are many."""
    rows: Sequence[Sequence[int]] = summary["counts"]
    values, counts = np.array(rows, dtype=np.int64).reshape(-1, 2).T
    if len(values) and values[-1] - values[0] >= BINS:
        heights, edges = np.histogram(values, BINS, weights=counts)
        return bar_chart(title, ((edges[1:] + edges[:-1]) / 2).tolist(), heights.tolist(), axis=axis, unit=unit)
    return bar_chart(title, values.tolist(), counts.tolist(), axis=axis, unit=unit)


def write_description(out: Path, title: str, facts: Mapping[str, Any], found: Mapping[str, Any]) -> Path:
    """Write describe.json, the charts as PNG, and one HTML page that holds them all and opens offline.

    Args:
        out: folder to write into; made if it is not there.
        title: of the page, e.g. the dataset's folder.
        facts: see `describe_dataset`; "user_features" may hold its second part.
        found: see `distributions`.

    Returns:
        The page.
    """
    from jinja2 import Environment

    out.mkdir(parents=True, exist_ok=True)
    charts = draw_distributions(found)
    for name, picture in charts.items():
        (out / name).write_bytes(picture)
    (out / "describe.json").write_text(json.dumps({**facts, "distributions": found}, indent=1, ensure_ascii=False))
    encoded = {name: base64.b64encode(picture).decode() for name, picture in charts.items()}
    page = out / "index.html"
    shown = {name: _line(value) for name, value in facts.items() if name != "user_features"}
    template = Environment(autoescape=True).from_string(_PAGE)
    features = facts.get("user_features", {})
    page.write_text(template.render(title=title, facts=shown, features=features, charts=encoded), encoding="utf-8")
    return page


def _line(value: object) -> object:
    return ", ".join(f"{key}: {item}" for key, item in value.items()) if isinstance(value, Mapping) else value


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title><style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
td { padding: .1rem 1.5rem .1rem 0; } img { max-width: 100%; display: block; margin: 1rem 0; background: white; }
</style></head><body>
<h1>{{ title }}</h1>
<p>Table 1 of the paper counts users, prompts, samples (group records) and candidates of a group.</p>
<table>{% for name, value in facts.items() %}
<tr><td>{{ name }}</td><td>{{ value }}</td></tr>{% endfor %}
</table>
{% if features %}<h2>User features</h2>
<table>{% for name, feature in features.items() %}
<tr><td>{{ name }}</td><td>{{ feature.kind }}</td><td>{{ feature["values"] }} values</td><td>{{ feature.missing }}
missing</td></tr>{% endfor %}
</table>{% endif %}
{% for name, data in charts.items() %}<img alt="{{ name }}" src="data:image/png;base64,{{ data }}">
{% endfor %}</body></html>
"""
