"""From what a person types to a run's evidence: a folder, an MLflow run id, or a registered version."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlparse

from tasks.reporting_record import ReportError, RunRecord, read_record
from tasks.workspace import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["open_run"]

_VERSION = re.compile(r"(?P<model>[a-z][a-z0-9-]*)@(?P<version>\d+|[a-z]+)")
_PARENT = "mlflow.parentRunId"
_HOW = 'name a folder of a run, an MLflow run id, or a version such as "generator@3" or "generator@champion"'


@contextmanager
def open_run(workspace: Workspace, reference: str | Path) -> Iterator[RunRecord]:
    """The evidence of a run, for as long as the block lasts.

    Args:
        workspace: whose store and family of models are meant.
        reference: a workspace or its work folder; an MLflow run id; "ROLE@VERSION", "MODEL@VERSION", or an alias.

    Raises:
        ReportError: there is no such run, or it kept no evidence.
    """
    if Path(reference).is_dir():
        yield read_record(Path(reference), title=_folder_name(Path(reference)))
        return
    text = str(reference)
    if not workspace.has_store:
        raise ReportError(
            f"{text}: no such folder, and there is no store of runs at {workspace.mlruns}\nremedy: {_HOW}"
        )
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=workspace.tracking_uri, registry_uri=workspace.tracking_uri)
    run_id = _run_id(client, workspace, text)
    with TemporaryDirectory(prefix="perfusion-compare-") as scratch:
        yield read_record(_artifacts(client, run_id, Path(scratch)), title=_title(client, text, run_id))


def _run_id(client: MlflowClient, workspace: Workspace, text: str) -> str:
    """The flow's own run: a nested run, or the run a version was logged by, leads to it."""
    from mlflow.exceptions import MlflowException

    try:
        matched = _VERSION.fullmatch(text)
        run_id = _run_of_version(client, workspace, matched["model"], matched["version"]) if matched else text
        run = client.get_run(run_id)
    except MlflowException as error:
        raise ReportError(f"{text}: no such run or version ({error.message})\nremedy: {_HOW}") from None
    return str(run.data.tags.get(_PARENT, run.info.run_id))


def _run_of_version(client: MlflowClient, workspace: Workspace, model: str, version: str) -> str:
    family = workspace.params().name
    name = f"{family}-{model}" if model in ("reward", "generator") else model
    if version.isdigit():
        found = client.get_model_version(name, version)
    else:
        found = client.get_model_version_by_alias(name, version)
    if not found.run_id:
        raise ReportError(f"{name} version {version}: no run is known to have made it\nremedy: {_HOW}")
    return str(found.run_id)


def _artifacts(client: MlflowClient, run_id: str, scratch: Path) -> Path:
    """The folder of a run's artifacts: its own place in a local store, else a download."""
    location = client.get_run(run_id).info.artifact_uri
    parsed = urlparse(location)
    if parsed.scheme in ("", "file"):
        return Path(unquote(parsed.path))
    return Path(client.download_artifacts(run_id, "", str(scratch)))


def _title(client: MlflowClient, text: str, run_id: str) -> str:
    name = client.get_run(run_id).info.run_name or run_id[:8]
    return f"{text} ({name})" if "@" in text else f"{name} ({run_id[:8]})"


def _folder_name(folder: Path) -> str:
    folder = folder.resolve()
    return folder.parent.name if folder.name == "work" else folder.name
