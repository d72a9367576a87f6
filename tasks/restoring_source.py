"""What the run that made a registered version kept of its origin, read from MLflow."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT, MLFLOW_PARENT_RUN_ID

from perfusion.errors import DataError
from tasks.registry import Registry
from tasks.registry.artifacts import local_folder

__all__ = ["Source", "source_of"]

_FILES = ("dvc.yaml", "dvc.lock", "params.yaml", "data.dvc")


@dataclass(frozen=True)
class Source:
    """The origin of a registered version.

    Attributes:
        name, version: of the registered model.
        run_id: MLflow's run in which its promotion was judged, else the one that registered it.
        commit: of the code; "unknown" where the run had no git checkout.
        diff: the working tree's difference to it, as a patch; "" for none.
        workspace: folder of the workspace then; may be gone.
        files: dvc.yaml, dvc.lock, params.yaml and, in a default workspace, data.dvc.
        outputs: path -> DVC's hash of every output and metric of the stages, and of "data".
        inputs: path -> DVC's hash of the code and other files in git that the stages read.
        content_hash: of the dataset, canonical; None where the run kept none.
        lineage: hash of the lineage record; None where the run kept none.
        artifact: folder of the registered files.
    """

    name: str
    version: int
    run_id: str
    commit: str
    diff: str
    workspace: Path
    files: dict[str, bytes]
    outputs: dict[str, str]
    inputs: dict[str, str]
    content_hash: str | None
    lineage: str | None
    artifact: Path

    @property
    def data(self) -> str:
        """DVC's hash of the dataset."""
        return self.outputs["data"]

    @property
    def rebuild(self) -> str | None:
        """The command that makes the dataset anew, where data.dvc records one."""
        meta: dict[str, Any] = yaml.safe_load(self.files.get("data.dvc", b"{}")).get("meta") or {}
        return meta.get("command")


def source_of(registry: Registry, name: str, version: int) -> Source:
    """Read the origin of a version.

    Raises:
        DataError: its run is gone, or kept no dvc.lock.
    """
    client = registry.client
    run_id = _run_of(registry, name, version)
    kept = _artifacts(client, run_id)
    if "dvc.lock" not in kept:
        raise DataError(
            f"{name} version {version}: its run {run_id} kept no dvc.lock, so that nothing tells what it was made of\n"
            f"remedy: none for this version, which still serves from {local_folder(client, name, version)}; versions "
            "registered by today's `perfusion retrain` keep their origin"
        )
    files = {file: content for file, content in kept.items() if file in _FILES}
    outputs, inputs = _locked(files["dvc.lock"])
    lineage = json.loads(kept.get("lineage.json", b"{}"))
    tags = client.get_run(run_id).data.tags
    return Source(
        name=name, version=version, run_id=run_id, commit=tags.get(MLFLOW_GIT_COMMIT, "unknown"),
        diff=kept.get("git.diff", b"").decode(), workspace=Path(tags["workspace"]), files=files,
        outputs=outputs, inputs=inputs, content_hash=lineage.get("dataset"), lineage=lineage.get("digest"),
        artifact=local_folder(client, name, version),
    )  # fmt: skip


def _run_of(registry: Registry, name: str, version: int) -> str:
    """The flow's run that judged the version's promotion last; where none did, the one that registered it."""
    for entry in reversed(registry.ledger.entries()):
        judged = entry.event == "evidence" and entry.body["versions"].get(name) == version
        if judged and (run_id := entry.body.get("runs", {}).get("promotion")) is not None:
            return str(run_id)
    run_id = registry.client.get_model_version(name, str(version)).run_id
    if not run_id:
        raise DataError(f"{name} version {version}: no run is known to have made it\nremedy: none; retrain")
    try:
        tags = registry.client.get_run(run_id).data.tags
    except MlflowException as error:
        raise DataError(
            f"{name} version {version}: its run {run_id} is gone from the store ({error.message})\n"
            "remedy: restore the store (mlruns/) from a backup"
        ) from None
    return str(tags.get(MLFLOW_PARENT_RUN_ID, run_id))


def _artifacts(client: MlflowClient, run_id: str) -> dict[str, bytes]:
    """The small files of a run that tell of its origin, as far as it has them."""
    present = {artifact.path for artifact in client.list_artifacts(run_id)}
    with TemporaryDirectory(prefix="perfusion-restore-") as scratch:
        return {
            file: Path(client.download_artifacts(run_id, file, scratch)).read_bytes()
            for file in (*_FILES, "git.diff", "lineage.json")
            if file in present
        }


def _locked(lock: bytes) -> tuple[dict[str, str], dict[str, str]]:
    """Path -> hash of the data and of what dvc.lock's stages made, and of what else they read."""
    stages: dict[str, Any] = yaml.safe_load(lock)["stages"]
    read = {dep["path"]: str(dep["md5"]) for stage in stages.values() for dep in stage["deps"]}
    made = {out["path"]: str(out["md5"]) for stage in stages.values() for out in stage["outs"]}
    code = {path: md5 for path, md5 in read.items() if path != "data" and not path.startswith("work/")}
    return {"data": read["data"], **made}, code
