"""The retraining flow on a small marketplace: every outcome that it can have."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from shop import Shop

from flows.retrain import STAGES
from perfusion.governance import Decision
from tasks import gates
from tasks.livelog import read_log
from tasks.registry import CHALLENGER, open_registry
from tasks.reporting import summary
from tasks.run_stage import StageError, run_stage
from tasks.tracking import open_store

pytestmark = pytest.mark.slow

First = tuple[Shop, State[Any]]
MODELS = ("clip", "diffusion", "dpo", "generator", "pickscore", "reward", "sft")


@pytest.fixture(scope="module")
def first(marketplace: Path, prefect_server: None, tmp_path_factory: pytest.TempPathFactory) -> First:
    """A first retraining of this file's own, for the tests below retrain there again, in their order."""
    shop = Shop.at(tmp_path_factory.mktemp("retrained"), marketplace)
    return shop, shop.retrain()


def test_a_first_run_trains_all_and_is_refused_with_reasons(first: First) -> None:
    """The smoke parameters teach the generator nothing, and the promotion gate sees that."""
    shop, state = first
    assert (state.is_completed(), state.name) == (True, "Refused"), state.message
    assert "promotion gate" in str(state.message)
    outcome = shop.outcome()
    assert outcome["status"] == "refused"
    assert not outcome["cached"]
    verdicts = {name: gate["verdict"] for name, gate in json.loads(shop.workspace.gates.read_text()).items()}
    assert verdicts.pop("promotion") != "pass"
    assert verdicts == {"data": "pass", "reward": "pass", "load": "pass"}
    assert set(json.loads(shop.workspace.seconds.read_text())) == {*STAGES, "clip", "diffusion"}
    assert (shop.workspace.report / "index.html").stat().st_size > 10_000


def test_a_corrupt_picture_is_quarantined_and_the_flow_goes_on(first: First) -> None:
    shop, _ = first
    report = json.loads(shop.workspace.metrics("validate").read_text())
    assert report["quarantined"] >= 1
    assert report["groups_in"] == report["quarantined"] + report["valid"]
    quarantined = pd.concat([pd.read_parquet(file) for file in shop.workspace.quarantine.glob("*.parquet")])
    assert quarantined["rule"].str.contains("decod|readable|image|picture", case=False).any()


def test_mlflow_holds_a_run_per_model_with_curves_pictures_and_the_dataset(first: First) -> None:
    shop, _ = first
    client = open_store(shop.workspace)
    parent = client.get_run(shop.outcome()["run_id"])
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["outcome"] == "refused"
    assert parent.data.params["generator.optimiser.steps"] == "10"
    assert [entry.dataset.digest for entry in parent.inputs.dataset_inputs] == [_content_hash(shop)]
    nested = client.search_runs(
        [parent.info.experiment_id], f"tags.mlflow.parentRunId = '{parent.info.run_id}' and tags.cached = 'false'"
    )  # fmt: skip
    assert sorted(run.data.tags["model"] for run in nested) == sorted(MODELS)
    for run in nested:
        assert len(client.get_metric_history(run.info.run_id, "loss")) >= 3, run.data.tags["model"]
    dpo = next(run for run in nested if run.data.tags["model"] == "dpo")
    assert client.list_artifacts(dpo.info.run_id, "images")
    kept = {item.path for item in client.list_artifacts(parent.info.run_id)}
    told = {"outcome.json", "report", "metrics"}
    assert {"dvc.lock", "dvc.yaml", "params.yaml", "git.diff", "resolved.json", *told} <= kept


def test_the_same_models_are_not_judged_twice(first: First, monkeypatch: pytest.MonkeyPatch) -> None:
    shop, _ = first
    before, asked_in = _said(shop), shop.outcome()["run_id"]
    for gate in ("load", "promotion"):
        monkeypatch.setattr(gates, gate, lambda *_: pytest.fail("asked again"))
    state = shop.retrain()
    assert state.name == "Refused", state.message
    now = shop.outcome()["run_id"]
    runs = {"data": now, "reward": now, "load": asked_in, "promotion": asked_in}
    assert _said(shop) == {gate: {**said, "run_id": runs[gate]} for gate, said in before.items()}


@pytest.fixture(scope="module")
def second(first: First) -> First:
    """The first run's shop after a second run, for which the promotion gate was told to pass."""
    shop, _ = first
    passed = Decision("promotion", "pass", ("pass: told so by this test",))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gates, "remembered", lambda *_: None)  # else the first run's verdict stands
        patch.setattr(gates, "promotion", lambda *_: passed)
        return shop, shop.retrain()


def test_a_second_run_finds_everything_cached_and_promotes_what_the_gate_now_passes(second: First) -> None:
    shop, state = second
    assert (state.name, shop.outcome()["status"]) == ("Promoted", "promoted"), state.message
    assert shop.outcome()["cached"]
    assert _state_names("retrain", STAGES) == dict.fromkeys(STAGES, "Cached")
    registry = open_registry(shop.workspace.tracking_uri, shop.workspace.mlruns)
    assert registry.champions("smoke") == {"smoke-reward": 1, "smoke-generator": 1}, "registered once, not again"
    assert [entry.action for entry in registry.history("smoke")] == ["promote"]


def test_a_third_run_has_nothing_new_to_promote_and_computes_nothing(second: First) -> None:
    shop, _ = second
    promoted, took = shop.outcome(), shop.workspace.seconds.read_text()
    state = shop.retrain()
    assert state.name == "Unchanged", state.message
    assert "nothing new to promote" in str(state.message)
    assert shop.outcome()["cached"]
    assert shop.workspace.seconds.read_text() == took, "a cached stage keeps the time of its real run"
    figures = summary(shop.workspace)
    assert figures["gates"] == dict.fromkeys(("data", "reward", "load", "promotion"), "pass")
    assert figures["gate_runs"]["data"] == shop.outcome()["run_id"]
    assert figures["gate_runs"]["promotion"] == promoted["run_id"], "the run in which these very models were judged"


