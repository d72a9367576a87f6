"""Where a registered version's files lie."""

from __future__ import annotations

import tempfile
from pathlib import Path
from urllib.parse import unquote, urlparse

from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts

__all__ = ["local_folder"]


def local_folder(client: MlflowClient, name: str, version: int) -> Path:
    """The folder of a version's files: its own place in a local store, else a fresh download of it."""
    location = client.get_model_version_download_uri(name, str(version))
    if location.startswith("models:/"):
        location = client.get_logged_model(location.removeprefix("models:/")).artifact_location
    parsed = urlparse(location)
    if parsed.scheme in ("", "file"):
        return Path(unquote(parsed.path))
    folder = tempfile.mkdtemp(prefix="perfusion-model-")
    return Path(download_artifacts(artifact_uri=location, dst_path=folder, tracking_uri=client.tracking_uri))
