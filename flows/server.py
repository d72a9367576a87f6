"""The Prefect server of a run that has none: it starts while the flow is imported, and is gone when the run is.

Prefect would start one too, but only when a flow begins, after importing the whole server into the flow's process, and
would leave it behind when that process is killed.
"""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path

from perfusion.errors import PerFusionError
from tasks.process import die_with_parent, stop_group

__all__ = ["serve", "start_server"]

PATIENCE = 120.0  # seconds that a busy machine may take to start it


def start_server() -> Callable[[], None]:
    """Begin to start a server for this process and name it to Prefect, which must not have been imported yet.

    Where one is configured (PREFECT_API_URL, or any of Prefect's own files) that one is used and nothing is started.

    Returns:
        A function that waits until the server answers, and raises a PerFusionError when it does not.
    """
    if _is_configured():
        return lambda: None
    listener = socket.create_server(("127.0.0.1", 0))  # requests wait in its queue until the server takes them
    api = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.server", str(listener.fileno())], pass_fds=[listener.fileno()],
        start_new_session=True, preexec_fn=partial(die_with_parent, os.getpid()),
    )  # fmt: skip
    listener.close()  # the server's alone now: when it ends, whoever waits is told
    atexit.register(stop_group, process)  # before Prefect registers what it still has to send
    os.environ["PREFECT_API_URL"] = api

    def ready() -> None:
        try:
            with urllib.request.urlopen(f"{api}/health", timeout=PATIENCE):
                pass
        except OSError as error:
            code = process.poll()
            why = f"it ended with exit code {code}" if code is not None else f"no answer from {api} ({error})"
            raise PerFusionError(
                f"Prefect's server did not start: {why}\n"
                "remedy: see its words above; or start one with `make prefect` and set PREFECT_API_URL to its address"
            ) from None

    return ready


def _is_configured() -> bool:
    """Whether a server is named. Prefect, a second to import, is asked only where a file of its own may name one."""
    if os.environ.get("PREFECT_API_URL"):
        return True
    home = Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser()
    profiles = Path(os.environ.get("PREFECT_PROFILES_PATH", home / "profiles.toml"))
    if not any(file.exists() for file in (profiles, Path(".env"), Path("prefect.toml"))) and not _pyproject_tells():
        return False
    from prefect.settings import PREFECT_API_URL

    return PREFECT_API_URL.value() is not None


def _pyproject_tells() -> bool:
    file = Path("pyproject.toml")
    return file.exists() and "[tool.prefect" in file.read_text()


def serve(listener: socket.socket) -> None:
    """Serve Prefect's API without its pages on a socket that listens already, until stopped."""
    import uvicorn
    from prefect.server.api.server import create_app

    app = create_app(ephemeral=True, final=True)
    uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on")).run(sockets=[listener])


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
