"""One retraining against shared servers, and everything that is done to its models afterwards.

Training is as short as can be, and the two gates that it cannot pass are told to by the driver: not what is learned is
asked here, but where everything goes and whether it comes back.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.local import BUCKET, Backends
from perfusion.errors import GateError
from perfusion.world.marketplace import write_marketplace
from tasks.models.artifact import log_generator
from tasks.registry import Registry, file_hashes, open_registry
from tasks.registry.artifacts import local_folder
from tasks.workspace import REPOSITORY, Workspace, prepare_workspace

boto3 = pytest.importorskip("boto3", reason="the extra postgres-s3 is not installed")
psycopg2 = pytest.importorskip("psycopg2", reason="the extra postgres-s3 is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.drill]

DRIVER = """
import sys
from pathlib import Path
from flows.environment import quieten
quieten(Path(sys.argv[1]))
from perfusion.governance import Decision
from tasks import gates
for name in ("reward", "promotion"):
    setattr(gates, name, lambda *_, name=name: Decision(name, "pass", ("pass: told so by this test",)))
from flows.retrain import retrain
state = retrain(*sys.argv[2:], return_state=True)
print(f"ended {state.name}: {state.message}")
"""
SHORT = {"steps": 2, "warmup": 1, "log_every": 1}


@dataclass(frozen=True)
class Shop:
    """What was retrained: the place, the servers, and everything that the run said."""

    workspace: Workspace
    servers: Backends
    said: list[str]

    def retrain(self, **environment: str) -> str:
        """Run the flow in a process of its own, as a client of the servers, and return what it said."""
        place = self.workspace.root.parent
        given = {**self.servers.environment, "PREFECT_HOME": str(place / "prefect"), **environment}
        driver = ("-c", DRIVER, str(REPOSITORY), str(place / "shop.yaml"), str(place / "data"))
        self.said.append(run(*driver, str(self.workspace.root), str(self.workspace.mlruns), environment=given))
        return self.said[-1]

    @property
    def outcome(self) -> dict[str, Any]:
        return dict(json.loads(self.workspace.outcome.read_text()))


def parameters() -> dict[str, Any]:
    """The smoke parameters, with every training cut to two steps."""
    values: dict[str, Any] = yaml.safe_load((REPOSITORY / "params" / "smoke.yaml").read_text())
    values["name"] = "shop"
    for section in ("clip", "pickscore", "reward", "diffusion", "dpo", "sft", "generator"):
        values[section]["optimiser"] = {**values[section]["optimiser"], **SHORT}
    values["diffusion"]["codec"]["optimiser"] = {**values["diffusion"]["codec"]["optimiser"], **SHORT}
    values["diffusion"]["unet"] = {"channels": [16, 16], "groups": 8}
    values["diffusion"]["sampling"] = {"steps": 2}
    for section in ("clip", "diffusion"):
        values[section]["pictures"] = 100
    values["evaluate"]["pairs"] = 8
    return values


def run(*command: str, environment: Mapping[str, str], cwd: Path = REPOSITORY, code: int = 0) -> str:
    """What a command said, after checking how it ended."""
    given = {**os.environ, **environment, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, *command], cwd=cwd, env=given, capture_output=True, text=True)
    assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def shop(servers: Backends, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """A retraining of a small marketplace as a client of the servers, promoted and pushed."""
    place = tmp_path_factory.mktemp("shop")
    write_marketplace(place / "data", users=60, seed=0)
    (place / "shop.yaml").write_text(yaml.safe_dump(parameters()))
    workspace = prepare_workspace(place / "shop.yaml", place / "data", place / "workspace", place / "mlruns")
    name_remote(workspace.root, servers.environment)
    shop = Shop(workspace, servers, [])
    said = shop.retrain()
    assert "ended Promoted" in said, said
    return shop


def name_remote(root: Path, environment: Mapping[str, str]) -> None:
    """The remote's address goes into .dvc/config.local, credentials nowhere: DVC takes them from the environment."""
    command = ("-m", "dvc", "remote", "add", "--local", "--default", "shared", f"s3://{BUCKET}/dvc")
    run(*command, environment=environment, cwd=root)
    endpoint = ("-m", "dvc", "remote", "modify", "--local", "shared", "endpointurl", environment["AWS_ENDPOINT_URL"])
    run(*endpoint, environment=environment, cwd=root)


