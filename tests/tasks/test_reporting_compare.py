"""Two runs on one page: what differs, on shared items only, from folders and from MLflow."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tasks.reporting import compare
from tasks.reporting_compare import comparison_view, config_difference
from tasks.reporting_record import ReportError, read_record
from tasks.reporting_sources import open_run
from tasks.workspace import Workspace, open_workspace

MakeRun = Callable[..., Path]
LOCK = """
schema: '2.0'
stages:
  validate: {deps: [{path: data, md5: DATA}], outs: [{path: work/valid, md5: v}]}
  reward: {outs: [{path: work/reward, md5: REWARD}]}
  pickscore: {outs: [{path: work/pickscore, md5: p}]}
  backbones: {outs: [{path: work/backbones, md5: b}]}
"""


def lock(root: Path, data: str = "d", reward: str = "r") -> None:
    (root / "dvc.lock").write_text(LOCK.replace("DATA", data).replace("REWARD", reward))


def rows(view: dict[str, Any]) -> dict[str, Any]:
    return {row["column"]: row for part in ("items", "groups") for row in view[part]["rows"]}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return open_workspace(tmp_path / "none", tmp_path / "none")


def test_a_run_against_itself_differs_in_nothing(make_run: MakeRun) -> None:
    record = read_record(make_run())
    view = comparison_view(record, record)
    assert view["verdict"]["word"] == "No clear difference"
    assert {(row["difference"].low, row["difference"].high) for row in rows(view).values()} == {(0.0, 0.0)}
    assert view["config"]["rows"] == []
    assert all(cell["same"] for block in view["pictures"]["blocks"] for row in block["rows"] for cell in row["cells"])


def test_a_better_run_is_called_better(make_run: MakeRun) -> None:
    a, b = read_record(make_run("a")), read_record(make_run("b", skill=1.6))
    view = comparison_view(a, b)
    assert view["verdict"]["word"] == "B is better"
    assert rows(view)["true_utility"]["difference"].mean == pytest.approx(0.6 * 2.2)
    assert comparison_view(b, a)["verdict"]["word"] == "B is worse"


def test_items_of_one_run_alone_are_counted_and_left_out(make_run: MakeRun) -> None:
    a, b = make_run("a"), make_run("b")
    file = b / "work/evaluation/generator/pictures.parquet"
    pictures = pd.read_parquet(file)
    pictures[pictures["user_id"] != "m00003"].to_parquet(file)
    view = comparison_view(read_record(a), read_record(b))
    assert (view["items"]["shared"], view["items"]["only_a"], view["items"]["only_b"]) == (23, 1, 0)


def test_a_name_that_means_another_thing_is_left_out(make_run: MakeRun) -> None:
    a, b = make_run("a"), make_run("b")
    file = b / "work/evaluation/generator/pictures.parquet"
    pictures = pd.read_parquet(file)
    pictures["slice_style"] = pictures["slice_style"].where(pictures["user_id"] != "m00005", "sporty")
    pictures.to_parquet(file)
    view = comparison_view(read_record(a), read_record(b))
    assert (view["items"]["shared"], view["items"]["differ"]) == (23, 1)


def test_runs_that_share_nothing_are_not_compared(make_run: MakeRun) -> None:
    a, b = make_run("a"), make_run("b")
    for name, column in (("reward/groups", "record_id"), ("generator/pictures", "user_id")):
        file = b / f"work/evaluation/{name}.parquet"
        table = pd.read_parquet(file)
        table.assign(**{column: "other-" + table[column]}).to_parquet(file)
    view = comparison_view(read_record(a), read_record(b))
    assert view["verdict"]["word"] == "Not comparable"
    assert view["pictures"] is None


@pytest.mark.parametrize(("reward", "ruler"), [("r", "same"), ("other", "other")])
def test_scores_of_two_reward_models_are_not_subtracted(make_run: MakeRun, reward: str, ruler: str) -> None:
    a, b = make_run("a"), make_run("b")
    lock(a)
    lock(b, reward=reward)
    found = rows(comparison_view(read_record(a), read_record(b)))
    assert found["perfusion_rm"]["ruler"] == ruler
    assert found["true_utility"]["ruler"] == "same"


def test_without_a_lock_the_ruler_is_unknown(make_run: MakeRun) -> None:
    record = read_record(make_run())
    view = comparison_view(record, record)
    assert rows(view)["perfusion_rm"]["ruler"] == "unknown"
    assert view["data"]["same"] == "unknown"


def test_only_parameters_that_differ_are_listed() -> None:
    left = {"seed": 0, "reward": {"optimiser": {"steps": 450, "lr": 0.003}}}
    right = {"seed": 0, "reward": {"optimiser": {"steps": 600, "lr": 0.003}, "variant": "text_only"}}
    found = {row["key"]: (row["a"], row["b"]) for row in config_difference(left, right)["rows"]}
    assert found == {"reward.optimiser.steps": (450, 600), "reward.variant": ("full", "text_only")}


def test_a_default_written_out_is_no_difference() -> None:
    assert config_difference({}, {"seed": 0})["rows"] == []


def test_parameters_of_another_code_version_are_compared_as_written() -> None:
    view = config_difference({"gone": {"key": 1}}, {"seed": 0})
    assert view["as_written"]
    assert ("gone.key", 1, "not there") in [(row["key"], row["a"], row["b"]) for row in view["rows"]]


def test_the_page_is_whole_and_offline(make_run: MakeRun, workspace: Workspace, tmp_path: Path) -> None:
    a, b = make_run("a"), make_run("b", skill=1.6)
    lock(a, data="one")
    lock(b, data="two", reward="other")
    (b / "params.yaml").write_text("reward: {variant: text_only}\n")
    text = compare(workspace, a, b / "work", tmp_path / "page.html").read_text()
    assert "B is better" in text
    assert "reward.variant" in text
    assert "each run&#39;s own scorer" in text or "each run's own scorer" in text
    assert "Data: different" in text
    assert "Where B gained most" in text
    assert text.count("data:image/png") > 20
    assert not re.search(r'(src|href)="(?!data:|#)', text)


def test_runs_by_id_and_by_version(make_run: MakeRun, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    root = make_run("a")
    space = open_workspace(root, tmp_path / "mlruns")
    space.mlruns.mkdir()
    client = mlflow.MlflowClient(tracking_uri=space.tracking_uri, registry_uri=space.tracking_uri)
    experiment = client.create_experiment("perfusion", artifact_location=(space.mlruns / "artifacts").as_uri())
    parent = client.create_run(experiment, run_name="monday").info.run_id
    nested = client.create_run(experiment, tags={"mlflow.parentRunId": parent}).info.run_id
    client.log_artifact(parent, str(root / "params.yaml"))
    for folder in ("metrics", "evaluation"):
        client.log_artifacts(parent, str(root / "work" / folder), folder)
    client.create_registered_model("perfusion-generator")
    client.create_model_version("perfusion-generator", str(root), nested)
    client.set_registered_model_alias("perfusion-generator", "champion", "1")
    for reference in (parent, nested, "generator@1", "perfusion-generator@champion"):
        with open_run(space, reference) as record:
            assert record.params["name"] == "perfusion"
            assert record.pictures is not None
            assert "monday" in record.title
    with pytest.raises(ReportError, match=r"generator@7: no such run or version"), open_run(space, "generator@7"):
        pass


def test_no_such_folder_and_no_store_is_a_clear_error(workspace: Workspace) -> None:
    with (
        pytest.raises(ReportError, match=r"nowhere: no such folder, and there is no store"),
        open_run(workspace, "nowhere"),
    ):
        pass


def test_a_run_without_pictures_is_compared_on_groups(make_run: MakeRun) -> None:
    a, b = make_run("a"), make_run("b", skill=1.5)
    shutil.rmtree(b / "work/evaluation/generator")
    view = comparison_view(read_record(a), read_record(b))
    assert view["items"]["missing"] == "B kept no table of pictures"
    assert view["verdict"]["word"] == "B is better"
