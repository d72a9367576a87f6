"""`perfusion gate explain`: the record of a decision, found again and told so that a person understands it."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from tiny_models import PROMPTS, make_store

from flows.cli import main
from perfusion.errors import GateError
from perfusion.governance import Check, Decision, at_most, decide
from perfusion.governance.checks import above, not_below
from perfusion.statistics import Interval
from tasks.gate_records import find_answers
from tasks.models.costs import serving_costs
from tasks.registry import Evidence, Registry
from tasks.reporting_gates import bound_text, gate_rows, told_of, value_text
from tasks.reporting_record import ReportError
from tasks.reporting_words import humane, split_reason
from tasks.tracking import FlowRecord, experiment_of, open_store
from tasks.workspace import Workspace, open_workspace

GAIN = Interval(0.0412, -0.0101, 0.0922, 0.95, 417, 979)
PROMOTION = decide(
    "promotion",
    [
        above("champion_rm of challenger minus champion", GAIN),
        not_below("perfusion_rm on slice_style=bold, in standard deviations,", GAIN, 0.5),
        at_most("memory_mib over the champion's", 1.0, 1.5),
    ],
    {"slices_not_judged": ["slice_region=east"]},
    {"slice_margin": 0.5},
    {"items": 320, "challenger": {"shop-generator": 1}, "champion": {"shop-generator": None}},
)
DATA = Decision("data", "pass", ("pass: valid group records 900, needs at least 100",))  # of before there were checks


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    root = tmp_path_factory.mktemp("shop")
    (root / "params.yaml").write_text("name: shop\n")
    (root / "dvc.yaml").write_text("stages: {}\n")
    return make_store(root / "mlruns")


@pytest.fixture(scope="module")
def workspace(registry: Registry) -> Workspace:
    mlruns = registry.ledger.path.parent
    return open_workspace(mlruns.parent, mlruns)


@pytest.fixture(scope="module")
def run_id(workspace: Workspace) -> str:
    """A run of the flow in which the data gate opened and the promotion gate did not."""
    client = open_store(workspace)
    experiment = experiment_of(client, workspace, "shop")
    run = client.create_run(experiment, tags={"prefect.flow": "retrain"})
    record = FlowRecord(client, experiment, run.info.run_id, workspace, workspace.params())
    for decision in (PROMOTION, DATA):
        record.decision(decision, run.info.run_id)
    return str(run.info.run_id)


def explain(capsys: pytest.CaptureFixture[str], workspace: Workspace, *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stopped:
        main(["gate", "explain", *arguments, "--workspace", str(workspace.root)])
    said = capsys.readouterr()
    return int(stopped.value.code or 0), said.out + said.err


def test_a_run_is_explained_by_its_id_and_as_the_last_one(
    workspace: Workspace, run_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = explain(capsys, workspace, run_id)
    assert code == 2, "a gate was closed"
    assert said.index("data gate: pass") < said.index("promotion gate: inconclusive"), "in the order of the graph"
    for told in (
        "0.0412 [-0.0101, 0.0922] of 417 users", "interval above 0.0000", "? inconclusive",
        "0.0412 sd [-0.0101, 0.0922] of 417 users", "interval not below -0.5000 sd", "✓ pass",
        "items 320; challenger shop-generator 1; champion shop-generator none", f"asked in MLflow run {run_id}",
        "too few users to be judged on their own: slice_region=east",
    ):  # fmt: skip
        assert told in said, told
    assert explain(capsys, workspace)[1] == said, "the last run is meant where none is named"


def test_json_holds_the_whole_record(workspace: Workspace, run_id: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, said = explain(capsys, workspace, "last", "--json")
    told = json.loads(said)["gates"]
    assert told["promotion"].pop("run_id") == run_id
    assert Decision.from_dict(told["promotion"]) == PROMOTION
    assert list(told) == ["data", "promotion"]


def test_a_version_is_explained_by_what_was_said_of_it_last(
    registry: Registry, workspace: Workspace, run_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    versions = {"shop-reward": 1, "shop-generator": 1}
    for verdict in ("fail", "pass"):
        said = (Decision("promotion", verdict, (f"{verdict}: told by this test",)),)  # type: ignore[arg-type]
        registry.record_evidence(Evidence(versions, dict.fromkeys(versions), said, {"promotion": "of-long-ago"}))
    for reference in ("generator@1", "shop-reward@challenger"):
        code, told = explain(capsys, workspace, reference)
        assert code == 0
        assert "promotion gate: pass" in told
        assert "asked in MLflow run of-long-ago" in told


def test_runs_of_before_records_are_read_from_the_metrics_folder(workspace: Workspace, tmp_path: Path) -> None:
    client = open_store(workspace)
    run = client.create_run(experiment_of(client, workspace, "shop"))
    old = {key: value for key, value in PROMOTION.to_dict().items() if key not in ("checks", "inputs")}
    file = tmp_path / "gates.json"
    file.write_text(json.dumps({"promotion": {**old, "run_id": None}}))
    client.log_artifact(run.info.run_id, str(file), "metrics")
    (answer,) = find_answers(workspace, run.info.run_id).answers
    assert answer.decision.reasons == PROMOTION.reasons
    assert [row["check"] for row in gate_rows(answer.decision)] == [
        humane(split_reason(reason)[1]) for reason in PROMOTION.reasons
    ]


def test_what_leads_nowhere_says_what_would(workspace: Workspace, tmp_path: Path) -> None:
    client = open_store(workspace)
    bare = client.create_run(experiment_of(client, workspace, "shop"))
    for reference, told in (("nonsense", "no such run"), ("generator@9", "no such run or version"),
                            (bare.info.run_id, "no gate was asked")):  # fmt: skip
        with pytest.raises(ReportError, match=told):
            find_answers(workspace, reference)
    empty = open_workspace(tmp_path, tmp_path / "mlruns")
    with pytest.raises(ReportError, match="no store of runs"):
        find_answers(empty, "last")


def test_values_and_bounds_are_told_with_their_units() -> None:
    few = above("gain", Interval(0.2, float("nan"), float("nan"), 0.95, 3, 9))
    assert value_text(few) == "0.2000 [too few users] of 3 users"
    assert value_text(at_most("seconds", None, 2.0, " s")) == "missing"
    assert bound_text(at_most("seconds", 1.0, 2.0, " s")) == "at most 2.0000 s"
    assert value_text(at_most("difference", 0.00000123, 1e-5)) == "1.2e-06"
    assert value_text(at_most("rows", 900, 1000)) == "900"
    words = Check("loads", "fail", "the artifact does not load: no module named x")
    assert (value_text(words), bound_text(words)) == ("", "")
    (row,) = gate_rows(decide("load", [words], {}, {}))
    assert row["meaning"].endswith("the artifact does not load: no module named x")
    assert told_of(decide("load", [words], {}, {}), None) == []


@pytest.mark.slow
def test_costs_are_measured_in_clean_processes_side_by_side(registry: Registry) -> None:
    probe = pd.DataFrame({"user_id": ["u1"], "prompt": [PROMPTS[0]], "n": [2], "seed": [0]})
    uri = registry.client.tracking_uri
    found = serving_costs(dict.fromkeys(("challenger", "champion"), "models:/shop-generator/1"), probe, uri, rounds=3)
    assert set(found) == {"challenger", "champion"}
    memory = [costs["memory_mib"] for costs in found.values()]
    assert min(memory) > 100, "torch alone takes more"
    assert max(memory) / min(memory) < 1.2, "the same model costs the same"
    assert all(0 < costs["seconds_per_picture"] < 60 for costs in found.values())
    with pytest.raises(GateError, match="models:/shop-generator/99"):
        serving_costs({"absent": "models:/shop-generator/99"}, probe, uri)