@pytest.fixture
def registry(shop: Shop, client: Backends) -> Registry:
    return open_registry(shop.workspace.tracking_uri, shop.workspace.mlruns)


def storage(servers: Backends) -> Any:
    keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    given = {name.lower(): servers.environment[name] for name in keys}
    return boto3.client("s3", endpoint_url=servers.environment["AWS_ENDPOINT_URL"], region_name="us-east-1", **given)


def objects(servers: Backends, prefix: str = "") -> Iterator[str]:
    for page in storage(servers).get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix):
        yield from (item["Key"] for item in page.get("Contents", ()))


def test_runs_models_and_evidence_are_on_the_servers_and_nothing_is_beside_the_workspace(
    shop: Shop, registry: Registry
) -> None:
    run_id = shop.outcome["run_id"]
    assert registry.client.get_run(run_id).info.artifact_uri.startswith("mlflow-artifacts:/")
    kept = {item.path for item in registry.client.list_artifacts(run_id)}
    assert {"dvc.lock", "params.yaml", "report", "metrics", "outcome.json"} <= kept
    assert any(key.endswith("/dvc.lock") for key in objects(shop.servers, "mlflow/"))
    assert registry.champions("shop") == {"shop-reward": 1, "shop-generator": 1}
    assert not shop.workspace.mlruns.exists(), "the local store stays unused"
    gates = json.loads(shop.workspace.gates.read_text())
    assert gates["load"]["verdict"] == "pass", "a clean process loaded both artifacts through the server"


def test_prefects_server_on_postgresql_remembers_the_run(shop: Shop) -> None:
    server, _, _ = shop.servers.environment["PERFUSION_PROMOTION_LOG"].rpartition("/")
    connection = psycopg2.connect(f"{server}/prefect", password=shop.servers.environment["PGPASSWORD"])
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT state_name FROM flow_run")
        assert cursor.fetchall() == [("Promoted",)]
        cursor.execute("SELECT count(*) FROM task_run")
        assert cursor.fetchone()[0] > 11, "every stage is a task"
    connection.close()


def test_the_log_is_in_the_database_and_the_command_line_reads_it(shop: Shop) -> None:
    said = run("-m", "flows.cli", "history", "-w", str(shop.workspace.root), environment=shop.servers.environment)
    assert "promote, committed: shop-generator none -> 1, shop-reward none -> 1" in said
    assert "log intact: postgresql://perfusion@127.0.0.1" in said


def test_a_fresh_clone_gets_the_outputs_back_from_the_remote_byte_for_byte(
    shop: Shop, registry: Registry, tmp_path: Path
) -> None:
    """All that a second machine has: the code, the servers' addresses and the run's dvc.lock from MLflow."""
    assert "pushed to DVC's remote 'shared'" in registry.client.get_run(shop.outcome["run_id"]).data.tags["dvc.push"]
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(REPOSITORY), str(clone)], check=True)
    registry.client.download_artifacts(shop.outcome["run_id"], "dvc.lock", str(clone))
    name_remote(clone, shop.servers.environment)
    run("-m", "dvc", "pull", "reward", "generator", "split", environment=shop.servers.environment, cwd=clone)
    for output in ("reward", "generator", "split"):
        assert file_hashes(clone / "work" / output) == file_hashes(shop.workspace.work / output)
    manifest = registry.files("shop-generator", 1)
    served = {name: digest for name, digest in manifest.items() if name.startswith("artifacts/generator/")}
    pulled = {f"artifacts/generator/{k}": v for k, v in file_hashes(clone / "work" / "generator").items()}
    assert served == pulled, "what serves is what was pulled"
    assert "shared" not in (clone / ".dvc" / "config").read_text()


