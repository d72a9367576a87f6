"""Where the store and the promotion log are, as the environment says."""

from __future__ import annotations

from pathlib import Path

import pytest

from perfusion.errors import ConfigError, GateError
from tasks.registry import Ledger, open_registry
from tasks.registry.shared_log import SharedLedger
from tasks.store import is_server, promotion_log, require_answer, tracking_uri
from tasks.workspace import open_workspace

SERVER = "http://mlflow.example:5000"


@pytest.mark.parametrize("named", [None, "", "sqlite:////elsewhere/mlflow.db", "file:///elsewhere"])
def test_without_a_server_the_store_is_the_workspaces_own(tmp_path: Path, named: str | None) -> None:
    """MLflow leaves a sqlite URI in the environment when it opens a store; another workspace's is not meant by it."""
    environment = {} if named is None else {"MLFLOW_TRACKING_URI": named}
    assert tracking_uri(tmp_path, environment) == f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert promotion_log(tracking_uri(tmp_path, environment), tmp_path, environment) == tmp_path


def test_a_server_is_taken_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{SERVER}/")
    workspace = open_workspace(tmp_path, tmp_path / "mlruns")
    assert workspace.tracking_uri == SERVER
    assert is_server(workspace.tracking_uri)
    assert workspace.has_store


@pytest.mark.parametrize(
    ("named", "why"),
    [
        ("postgresql://perfusion:hush@db/mlflow", "the scheme 'postgresql' is not taken"),
        ("databricks://profile", "the scheme 'databricks' is not taken"),
        ("https://somebody:hush@mlflow.example", "holds credentials"),
    ],
)
def test_what_is_no_server_is_refused_without_telling_the_password(tmp_path: Path, named: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as told:
        tracking_uri(tmp_path, {"MLFLOW_TRACKING_URI": named})
    assert "hush" not in str(told.value)
    assert "remedy" in str(told.value)


def test_a_servers_promotion_log_is_asked_for_and_never_chosen(tmp_path: Path) -> None:
    """Two machines that share a server and each keep a log of their own would promote by two logs."""
    with pytest.raises(ConfigError, match="PERFUSION_PROMOTION_LOG is not set, and the store at"):
        promotion_log(SERVER, tmp_path, {})
    with pytest.raises(ConfigError, match="names neither"):
        promotion_log(SERVER, tmp_path, {"PERFUSION_PROMOTION_LOG": "mysql://db/perfusion"})
    with pytest.raises(ConfigError, match="names neither"):
        promotion_log(SERVER, tmp_path, {"PERFUSION_PROMOTION_LOG": "some/folder"})
    database = "postgresql://perfusion@db/perfusion"
    assert promotion_log(SERVER, tmp_path, {"PERFUSION_PROMOTION_LOG": database}) == database
    assert promotion_log(SERVER, tmp_path, {"PERFUSION_PROMOTION_LOG": "/shared/log"}) == Path("/shared/log")


def test_the_registry_keeps_its_log_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = tmp_path / "shared"
    monkeypatch.setenv("PERFUSION_PROMOTION_LOG", str(shared))
    local = open_registry(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path).ledger
    remote = open_registry(SERVER, tmp_path).ledger
    assert isinstance(local, Ledger)
    assert isinstance(remote, Ledger)
    assert (local.path, remote.path) == (tmp_path / "promotions.jsonl", shared / "promotions.jsonl")


def test_a_server_that_does_not_answer_is_told_at_once() -> None:
    with pytest.raises(ConfigError, match="does not answer"):
        require_answer("http://127.0.0.1:9", patience=2)  # the discard port: nobody listens
    require_answer("sqlite:///anything")


def test_a_database_that_does_not_answer_is_told_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("psycopg2", reason="the extra postgres-s3 is not installed")
    ledger = SharedLedger("postgresql://perfusion:hush@127.0.0.1:9/perfusion")
    with pytest.raises(GateError, match="remedy: see that the database runs") as told:
        ledger.entries()
    with pytest.raises(GateError), ledger.held(1):
        pytest.fail("held what cannot be reached")
    assert "hush" not in f"{told.value} {ledger.path}"
