"""Where a registered version's files lie."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlparse

from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts

__all__ = ["local_folder", "version_files"]


def local_folder(client: MlflowClient, name: str, version: int) -> Path:
    """The folder of a version's files: its own place in a local store, else a fresh download, kept while we run."""
    location = _location(client, name, version)
    return _on_this_disk(location) or _download(client, location, Path(tempfile.mkdtemp(dir=_downloads())))


@contextmanager
def version_files(client: MlflowClient, name: str, version: int) -> Iterator[Path]:
    """The folder of a version's files for as long as the block lasts; what was downloaded for it is removed after."""
    location = _location(client, name, version)
    own = _on_this_disk(location)
    if own is not None:
        yield own
        return
    with tempfile.TemporaryDirectory(prefix="perfusion-model-") as folder:
        yield _download(client, location, Path(folder))


def _location(client: MlflowClient, name: str, version: int) -> str:
    location = str(client.get_model_version_download_uri(name, str(version)))
    if location.startswith("models:/"):
        location = str(client.get_logged_model(location.removeprefix("models:/")).artifact_location)
    return location


def _on_this_disk(location: str) -> Path | None:
    parsed = urlparse(location)
    return Path(unquote(parsed.path)) if parsed.scheme in ("", "file") else None


def _download(client: MlflowClient, location: str, folder: Path) -> Path:
    return Path(download_artifacts(artifact_uri=location, dst_path=str(folder), tracking_uri=client.tracking_uri))


@cache
def _downloads() -> Path:
    """Where this process keeps what it downloads, until it ends."""
    folder = Path(tempfile.mkdtemp(prefix="perfusion-models-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
