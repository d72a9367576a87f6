"""The command that serves the champions over HTTP."""

from __future__ import annotations

import socket
from typing import Annotated

import typer

from flows.cli_common import WorkspaceOption, open_store, threaded_workspace

__all__ = ["COMMANDS", "serve"]


PortOption = Annotated[int, typer.Option("--port", "-p", min=0, max=65535, help="0 takes a free one and says which.")]
HostOption = Annotated[str, typer.Option("--host", help="Address to listen at; 0.0.0.0 is every one of this machine.")]
IntervalOption = Annotated[float, typer.Option("--interval", min=0.05, help="Seconds between looks at the registry.")]
QueueOption = Annotated[int, typer.Option("--queue", min=1, help="Requests of a kind that may wait; more get a 503.")]
GraceOption = Annotated[int, typer.Option("--grace", min=1, help="Seconds that a stop waits for accepted requests.")]


def serve(
    port: PortOption = 8000,
    host: HostOption = "127.0.0.1",
    interval: IntervalOption = 10.0,
    queue: QueueOption = 16,
    grace: GraceOption = 60,
    workspace: WorkspaceOption = None,
) -> None:
    """Serve the champions over HTTP, and their successors as soon as they are promoted.

    POST /score and POST /generate answer JSON, and say which version answered. GET /health tells what serves and what
    is wrong, GET /version what answers. A new champion is loaded beside the old one and takes over between two
    requests; one that does not load, or is not what was registered, leaves the old one serving. A stop (SIGTERM,
    Ctrl-C) answers what was accepted. There is no authentication: put a proxy in front of anything but this machine.

    Examples:

      perfusion serve
      perfusion serve --port 8080 --interval 60
      curl -s localhost:8000/generate --json '{"user_id": "m00007", "prompt": "dress, v-neck", "n": 2}'
    """
    import signal

    import uvicorn

    place = threaded_workspace(workspace)
    registry, family = open_store(place)
    listener = _listen(host, port)
    from tasks.registry.transitions import ROLES
    from tasks.serving.app import create_app
    from tasks.serving.champions import Champions
    from tasks.serving.worker import Worker

    workers = {role: Worker(role, queue) for role in ROLES}
    champions = Champions(registry, family, workers, interval, typer.echo)
    config = uvicorn.Config(
        create_app(champions), log_level="warning", timeout_graceful_shutdown=grace, server_header=False
    )  # fmt: skip
    server = uvicorn.Server(config)
    for stop in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises them once more when it has ended in good order
        signal.signal(stop, lambda *_: None)
    typer.echo(f"{family}: http://{host}:{listener.getsockname()[1]} (score, generate, health, version)")
    server.run(sockets=[listener])
    if not server.started:
        raise typer.Exit(1)
    if abandoned := sum(worker.abandoned for worker in workers.values()):
        typer.echo(f"{family}: stopped; {abandoned} accepted requests had no answer after --grace {grace} s", err=True)
        raise typer.Exit(1)
    typer.echo(f"{family}: stopped, everything that was accepted is answered")


def _listen(host: str, port: int) -> socket.socket:
    """A socket bound to the address, before anything is loaded.

    Raises:
        ConfigError: the address is taken, or not one of this machine's.
    """
    from perfusion.errors import ConfigError

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"{host}:{port}: {error.strerror}; name another --port (0 takes a free one) or --host"
        ) from None
    listener.set_inheritable(True)
    return listener


COMMANDS = {"serve": serve}
