"""Where runs, models and the promotion log are kept: in the checkout, or on servers that the environment names.

Nothing of this stands in a parameter file: the same parameters train against any store, and credentials stay where the
tools themselves look for them (PGPASSWORD, AWS_*, MLFLOW_TRACKING_USERNAME and _PASSWORD).
"""

from __future__ import annotations

import os
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from perfusion.errors import ConfigError

__all__ = ["PROMOTION_LOG", "SERVER", "is_server", "promotion_log", "require_answer", "tracking_uri"]

SERVER = "MLFLOW_TRACKING_URI"
PROMOTION_LOG = "PERFUSION_PROMOTION_LOG"
_DATABASE = ("postgresql", "postgresql+psycopg2")


def tracking_uri(mlruns: Path, environment: Mapping[str, str] = os.environ) -> str:
    """MLflow's tracking and registry URI: the server that MLFLOW_TRACKING_URI names, else SQLite in `mlruns`.

    A `sqlite:` or `file:` URI there is not followed: MLflow itself leaves one in the environment whenever it opens a
    store, and which local store is meant, the workspace says.

    Args:
        mlruns: folder of the local store.
        environment: where to look.

    Raises:
        ConfigError: the variable names something else than a server, or holds credentials.
    """
    named = environment.get(SERVER, "").strip()
    scheme = urlsplit(named).scheme
    if scheme in ("", "sqlite", "file"):
        return f"sqlite:///{mlruns.resolve() / 'mlflow.db'}"
    if scheme not in ("http", "https"):
        raise ConfigError(
            f"{SERVER}: the scheme {scheme!r} is not taken, only http and https\n"
            "remedy: put MLflow's server before that store (`mlflow server`, see docs/backends.md) and name the server"
        )
    if "@" in urlsplit(named).netloc:
        raise ConfigError(
            f"{SERVER}: holds credentials, which would end up in tags and process lists\n"
            "remedy: take them out, and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    return named.rstrip("/")


def is_server(uri: str) -> bool:
    """Whether a tracking URI names a server, whose files and promotion log this machine does not hold."""
    return uri.startswith(("http://", "https://"))


def require_answer(uri: str, patience: float = 10.0) -> None:
    """See that a server answers, in seconds instead of the minutes for which MLflow would try; a local store does.

    Raises:
        ConfigError: it does not; holds what was met.
    """
    if not is_server(uri):
        return
    try:
        with urllib.request.urlopen(f"{uri}/health", timeout=patience):
            pass
    except OSError as error:
        raise ConfigError(
            f"{SERVER}: MLflow's server at {uri} does not answer ({error})\n"
            f"remedy: start it or mend the address; without {SERVER} the store is the checkout's own mlruns/"
        ) from None


def promotion_log(uri: str, mlruns: Path, environment: Mapping[str, str] = os.environ) -> Path | str:
    """The promotion log's place: a folder, or the URL of a PostgreSQL database.

    A local store keeps its log in `mlruns`. Whoever shares a server has to share the log too, or two machines would
    promote by two logs; it is therefore asked for, and never chosen here.

    Args:
        uri: MLflow's tracking URI.
        mlruns: folder of the local store.
        environment: where to look for PERFUSION_PROMOTION_LOG.

    Raises:
        ConfigError: the store is a server and the variable is not set, or names neither database nor folder.
    """
    if not is_server(uri):
        return mlruns
    named = environment.get(PROMOTION_LOG, "").strip()
    if urlsplit(named).scheme in _DATABASE:
        return named
    if named.startswith("/"):
        return Path(named)
    found = "is not set" if not named else "names neither a PostgreSQL database nor an absolute folder"
    raise ConfigError(
        f"{PROMOTION_LOG} {found}, and the store at {uri} is shared\n"
        "remedy: set it to postgresql://USER@HOST/DATABASE (the password in PGPASSWORD), or to a folder that every "
        "machine which promotes can write to"
    )
