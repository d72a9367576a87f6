"""The servers of a shared installation on this machine's loopback, without containers: PostgreSQL, S3, MLflow, Prefect.

    python -m deploy.local FOLDER        # in another terminal: . FOLDER/backends.env, then perfusion as always

PostgreSQL's data and everybody's logs are kept in FOLDER; credentials are drawn once and stand in FOLDER/backends.env.
The S3 server is moto's: a stand-in for tests that keeps objects in memory, takes any credentials, and forgets all when
it stops. What to use instead in production, docs/backends.md tells.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.bucket import make_bucket
from perfusion.errors import ConfigError, PerFusionError
from tasks.process import group
from tasks.quiet import QUIET

__all__ = ["BUCKET", "PORTS", "Backends", "backends", "free_ports", "missing"]

PORTS = {"postgres": 5433, "s3": 9000, "mlflow": 5000, "prefect": 4200}
DATABASES = (
    "mlflow",
    "prefect",
    "perfusion",
)  # of their own, because MLflow and Prefect both migrate "alembic_version"
BUCKET, USER, HOST = "perfusion", "perfusion", "127.0.0.1"
PATIENCE = 900.0  # seconds that a very busy machine may take to start one of them


@dataclass(frozen=True)
class Backends:
    """Running servers.

    Attributes:
        folder: of their data and logs.
        environment: what a client of theirs needs, credentials included.
        secrets: the credentials among it.
    """

    folder: Path
    environment: dict[str, str]
    secrets: tuple[str, ...]


def missing() -> str | None:
    """What is not installed that a local start needs; None when all is there."""
    if _postgres_programs() is None:
        return "PostgreSQL's server (Debian's package `postgresql`)"
    for module, package in (("psycopg2", "perfusion[postgres-s3]"), ("moto", "perfusion[dev]"), ("dvc_s3", "dvc-s3")):
        if not _importable(module):
            return f"{module} (pip install {package})"
    return None


def free_ports() -> dict[str, int]:
    """A port that nobody listens on, for each server."""
    with ExitStack() as stack:
        sockets = {name: stack.enter_context(socket.create_server((HOST, 0))) for name in PORTS}
        return {name: int(listener.getsockname()[1]) for name, listener in sockets.items()}


@contextmanager
def backends(folder: Path, ports: Mapping[str, int] = PORTS) -> Iterator[Backends]:
    """All servers, for as long as the block lasts.

    Args:
        folder: of data and logs; made where it is not. Every user must be able to enter the folders above it, because
            PostgreSQL does not run as root and takes its own user then.
        ports: of each server.

    Raises:
        ConfigError: something is not installed.
        PerFusionError: a server did not start; holds its last words.
    """
    if (absent := missing()) is not None:
        raise ConfigError(f"not installed: {absent}")
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    (folder / "logs").mkdir(exist_ok=True)
    credentials = _credentials(folder / "credentials")
    client = _client_environment(ports, credentials)
    _write_environment(folder / "backends.env", client)
    with ExitStack() as stack:
        start = [_postgres, _s3]
        waiting = [stack.enter_context(server(folder, ports, client)) for server in start]
        for wait in waiting:
            wait()
        waiting = [stack.enter_context(server(folder, ports, client)) for server in (_mlflow, _prefect)]
        for wait in waiting:
            wait()
        yield Backends(folder, client, tuple(credentials.values()))


@contextmanager
def _postgres(folder: Path, ports: Mapping[str, int], client: Mapping[str, str]) -> Iterator[Callable[[], None]]:
    programs = _postgres_programs()
    assert programs is not None
    data, password = folder / "postgres", folder / "credentials" / "PGPASSWORD"
    as_user: dict[str, object] = {}
    if os.geteuid() == 0:
        as_user = {"user": "postgres", "group": "postgres", "extra_groups": []}
    if not (data / "PG_VERSION").exists():
        data.mkdir(mode=0o700, exist_ok=True)
        if as_user:
            shutil.chown(data, "postgres", "postgres")
        _initialise(programs, data, password, as_user)
    arguments = ["-D", str(data), "-p", str(ports["postgres"]), "-c", f"listen_addresses={HOST}", "-k", str(data)]
    with _server("postgres", [str(programs / "postgres"), *arguments], folder, {}, cwd=data, **as_user) as process:

        def make_databases() -> None:
            import psycopg2

            connection = psycopg2.connect(
                host=HOST, port=ports["postgres"], user=USER, password=client["PGPASSWORD"], dbname="postgres"
            )
            connection.autocommit = True
            with contextlib.closing(connection), connection.cursor() as cursor:
                cursor.execute("SELECT datname FROM pg_database")
                known = {name for (name,) in cursor.fetchall()}
                for name in set(DATABASES) - known:
                    cursor.execute(f'CREATE DATABASE "{name}"')

        yield _until("postgres", make_databases, process, folder)


def _initialise(programs: Path, data: Path, password: Path, as_user: Mapping[str, object]) -> None:
    """A new cluster whose only role has a password, also for connections on this machine."""
    own = data.with_name(".password")
    own.touch(mode=0o600)
    own.write_text(password.read_text())
    try:
        if as_user:
            shutil.chown(own, "postgres", "postgres")
        options = [f"--username={USER}", f"--pwfile={own}", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"]
        command = [str(programs / "initdb"), "--pgdata", str(data), *options]
        done = subprocess.run(command, cwd=data, capture_output=True, text=True, **as_user)  # type: ignore[call-overload]
    finally:
        own.unlink()
    if done.returncode != 0:
        shutil.rmtree(data)
        raise PerFusionError(
            f"initdb ended with status {done.returncode}:\n{done.stderr.strip()}\n"
            f"remedy: the user who runs PostgreSQL must be able to enter every folder above {data}; name another one"
        )


@contextmanager
def _s3(folder: Path, ports: Mapping[str, int], client: Mapping[str, str]) -> Iterator[Callable[[], None]]:
    command = [sys.executable, "-m", "moto.server", "--host", HOST, "--port", str(ports["s3"])]
    with _server("s3", command, folder, {}) as process:
        yield _until("s3", lambda: make_bucket(BUCKET, client), process, folder)


@contextmanager
def _mlflow(folder: Path, ports: Mapping[str, int], client: Mapping[str, str]) -> Iterator[Callable[[], None]]:
    """MLflow passes artifacts through: its clients need neither S3's address nor its credentials."""
    own = {
        "MLFLOW_BACKEND_STORE_URI": f"postgresql://{USER}@{HOST}:{ports['postgres']}/mlflow",
        "MLFLOW_ARTIFACTS_DESTINATION": f"s3://{BUCKET}/mlflow",
        "MLFLOW_S3_ENDPOINT_URL": client["AWS_ENDPOINT_URL"],
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    kept = {name: value for name, value in client.items() if name.startswith(("AWS_", "PGPASSWORD"))}
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(ports["mlflow"])]
    with _server("mlflow", [*command, "--workers", "1"], folder, {**kept, **own}) as process:
        yield _until("mlflow", lambda: _get(f"http://{HOST}:{ports['mlflow']}/health"), process, folder)