def test_a_second_version_is_promoted_and_rolled_back_and_its_bytes_are_checked(shop: Shop, registry: Registry) -> None:
    """Promotion by the library, rollback by the command line; then the stored bytes are damaged, and then gone."""
    users = shop.workspace.split / "users.parquet"
    source = registry.client.get_model_version("shop-generator", "1").run_id
    second = log_generator(registry, source, "shop", shop.workspace.generator, users, judged_by=1)
    given = {"decisions": (), "reason": "a test", "force": True}
    registry.promote({"shop-generator": second}, expected={"shop-generator": 1}, **given)
    command = ("-m", "flows.cli", "rollback", "--reason", "returns rose", "-w", str(shop.workspace.root))
    said = run(*command, environment=shop.servers.environment)
    assert "rollback #" in said
    assert registry.champions("shop") == {"shop-reward": 1, "shop-generator": 1}
    assert registry.verify() == []

    key = next(key for key in objects(shop.servers, "mlflow/") if _is_of(registry, second, key))
    body = storage(shop.servers).get_object(Bucket=BUCKET, Key=key)["Body"].read()
    for damaged, what in ((body + b" ", "different"), (None, "missing")):
        storage(shop.servers).delete_object(Bucket=BUCKET, Key=key)
        if damaged is not None:
            storage(shop.servers).put_object(Bucket=BUCKET, Key=key, Body=damaged)
        with pytest.raises(GateError, match=f"{what}: artifacts/generator/model_index.json"):
            registry.promote({"shop-generator": second}, expected={"shop-generator": 1}, **given)
        assert registry.champions("shop")["shop-generator"] == 1
    storage(shop.servers).put_object(Bucket=BUCKET, Key=key, Body=body)
    assert registry.files("shop-generator", second)


def _is_of(registry: Registry, version: int, key: str) -> bool:
    """Whether an object is the model_index.json of a version's generator."""
    source = registry.client.get_model_version("shop-generator", str(version)).source
    folder = source.removeprefix("mlflow-artifacts:/")
    return folder in key and key.endswith("artifacts/generator/model_index.json")


def test_what_is_downloaded_to_be_checked_is_removed_again(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert registry.files("shop-reward", 1)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("tasks.registry.artifacts._downloads", lambda: tmp_path)
    folder = local_folder(registry.client, "shop-reward", 1)
    assert (folder / "MLmodel").exists(), "one that is to be used stays while the process runs"


def test_a_push_that_fails_costs_no_promotion_and_is_told(shop: Shop, registry: Registry) -> None:
    """The remote is gone; the flow, asked again, finds its models serving, warns, and ends as it would."""
    endpoint = ("-m", "dvc", "remote", "modify", "--local", "shared", "endpointurl")
    run(*endpoint, "http://127.0.0.1:9", environment={}, cwd=shop.workspace.root)
    try:
        said = shop.retrain(AWS_MAX_ATTEMPTS="1")
    finally:
        run(*endpoint, shop.servers.environment["AWS_ENDPOINT_URL"], environment={}, cwd=shop.workspace.root)
    assert "ended Unchanged" in said
    assert "outputs were not pushed to DVC's remote" in said
    assert "remedy: `dvc push`" in said
    told = registry.client.get_run(shop.outcome["run_id"]).data.tags["dvc.push"]
    assert told.startswith("failed: ")
    assert not [secret for secret in shop.servers.secrets if secret in said]


def test_no_credential_is_anywhere_but_in_the_environment(shop: Shop, registry: Registry) -> None:
    """In what was said, in every file of the workspace, in every object of the store, in every row of the databases."""
    secrets = [secret.encode() for secret in shop.servers.secrets]
    assert len(secrets) == 3
    places = {"the runs' output": "\n".join(shop.said).encode()}
    kept = [*shop.workspace.root.parent.rglob("*"), *(shop.servers.folder / "logs").iterdir()]
    places |= {str(file): file.read_bytes() for file in kept if file.is_file() and not file.is_symlink()}
    bucket = storage(shop.servers)
    for key in objects(shop.servers):
        places[f"s3://{key}"] = bucket.get_object(Bucket=BUCKET, Key=key)["Body"].read()
    for name in ("mlflow", "prefect", "perfusion"):
        places[f"database {name}"] = dump(shop.servers, name)
    assert len(places) > 100
    assert places["database perfusion"].count(b"intent") >= 1, "the dump holds rows"
    found = {place for place, content in places.items() for secret in secrets if secret in content}
    assert not found


def dump(servers: Backends, database: str) -> bytes:
    server, _, _ = servers.environment["PERFUSION_PROMOTION_LOG"].rpartition("/")
    given = {**os.environ, **servers.environment}
    return subprocess.run(["pg_dump", f"{server}/{database}"], env=given, check=True, capture_output=True).stdout
