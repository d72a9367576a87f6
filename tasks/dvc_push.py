"""Copies of what a retraining computed in DVC's remote, so that another machine can check its outputs out.

A workspace under work/workspaces is a DVC project of its own that knows no remote; it borrows the repository's, for the
push alone and in memory, so that nothing of a remote's settings is written anywhere twice.
"""

from __future__ import annotations

import configparser
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

from perfusion.errors import PerFusionError
from tasks.process import group
from tasks.workspace import REPOSITORY, Workspace

__all__ = ["PushError", "credentials_under_git", "push_outputs", "remote_home"]

_CREDENTIALS = {
    "access_key_id",
    "account_key",
    "client_secret",
    "connection_string",
    "password",
    "sas_token",
    "secret_access_key",
    "session_token",
}
_REMEDY = "remedy: `dvc push` in that folder when the cause is mended, or let the next retraining push"


class PushError(PerFusionError):
    """Outputs could not be copied to the remote."""


def remote_home(workspace: Workspace) -> Path | None:
    """The project whose default remote a push goes to: the workspace, else the repository; None where none has one."""
    return next((root for root in (workspace.root, REPOSITORY) if _has_default_remote(root)), None)


def push_outputs(workspace: Workspace) -> str | None:
    """Copy every output that dvc.lock names to the remote, as far as it is not there; safe to repeat.

    Returns:
        What was done, in a sentence; None where there is no default remote.

    Raises:
        PushError: it failed; holds DVC's last words, which name no credentials.
    """
    home = remote_home(workspace)
    if home is None:
        return None
    command = [sys.executable, "-m", "tasks.dvc_push", str(workspace.root), str(home)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), _python_path()]))}
    with group(
        command, cwd=workspace.root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:  # fmt: skip
        told, errors = process.communicate()
    if process.returncode != 0:
        words = "\n  ".join(errors.strip().splitlines()[-6:]) or f"it ended with status {process.returncode}"
        raise PushError(f"{workspace.root}: outputs were not pushed to DVC's remote:\n  {words}\n{_REMEDY}")
    done = json.loads(told.strip().splitlines()[-1])
    return f"{done['pushed']} files pushed to DVC's remote {done['remote']!r}"


def credentials_under_git(home: Path) -> list[str]:
    """The credentials that a project's `.dvc/config`, which git keeps, holds: their names, without values."""
    settings = _settings(home, "config")
    return sorted({name for section in settings.sections() for name in settings[section]} & _CREDENTIALS)


def _has_default_remote(root: Path) -> bool:
    return _settings(root, "config", "config.local").has_option("core", "remote")


def _settings(root: Path, *names: str) -> configparser.ConfigParser:
    """A project's own settings; read without DVC, which takes a second to import."""
    settings = configparser.ConfigParser(strict=False, interpolation=None)
    settings.read(root / ".dvc" / name for name in names)
    return settings


def _python_path() -> str:
    return os.environ.get("PYTHONPATH", "")


def _push(root: Path, home: Path) -> dict[str, object]:
    """Push `root` to the default remote of `home`; in a process of its own."""
    from dvc.config import Config
    from dvc.repo import Repo

    settings = Config(str(home / ".dvc"))
    name = settings["core"]["remote"]
    borrowed = {"core": {"remote": name}, "remote": {name: dict(settings["remote"][name])}} if home != root else None
    with Repo(str(root), config=borrowed) as repo:
        return {"pushed": repo.push(), "remote": name}


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    try:
        print(json.dumps(_push(Path(sys.argv[1]), Path(sys.argv[2]))))
    except Exception as error:  # whatever DVC or the remote's client says, it is told and the exit code says the rest
        sys.exit(f"{type(error).__name__}: {error}")