@contextmanager
def _prefect(folder: Path, ports: Mapping[str, int], client: Mapping[str, str]) -> Iterator[Callable[[], None]]:
    own = {
        "PREFECT_API_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://{USER}@{HOST}:{ports['postgres']}/prefect",
        "PGPASSWORD": client["PGPASSWORD"],
        "PREFECT_HOME": str(folder / "prefect"),
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(ports["prefect"])]
    with _server("prefect", command, folder, own) as process:
        yield _until("prefect", lambda: _get(f"{client['PREFECT_API_URL']}/health"), process, folder)


@contextmanager
def _server(
    name: str, command: Sequence[str], folder: Path, environment: Mapping[str, str], **options: object
) -> Iterator[subprocess.Popen[str]]:
    """A server whose words go to its log; gone, with all its children, when the block ends."""
    named = ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "PERFUSION_PROMOTION_LOG")  # are for clients
    inherited = {key: value for key, value in os.environ.items() if key not in named}
    with (
        open(folder / "logs" / f"{name}.log", "w") as log,
        group(
            command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            env={**inherited, **QUIET, **environment}, **{"cwd": folder, **options},
        ) as process,
    ):  # fmt: skip
        yield process


def _until(name: str, ready: Callable[[], object], process: subprocess.Popen[str], folder: Path) -> Callable[[], None]:
    """A function that waits until `ready` no longer raises."""

    def wait() -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                ready()
                return
            except Exception as error:  # whatever a client says of a server that is not up yet
                if process.poll() is None and time.monotonic() < deadline:
                    time.sleep(0.3)
                    continue
                log = folder / "logs" / f"{name}.log"
                ended = "does not answer" if process.poll() is None else f"ended with status {process.poll()}"
                said = "\n  ".join(log.read_text().strip().splitlines()[-12:])
                raise PerFusionError(f"{name} {ended} ({error}); the end of {log}:\n  {said}") from None

    return wait


