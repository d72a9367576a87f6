"""The page of a benchmark: every table asked for with its drawings, one file that opens anywhere."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.reporting_page import write_page
from tasks.studies.drawing import draw_chart
from tasks.studies.tables import Table
from tasks.studies.words import claim_text, header, plain_rows

__all__ = ["write_benchmark_page"]

_TONES = {"holds": "pass", "does not hold": "fail", "inconclusive": "inconclusive"}


def write_benchmark_page(
    path: Path, tables: Sequence[Table], sheets: Mapping[str, bytes], facts: Mapping[str, Any]
) -> Path:
    """Write the page.

    Args:
        path: of the file.
        tables: in the order asked for.
        sheets: study -> contact sheet as PNG.
        facts: what made it: seeds, workspace, seconds.
    """
    return write_page(
        path, "benchmark.html.j2", tables=[_view(table, sheets.get(table.name)) for table in tables], facts=dict(facts),
        made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    )  # fmt: skip


def _view(table: Table, sheet: bytes | None) -> dict[str, Any]:
    titles = {row.name: row.title for row in table.rows}
    claims = [{"tone": _TONES[claim.verdict], "text": claim_text(claim, titles)} for claim in table.claims]
    return {
        "name": table.name, "title": table.title, "header": header(table), "rows": plain_rows(table), "claims": claims,
        "notes": table.notes, "charts": [(chart.title, _uri(draw_chart(chart))) for chart in table.charts],
        "sheet": None if sheet is None else _uri(sheet),
    }  # fmt: skip


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
