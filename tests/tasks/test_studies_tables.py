"""Tables of studies from small made-up measurements: values, the paper's beside them, verdicts, and the page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tasks.studies.page import write_benchmark_page
from tasks.studies.paper import PAPER, paper_value
from tasks.studies.tables import Bars, Column, Row, Table, figure_table, generator_table, ranking_table
from tasks.studies.words import claim_text, header, metrics_of, plain_rows

OPTIONS = {"confidence": 0.95, "resamples": 200, "seed": 0, "min_clusters": 5}


def ranked(system: str, seed: int, auc: float, scorer: str = "x") -> pd.DataFrame:
    users = [f"u{i}" for i in range(20)]
    luck = np.random.default_rng(0).normal(scale=0.02, size=20)
    return pd.DataFrame({
        "system": system, "seed": seed, "unit": users, "user_id": users, "auc": auc + luck, "ap": (1 + auc) / 2 + luck,
        "floor": 0.4567, "scorer": scorer,
    })  # fmt: skip


@pytest.fixture
def ranking() -> Table:
    rows = pd.concat([
        ranked("full", 0, 0.94), ranked("full", 1, 0.96), ranked("pickscore", 0, 0.7, "pickscore[twin]"),
        ranked("shared", 0, 0.95),
    ])  # fmt: skip
    titles = {"full": "PerFusionRM", "pickscore": "PickScore", "shared": "PRM Shared", "hpsv1": "HPSv1"}
    claims = [("full", "pickscore", True), ("full", "shared", False), ("full", "hpsv1", True)]
    return ranking_table("table2", "Table 2", rows, titles, OPTIONS, claims, {"hpsv1": "no weights"})


def test_a_ranking_table_has_the_floor_and_the_paper_beside_every_map(ranking: Table) -> None:
    assert header(ranking) == [
        "", "MAP", "paper: PickaPic / Industrial", "random floor", "GAUC", "paper: PickaPic / Industrial",
    ]  # fmt: skip
    full = plain_rows(ranking)[0]
    assert full[0] == "PerFusionRM"
    assert full[1].startswith("0.97")
    assert full[1].endswith("±0.0050"), "half of the range over seeds"
    assert (full[2], full[3], full[5]) == ("0.8822 / 0.922", "0.4567", "0.7644 / 0.9564")


def test_a_twin_carries_its_mark_and_an_absent_system_its_reason(ranking: Table) -> None:
    titles = [row[0] for row in plain_rows(ranking)]
    assert titles == ["PerFusionRM", "PickScore [twin]", "PRM Shared", "HPSv1 (not run: no weights)"]
    assert plain_rows(ranking)[3][1:4] == ["-", "0.8293 / 0.4565", "-"]


def test_claims_that_can_be_judged_are(ranking: Table) -> None:
    assert [(claim.right, claim.verdict) for claim in ranking.claims] == [("pickscore", "holds"), ("shared", "holds")]
    text = claim_text(ranking.claims[1], {row.name: row.title for row in ranking.rows})
    assert text.startswith("holds: PerFusionRM ≥ PRM Shared in GAUC; difference 0.0000")


def test_metrics_are_named_by_row_and_column(ranking: Table) -> None:
    found = metrics_of(ranking)
    assert found["pickscore/floor"] == pytest.approx(0.4567)
    assert found["full/auc/low"] <= found["full/auc"] <= found["full/auc/high"]
    assert not any(name.startswith("hpsv1") for name in found)


def test_a_generator_table_takes_twins_as_they_are_called() -> None:
    users = [f"u{i}" for i in range(10)]
    common = {"seed": 0, "unit": range(10), "user_id": users}
    rows = pd.concat([
        pd.DataFrame({**common, "system": s, "aesthetic[twin]": v, "true_utility": v})
        for s, v in (("perfusion", 2.0), ("wo_pan", 1.0), ("wo_gobj", 3.0))
    ])  # fmt: skip
    titles = {"perfusion": "PerFusion", "wo_pan": "PF w/o PAN", "wo_gobj": "PF w/o GOBJ", "base": "SD1.5"}
    claims = [("perfusion", other, "true_utility") for other in ("wo_pan", "wo_gobj")]
    table = generator_table("table3", "Table 3", rows, titles, OPTIONS, claims, {})
    assert [column.title for column in table.columns] == ["Aesthetic [twin]", "true utility"]
    assert plain_rows(table)[3][:3] == ["SD1.5 (not run: not measured)", "-", "5.39 / 5.36"]
    assert [claim.verdict for claim in table.claims] == ["holds", "does not hold"]
    chart = table.charts[0]
    assert isinstance(chart, Bars)
    assert [title for title, _ in chart.bars] == ["PerFusion", "PF w/o PAN", "PF w/o GOBJ"]


def test_the_page_holds_everything_and_asks_nobody(ranking: Table, tmp_path: Path) -> None:
    other = figure_table(
        "table1", "Table <1>", [Column("users", "#Users", 0)], [Row("d", "this & that", {"users": 5.0})]
    )
    page = write_benchmark_page(tmp_path / "page.html", [ranking, other], {"table1": b"png"}, {"seeds": 2}).read_text()
    assert "Table &lt;1&gt;" in page
    assert "this &amp; that" in page
    assert "0.8822 / 0.922" in page
    assert page.count("data:image/png;base64,") == 2
    assert "holds: PerFusionRM &gt; PickScore" in page or "holds: PerFusionRM > PickScore" in page
    assert "http" not in page.replace("http-equiv", "")


def test_the_papers_numbers_obey_map_is_half_of_one_plus_gauc_on_pairs() -> None:
    """All seven PickaPic rows of Table 2; a mistyped digit would show."""
    for system in PAPER["table2"]:
        ap, auc = (paper_value("table2", system, key)[0] for key in ("ap", "auc"))
        assert ap is not None
        assert auc is not None
        assert ap == pytest.approx((1 + auc) / 2, abs=0.00011), system
    assert paper_value("fig5", "full", "auc") == (None, None)
