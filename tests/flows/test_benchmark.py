"""The benchmark on a small marketplace: interrupted it goes on, a second time it computes nothing, and it tells."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prefect.client.schemas.objects import State
from shop import Shop

from flows.benchmark import Benchmark, benchmark
from flows.cli_benchmark import _chosen
from perfusion.errors import ConfigError
from tasks.studies.systems import STUDIES
from tasks.tracking import open_store
from tasks.unchanged import unchanged_stages

First = tuple[Shop, State[Any]]
NAMES = ["table1", "fig5"]
STAGES = 8  # three variants trained, and five systems scored; the full model is the retraining's own


@pytest.fixture(scope="module")
def made(first: First) -> tuple[Shop, list[str], Benchmark]:
    """A benchmark that was interrupted after its first stage and begun again; with the stages it ran again."""
    shop, _ = first

    def interrupt(line: str) -> None:
        if line.startswith("[1/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        benchmark(shop.workspace, NAMES, 1, interrupt)
    lines: list[str] = []
    return shop, lines, benchmark(shop.workspace, NAMES, 1, lines.append)


@pytest.mark.slow
def test_an_interrupted_benchmark_goes_on_where_it_was(made: tuple[Shop, list[str], Benchmark]) -> None:
    _, lines, found = made
    assert 0 < found.ran < STAGES, "what had finished was not done again"
    assert any(line.startswith(f"{found.ran} stages to run, {STAGES - found.ran} cached") for line in lines)
    assert lines[-1].startswith(f"[{found.ran}/{found.ran}]")
    assert not any("retraining's" in line for line in lines), "the retraining's own models are used as they are"


@pytest.mark.slow
def test_a_second_benchmark_computes_nothing_and_says_the_same(made: tuple[Shop, list[str], Benchmark]) -> None:
    shop, _, found = made
    lines: list[str] = []
    again = benchmark(shop.workspace, NAMES, 1, lines.append)
    assert again.ran == 0
    assert f"nothing has changed: all {STAGES} stages of these studies are cached" in lines
    assert again.tables == found.tables


@pytest.mark.slow
def test_a_retraining_knows_nothing_of_the_studies(made: tuple[Shop, list[str], Benchmark]) -> None:
    shop, _, _ = made
    listed = subprocess.run(
        [sys.executable, "-m", "dvc", "stage", "list", "--all", "--name-only"], cwd=shop.workspace.root,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "reward" in listed.stdout.split()
    assert not [name for name in listed.stdout.split() if "@" in name]
    assert unchanged_stages(shop.workspace, ("reward", "generator")) == {"reward", "generator"}


@pytest.mark.slow
def test_tables_are_kept_as_a_page_and_in_mlflow(made: tuple[Shop, list[str], Benchmark]) -> None:
    shop, _, found = made
    page = found.page.read_text()
    assert all(STUDIES[name].title in page for name in NAMES)
    assert "PRM Vision-Only" in page
    client = open_store(shop.workspace)
    parent = client.get_run(found.run_id)
    nested = client.search_runs(
        [parent.info.experiment_id], f"tags.mlflow.parentRunId = '{found.run_id}'"
    )  # fmt: skip
    assert {run.data.tags["study"] for run in nested} == set(NAMES)
    (ablation,) = [run for run in nested if run.data.tags["study"] == "fig5"]
    assert 0.0 <= ablation.data.metrics["full/auc"] <= 1.0
    kept = {Path(item.path).name for item in client.list_artifacts(ablation.info.run_id)}
    assert {"fig5.json", "fig5.txt", "fig5-0.png"} <= kept


def test_names_are_taken_once_and_in_order() -> None:
    assert _chosen(["fig5", "table1", "fig5"]) == ["table1", "fig5"]
    assert _chosen(["fig5", "all"]) == list(STUDIES)
    with pytest.raises(ConfigError, match="did you mean 'table2'"):
        _chosen(["tabel2"])