def _client_environment(ports: Mapping[str, int], credentials: Mapping[str, str]) -> dict[str, str]:
    return {
        "MLFLOW_TRACKING_URI": f"http://{HOST}:{ports['mlflow']}",
        "PERFUSION_PROMOTION_LOG": f"postgresql://{USER}@{HOST}:{ports['postgres']}/perfusion",
        "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",
        "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false",
        "PREFECT_API_URL": f"http://{HOST}:{ports['prefect']}/api",
        "AWS_ENDPOINT_URL": f"http://{HOST}:{ports['s3']}",
        "AWS_DEFAULT_REGION": "us-east-1",
        **credentials,
    }


def _credentials(folder: Path) -> dict[str, str]:
    """Drawn once, and kept beside the data that they open."""
    folder.mkdir(mode=0o700, exist_ok=True)
    for name in ("PGPASSWORD", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        if not (folder / name).exists():
            (folder / name).touch(mode=0o600)
            (folder / name).write_text(secrets.token_hex(16))
    return {file.name: file.read_text() for file in sorted(folder.iterdir())}


def _write_environment(file: Path, environment: Mapping[str, str]) -> None:
    file.unlink(missing_ok=True)
    file.touch(mode=0o600)
    file.write_text("".join(f"export {name}={shlex.quote(value)}\n" for name, value in environment.items()))


def _postgres_programs() -> Path | None:
    """The folder of initdb and postgres: Debian keeps them off the path, by version."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda file: int(file.parts[-3]))
    found = [*debian, *(Path(name) for name in [shutil.which("initdb")] if name)]
    return next((file.parent for file in reversed(found) if (file.parent / "postgres").exists()), None)


def _importable(module: str) -> bool:
    from importlib.util import find_spec

    return find_spec(module) is not None


def _get(address: str) -> None:
    with urllib.request.urlopen(address, timeout=5):
        pass


def main() -> None:
    """Start all, tell where, and stay until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="for data, logs and credentials")
    parser.add_argument("--free-ports", action="store_true", help="whatever ports are free, instead of the usual ones")
    given = parser.parse_args()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        with backends(given.folder.resolve(), free_ports() if given.free_ports else PORTS) as running:
            for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "AWS_ENDPOINT_URL", "PERFUSION_PROMOTION_LOG"):
                print(f"{name:<26}{running.environment[name]}")
            print(f"\n  . {running.folder / 'backends.env'}\n")
            print("tells them to `perfusion`, `dvc` and `prefect`; Ctrl-C stops all")
            stop.wait()
    except PerFusionError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
