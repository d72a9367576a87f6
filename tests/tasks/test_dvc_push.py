"""Copying outputs to DVC's remote: here a folder, which DVC treats like any other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tasks import dvc_push
from tasks.dvc_push import PushError, credentials_under_git, push_outputs, remote_home
from tasks.workspace import Workspace, open_workspace

STAGES = "stages:\n  make:\n    cmd: mkdir -p work/made && echo bytes > work/made/file\n    outs: [work/made]\n"


def dvc(root: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "dvc", *arguments]
    subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)


def test_credentials_in_the_file_that_git_keeps_are_found_and_not_told(tmp_path: Path) -> None:
    (tmp_path / ".dvc").mkdir()
    remote = "['remote \"shared\"']\n    url = s3://bucket\n    secret_access_key = hush\n"
    (tmp_path / ".dvc" / "config.local").write_text(remote)
    assert credentials_under_git(tmp_path) == [], "config.local is ignored by git"
    (tmp_path / ".dvc" / "config").write_text(remote)
    assert credentials_under_git(tmp_path) == ["secret_access_key"]


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A project with one finished output; the repository, whose remote it may borrow, has none."""
    repository = tmp_path / "repository"
    (repository / ".dvc").mkdir(parents=True)
    monkeypatch.setattr(dvc_push, "REPOSITORY", repository)
    monkeypatch.setenv("PYTHONPATH", str(Path(dvc_push.__file__).resolve().parents[1]))
    root = tmp_path / "workspace"
    root.mkdir()
    (root / "dvc.yaml").write_text(STAGES)
    dvc(root, "init", "--no-scm", "--quiet")
    dvc(root, "repro", "--quiet")
    return open_workspace(root, tmp_path / "mlruns")


@pytest.mark.slow
def test_outputs_go_to_the_remote_once_and_come_back_elsewhere(workspace: Workspace, tmp_path: Path) -> None:
    assert push_outputs(workspace) is None, "no remote is configured"
    dvc(workspace.root, "remote", "add", "--local", "--default", "shared", str(tmp_path / "remote"))
    assert remote_home(workspace) == workspace.root
    assert push_outputs(workspace) == "2 files pushed to DVC's remote 'shared'"  # the file and its folder's list
    assert push_outputs(workspace) == "0 files pushed to DVC's remote 'shared'"
    other = tmp_path / "other"
    other.mkdir()
    for name in ("dvc.yaml", "dvc.lock"):
        (other / name).write_bytes((workspace.root / name).read_bytes())
    dvc(other, "init", "--no-scm", "--quiet")
    dvc(other, "remote", "add", "--local", "--default", "shared", str(tmp_path / "remote"))
    dvc(other, "pull", "--quiet")
    assert (other / "work" / "made" / "file").read_text() == "bytes\n"


@pytest.mark.slow
def test_a_workspace_borrows_the_repositorys_remote_and_keeps_nothing_of_it(
    workspace: Workspace, tmp_path: Path
) -> None:
    settings = f"[core]\n    remote = shared\n['remote \"shared\"']\n    url = {tmp_path / 'remote'}\n"
    (dvc_push.REPOSITORY / ".dvc" / "config.local").write_text(settings)
    before = {file.name: file.read_bytes() for file in (workspace.root / ".dvc").glob("config*")}
    assert push_outputs(workspace) == "2 files pushed to DVC's remote 'shared'"
    assert {file.name: file.read_bytes() for file in (workspace.root / ".dvc").glob("config*")} == before


@pytest.mark.slow
def test_a_push_that_fails_says_why_and_what_to_do(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "in the way").write_text("a file where the remote's folder should be")
    dvc(workspace.root, "remote", "add", "--local", "--default", "shared", str(tmp_path / "in the way"))
    with pytest.raises(PushError, match="outputs were not pushed") as told:
        push_outputs(workspace)
    assert "remedy: `dvc push`" in str(told.value)
