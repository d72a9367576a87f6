"""A retraining that follows a promotion cut in the middle sees whole champions."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml

from perfusion.config import Params
from perfusion.governance import Decision
from tasks import publishing
from tasks.registry import Registry, open_registry
from tasks.tracking import FlowRecord
from tasks.workspace import Workspace, open_workspace

REWARD, GENERATOR = "shop-reward", "shop-generator"
PASSED = [Decision(gate, "pass") for gate in ("reward", "load", "promotion")]


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Two versions of both models, the first pair serving, the second made from what the workspace holds."""
    workspace = open_workspace(tmp_path, tmp_path / "mlruns")
    workspace.mlruns.mkdir()
    registry = open_registry(workspace.tracking_uri, workspace.mlruns)
    for name in (REWARD, GENERATOR):
        registry.client.create_registered_model(name)
        for number in (1, 2):
            files = tmp_path / "files" / f"{name}-{number}"
            files.mkdir(parents=True)
            (files / "model.safetensors").write_text(files.name)
            registry.client.create_model_version(name, str(files), tags={publishing.CONTENT: f"{name}-{number}"})
            registry.register(name, number)
    registry.promote({REWARD: 1, GENERATOR: 1}, expected={REWARD: None, GENERATOR: None}, decisions=PASSED)
    stages = {name.removeprefix("shop-"): {"outs": [{"md5": f"{name}-2"}]} for name in (REWARD, GENERATOR)}
    workspace.dvc_lock.write_text(yaml.safe_dump({"stages": stages}))
    return workspace


@pytest.mark.parametrize(("moved", "champion"), [(0, 1), (1, 2), (2, 2)])
def test_registering_finishes_or_undoes_what_a_crash_left(
    workspace: Workspace, moved: int, champion: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "_keep_origin", lambda *_: None)  # no stage has run here
    registry = open_registry(workspace.tracking_uri, workspace.mlruns)
    with pytest.raises(Killed):
        _promote_until(registry, moved)
    tags: dict[str, str] = {}
    record = cast(FlowRecord, SimpleNamespace(tags=tags.update))
    params = cast(Params, SimpleNamespace(name="shop"))

    registered = publishing.register(workspace, params, record)

    assert registered.known
    assert registered.versions == {REWARD: 2, GENERATOR: 2}
    assert registered.champions == {REWARD: champion, GENERATOR: champion}
    assert open_registry(workspace.tracking_uri, workspace.mlruns).verify() == []


def _promote_until(registry: Registry, moved: int) -> None:
    """Promote the second pair, and end when that many aliases have moved."""
    real, done = registry.client.set_registered_model_alias, []

    def set_alias(*arguments: Any) -> None:
        if len(done) == moved:
            raise Killed
        real(*arguments)
        done.append(arguments)

    client = cast(Any, registry.client)
    client.set_registered_model_alias = set_alias
    if moved == 2:
        cast(Any, registry.ledger).append = _killed_at_commit(registry)
    registry.promote({REWARD: 2, GENERATOR: 2}, expected={REWARD: 1, GENERATOR: 1}, decisions=PASSED)


def _killed_at_commit(registry: Registry) -> Any:
    real = registry.ledger.append

    def append(event: str, body: dict[str, Any]) -> Any:
        if event == "commit":
            raise Killed
        return real(event, body)

    return append
