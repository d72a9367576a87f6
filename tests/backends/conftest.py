"""Real servers on loopback, started once for all tests here: PostgreSQL, S3, MLflow on both, Prefect on PostgreSQL."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local import Backends, backends, free_ports, missing


@pytest.fixture(scope="session")
def servers() -> Iterator[Backends]:
    """The servers; skipped, with what is missing, where something is not installed."""
    if (absent := missing()) is not None:
        pytest.skip(f"not installed: {absent}; .ci/run installs it")
    folder = Path(tempfile.mkdtemp(prefix="perfusion-backends-"))  # pytest's own folders are closed to other users
    try:
        with backends(folder, free_ports()) as running:
            yield running
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def client(servers: Backends, monkeypatch: pytest.MonkeyPatch) -> Backends:
    """The servers, with this process as a client of theirs for the test."""
    for name, value in servers.environment.items():
        monkeypatch.setenv(name, value)
    return servers
