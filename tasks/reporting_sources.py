"""From what a person types to a run's evidence: a folder, an MLflow run id, or a registered version."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlparse

from perfusion.errors import GateError
from tasks.reporting_record import ReportError, RunRecord, read_record
from tasks.workspace import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["open_client", "open_run", "run_of", "version_of"]

_PARENT = "mlflow.parentRunId"
LAST = "last"
_HOW = 'name a folder of a run, an MLflow run id, "last", or a version such as "generator@3" or "generator@champion"'


@contextmanager
def open_run(workspace: Workspace, reference: str | Path) -> Iterator[RunRecord]:
    """The evidence of a run, for as long as the block lasts.

    Args:
        workspace: whose store and family of models are meant.
        reference: a workspace or its work folder; an MLflow run id, or "last"; "ROLE@VERSION", "MODEL@VERSION", or an
            alias.

    Raises:
        ReportError: there is no such run, or it kept no evidence.
    """
    if Path(reference).is_dir():
        yield read_record(Path(reference), title=_folder_name(Path(reference)))
        return
    text = str(reference)
    client = open_client(workspace, text)
    run_id = run_of(client, workspace, text)
    with TemporaryDirectory(prefix="perfusion-compare-") as scratch:
        yield read_record(_artifacts(client, run_id, Path(scratch)), title=_title(client, text, run_id))


def open_client(workspace: Workspace, reference: str) -> MlflowClient:
    """The store's client.

    Raises:
        ReportError: there is no store yet, so that `reference` can lead nowhere.
    """
    if not workspace.has_store:
        raise ReportError(
            f"{reference}: no such folder, and there is no store of runs at {workspace.mlruns}\nremedy: {_HOW}"
        )
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=workspace.tracking_uri, registry_uri=workspace.tracking_uri)


def run_of(client: MlflowClient, workspace: Workspace, reference: str) -> str:
    """The flow's own run: a nested run, or the run a version was logged by, leads to it; "last" is the latest.

    Raises:
        ReportError: there is no such run or version.
    """
    from mlflow.exceptions import MlflowException

    if reference == LAST:
        return _last(client, workspace)
    try:
        named = version_of(client, workspace, reference)
        run = client.get_run(_maker(client, *named) if named is not None else reference)
    except MlflowException as error:
        raise ReportError(f"{reference}: no such run or version ({error.message})\nremedy: {_HOW}") from None
    return str(run.data.tags.get(_PARENT, run.info.run_id))


def version_of(client: MlflowClient, workspace: Workspace, reference: str) -> tuple[str, int] | None:
    """Registered name and version of "ROLE@VERSION", "MODEL@VERSION" or an alias; None when it names no version.

    Raises:
        ReportError: there is no such version.
    """
    from tasks.registry import version_named

    if "@" not in reference:
        return None
    try:
        return version_named(client, workspace.params().name, reference)
    except GateError as error:
        raise ReportError(
            f"{reference}: no such run or version ({error.args[0].splitlines()[0]})\nremedy: {_HOW}"
        ) from None


def _maker(client: MlflowClient, name: str, version: int) -> str:
    run_id = client.get_model_version(name, str(version)).run_id
    if not run_id:
        raise ReportError(f"{name} version {version}: no run is known to have made it\nremedy: {_HOW}")
    return str(run_id)


def _last(client: MlflowClient, workspace: Workspace) -> str:
    """The latest run of the retraining flow."""
    experiment = client.get_experiment_by_name(workspace.params().name)
    runs = client.search_runs(
        [experiment.experiment_id] if experiment is not None else [], "tags.`prefect.flow` = 'retrain'", max_results=1,
        order_by=["attributes.start_time DESC"],
    )  # fmt: skip
    if not runs:
        raise ReportError(f"{LAST}: no retraining was ever recorded here\nremedy: `perfusion retrain` makes one")
    return str(runs[0].info.run_id)


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