def test_a_tie_is_not_promoted(second: First) -> None:
    """The same models once more, under another name for their content, against themselves as champions."""
    shop, _ = second
    registry = open_registry(shop.workspace.tracking_uri, shop.workspace.mlruns)
    before = registry.champions("smoke")
    for name, version in before.items():
        registry.client.set_model_version_tag(name, str(version), "content_md5", "another")
    state = shop.retrain()
    assert state.name == "Refused", state.message
    assert re.search(r"challenger minus champion is 0\.0000 \[0\.0000, 0\.0000\]", str(state.message))
    assert registry.champions("smoke") == before
    assert registry.version("smoke-generator", CHALLENGER) == 2


def test_the_reward_gate_closes_on_shuffled_users_and_diffusion_never_starts(first: First) -> None:
    shop, _ = first
    assert shop.workspace.generator.exists()
    state = shop.retrain(reward={"shuffle_users": True})
    assert state.name == "Refused", state.message
    assert "reward gate" in str(state.message)
    outcome = json.loads(shop.workspace.gates.read_text())
    assert "promotion" not in outcome
    for absent in (shop.workspace.generator, shop.workspace.dpo, shop.workspace.metrics("evaluate-generator")):
        assert not absent.exists(), "what an earlier run left there could be taken for this one's"
    assert shop.workspace.reward_evaluation.exists()


def test_a_killed_trainer_leaves_no_process_and_the_next_run_goes_on_where_it_was(first: First) -> None:
    shop, _ = first
    optimiser = {"steps": 60, "lr": 3e-3, "warmup": 5, "log_every": 5, "checkpoint_seconds": 0.2}
    values = shop.workspace.params().model_dump(mode="json")
    values["reward"] = {**values["reward"], "shuffle_users": False, "optimiser": optimiser}
    shop.workspace.params_file.write_text(json.dumps(values))
    failures: list[StageError] = []

    def train() -> None:
        try:
            run_stage(shop.workspace, "reward", lambda line: None)
        except StageError as error:
            failures.append(error)

    thread = threading.Thread(target=train)
    thread.start()
    state = shop.workspace.state / "reward" / "reward.pt"
    _wait_until(lambda: state.exists() and _last_step(shop) >= 10, 240)
    family = psutil.Process().children(recursive=True)
    (trainer,) = [child for child in family if child.cmdline()[-2:] == ["tasks.stages", "reward"]]
    os.kill(trainer.pid, 9)
    thread.join(60)
    assert failures
    assert not failures[0].expected
    assert not shop.workspace.reward.exists(), "nothing half-written"
    assert not [child for child in family if child.is_running() and "reward" in child.cmdline()]

    lines: list[str] = []
    result = run_stage(shop.workspace, "reward", lines.append)
    assert not result.cached
    (resumed,) = [int(m[1]) for line in lines if (m := re.search(r"resuming at step (\d+) of 60", line))]
    assert resumed > 0
    steps = [entry["step"] for entry in read_log(shop.workspace.log("reward")) if "loss" in entry.get("metrics", {})]
    assert steps == sorted(set(steps)), "steps taken twice are told once"
    assert steps[0] <= 5
    assert steps[-1] == 60


def test_a_missing_column_stops_the_flow_with_its_name_and_a_remedy(empty_shop: Shop) -> None:
    groups = empty_shop.data / "groups.parquet"
    table = pd.read_parquet(groups).drop(columns="prompt")
    groups.unlink()  # a hard link: the shared file stays as it is
    table.to_parquet(groups)
    state = empty_shop.retrain()
    assert state.is_failed()
    assert "groups.parquet" in str(state.message)
    assert "prompt" in str(state.message)
    assert "Traceback" not in str(state.message)
    assert not empty_shop.workspace.valid.exists()
    assert empty_shop.outcome()["status"] == "failed"


def test_a_second_run_in_one_workspace_is_refused_at_once(first: First) -> None:
    shop, _ = first
    with shop.workspace.held():
        state = shop.retrain()
    assert state.is_failed()
    assert f"process {os.getpid()} holds it" in str(state.message)


def _said(shop: Shop) -> dict[str, dict[str, Any]]:
    return dict(json.loads(shop.workspace.gates.read_text()))


def _content_hash(shop: Shop) -> str:
    return str(json.loads(shop.workspace.verified_data.read_text())["content_hash"])


def _last_step(shop: Shop) -> int:
    return max((entry.get("step", 0) for entry in read_log(shop.workspace.log("reward"))), default=0)


def _wait_until(condition: Any, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def _state_names(flow: str, tasks: tuple[str, ...]) -> dict[str, str]:
    """The state name of each of the latest flow run's tasks."""
    from prefect.client.schemas.filters import TaskRunFilter, TaskRunFilterFlowRunId
    from prefect.client.schemas.sorting import FlowRunSort

    with get_client(sync_client=True) as client:
        (latest,) = client.read_flow_runs(limit=1, sort=FlowRunSort.START_TIME_DESC)
        runs = client.read_task_runs(
            task_run_filter=TaskRunFilter(flow_run_id=TaskRunFilterFlowRunId(any_=[latest.id]))
        )  # fmt: skip
    return {name: str(run.state.name) for run in runs for name in [run.name.rpartition("-")[0]] if name in tasks}
