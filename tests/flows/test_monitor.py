"""The monitor as a person meets it: a champion, fresh picks, events of shops, and a rollback that rests on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import tiny_models
import yaml
from prefect.client.schemas.objects import State

from flows.monitor import monitor
from perfusion.data import write_dataset
from tasks.monitoring_snapshot import snapshot_of_version
from tasks.registry import Registry, open_registry
from tasks.workspace import REPOSITORY, Workspace, open_workspace

GATES = {"min_users": 3, "resamples": 100, "confidence": 0.95}
RECORDS = 40


def dataset(root: Path, seed: int, style: str | None = None, gap: str = "") -> Path:
    """Records of tiny_models' users, who pick at random among pictures of 16 pixels."""
    rng = np.random.default_rng(seed)
    users = pd.concat([tiny_models.USERS] * 10, ignore_index=True)
    users["user_id"] = [f"u{number}" for number in range(len(users))]
    if style is not None:
        users["style"] = style
    rows = []
    for user in users["user_id"]:
        for number in range(RECORDS // 10):
            ids = [f"i{place}" for place in rng.choice(12, 4, replace=False)]
            picked = [place == 0 for place in range(4)]
            prompt = tiny_models.PROMPTS[int(rng.integers(2))] + gap
            rows.append((f"{seed}-{user}-{number}", user, pd.Timestamp(2026, 1, 1 + seed), prompt, ids, picked))
    columns = ["record_id", "user_id", "created_at", "prompt", "image_ids", "picked"]
    pictures = [(f"i{place}", tiny_models.picture(20 * place)) for place in range(12)]
    write_dataset(root, users, pd.DataFrame(rows, columns=columns), pictures)
    return root


def events(path: Path, returns: float, shops: int = 30) -> Path:
    """Shops in which `returns` times as many treated items come back as others."""
    rng = np.random.default_rng(0)
    rows = []
    for shop in range(shops):
        for arm, factor in (("ai", returns), ("human", 1.0)):
            seen = {f"{where}_impressions": 9000 for where in ("search", "recommendation")}
            clicked = {f"{where}_clicks": 900 for where in ("search", "recommendation")}
            counts = {**seen, **clicked, "orders": 600, "returns": int(rng.binomial(600, 0.1 * factor))}
            rows.append({"store": f"s{shop}", "arm": arm, **counts})
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, prefect_server: None) -> tuple[Workspace, Registry, Path]:
    """A workspace whose second pair of models serves, and the data they were trained on."""
    root = tmp_path_factory.mktemp("monitor")
    (root / "mlruns").mkdir()
    registry = tiny_models.make_store(root / "mlruns", versions=2)
    for version in (1, 2):
        versions = {"shop-reward": version, "shop-generator": version}
        registry.promote(versions, expected=registry.champions("shop"), decisions=[], reason="a test", force=True)
    params = {"name": "shop", "data": {"image_size": 16, "min_groups": 10}, "gates": GATES,
              "monitor": {"min_users": 10, "min_groups": 50, "max_calibration_error": 0.9}}  # fmt: skip
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    (root / "dvc.yaml").write_text((REPOSITORY / "dvc.yaml").read_text())
    return open_workspace(root, root / "mlruns"), registry, dataset(root / "trained", 0)


def watch(workspace: Workspace, **given: Any) -> tuple[State[Any], dict[str, Any]]:
    """Run the flow; how it ended, and what it found."""
    paths = {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}
    state = monitor(root=str(workspace.root), mlruns=str(workspace.mlruns), **paths, return_state=True)
    return state, json.loads(workspace.watched.read_text()) if workspace.watched.exists() else {}


def test_its_deployment_names_the_flow_and_its_parameters() -> None:
    deployments = yaml.safe_load((REPOSITORY / "prefect.yaml").read_text())["deployments"]
    written = next(made for made in deployments if made["name"] == "watch")
    assert written["entrypoint"] == "flows/monitor.py:monitor"
    assert written["parameters"].keys() <= monitor.parameters.properties.keys()
    assert written["concurrency_limit"]["collision_strategy"] == "CANCEL_NEW"


