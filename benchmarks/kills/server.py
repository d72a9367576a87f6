"""A Prefect server of its own for many runs, that can be killed and started again at the same address."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.request
from functools import partial
from types import TracebackType
from typing import Self

from benchmarks.kills.place import Place
from flows.environment import quieten
from tasks.process import die_with_parent, stop_group
from tasks.workspace import REPOSITORY

__all__ = ["Server"]

PATIENCE = 3600.0


class Server:
    """Prefect's API, as long as the block runs.

    Attributes:
        address: of the API.
    """

    def __init__(self, place: Place) -> None:
        quieten(REPOSITORY)
        self._environment = {**os.environ, **place.environment(), "PREFECT_HOME": str(place.root / "server")}
        self._port = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._port}/api"

    def start(self) -> None:
        """Start it, at the address of the last time where there was one, and wait until it answers."""
        listener = socket.create_server(("127.0.0.1", self._port))
        self._port = listener.getsockname()[1]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "flows.server", str(listener.fileno())], pass_fds=[listener.fileno()],
            cwd=REPOSITORY, env=self._environment, start_new_session=True,
            preexec_fn=partial(die_with_parent, os.getpid()),
        )  # fmt: skip
        listener.close()
        with urllib.request.urlopen(f"{self.address}/health", timeout=PATIENCE):
            pass

    def kill(self) -> None:
        """End it without warning."""
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        stop_group(self._process)