@pytest.mark.slow
def test_nothing_moved_and_then_something_did(place: tuple[Workspace, Registry, Path], tmp_path: Path) -> None:
    workspace, registry, trained = place
    _, steady = watch(workspace, data=dataset(tmp_path / "same", 1), reference=trained)
    drift = next(decision for decision in steady["decisions"] if decision["gate"] == "monitor")
    assert not [r for r in drift["reasons"] if r.startswith("fail") and "GAUC" not in r], drift["reasons"]
    state, found = watch(workspace, data=dataset(tmp_path / "moved", 1, "neon", ", zorgle"), reference=trained)
    assert (state.name, found["verdict"], found["rollback"]) == ("Alarm", "fail", "none")
    told = "\n".join(found["decisions"][0]["reasons"])
    assert "fail: style" in told
    assert "'style': 100" in told
    assert "fail: unseen words" in told
    files = {file.path for file in registry.client.list_artifacts(found["run_id"])}
    assert {"drift.csv", "drift.png", "reliability.csv", "reliability.png", "monitor.json"} <= files
    assert registry.client.get_run(found["run_id"]).data.tags["gate.monitor"] == "fail"


@pytest.mark.slow
def test_a_rise_of_returns_proposes_and_then_performs_a_rollback(
    place: tuple[Workspace, Registry, Path], tmp_path: Path
) -> None:
    workspace, registry, trained = place
    fresh, rise = dataset(tmp_path / "fresh", 1), events(tmp_path / "rise.csv", 1.8)
    _, calm = watch(workspace, data=fresh, reference=trained, outcomes=events(tmp_path / "calm.csv", 0.8))
    assert calm["decisions"][1]["verdict"] == "pass"
    _, proposed = watch(workspace, data=fresh, reference=trained, outcomes=rise)
    assert proposed["rollback"] == "proposed"
    assert "perfusion rollback --reason" in proposed["message"]
    assert registry.champions("shop") == {"shop-generator": 2, "shop-reward": 2}

    params = yaml.safe_load(workspace.params_file.read_text())
    params["monitor"]["on_return_rise"] = "rollback"
    workspace.params_file.write_text(yaml.safe_dump(params))
    state, performed = watch(workspace, data=fresh, reference=trained, outcomes=rise)
    assert (state.name, performed["rollback"]) == ("Alarm", "performed")
    again = open_registry(workspace.tracking_uri, workspace.mlruns)
    assert again.champions("shop") == {"shop-generator": 1, "shop-reward": 1}
    last = again.history("shop")[-1]
    assert last.action == "rollback"
    assert performed["run_id"] in last.reason
    assert [decision.gate for decision in last.decisions] == ["outcomes"]
    assert last.decisions[0].statistics["return_rise"]["low"] > 0.1
    assert "outcomes.json" in {file.path for file in again.client.list_artifacts(performed["run_id"])}

    _, repeated = watch(workspace, data=fresh, reference=trained, outcomes=rise)
    assert repeated["rollback"] == "none"
    assert f"caused rollback #{last.number} before" in repeated["message"]
    assert again.champions("shop") == {"shop-generator": 1, "shop-reward": 1}


def test_a_champion_without_a_snapshot_says_what_to_name(
    place: tuple[Workspace, Registry, Path], tmp_path: Path
) -> None:
    workspace, _, _ = place
    state, _ = watch(workspace, data=tmp_path)
    assert state.is_failed()
    assert "--reference FOLDER" in str(state.message)


def test_the_first_run_keeps_a_snapshot_that_the_monitor_finds(first: Any) -> None:
    """The retraining that all tests of flows share."""
    shop, _ = first
    registry = open_registry(shop.workspace.tracking_uri, shop.workspace.mlruns)
    mlflow.set_tracking_uri(shop.workspace.tracking_uri)
    versions = registry.client.search_model_versions("name = 'smoke-reward'")
    if not versions:
        assert (shop.workspace.snapshot / "snapshot.json").exists()
        return
    snapshot = snapshot_of_version(registry.client, "smoke-reward", int(versions[0].version))
    assert snapshot.profile["groups"] == len(pd.read_parquet(shop.workspace.split / "groups.parquet"))
    assert len(snapshot.gauc) > 0
