"""The dataset of a workspace is there, and is what data.dvc says it is, or the run does not start."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from perfusion.errors import DataError
from perfusion.world.marketplace import write_marketplace
from tasks.dataset import ensure_data
from tasks.workspace import REPOSITORY, Workspace, open_workspace

COMMAND = "perfusion data sample --users 3 --seed 5 --out data"


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("sample") / "data"
    return folder, write_marketplace(folder, users=3, seed=5)


def _workspace(root: Path, **meta: str) -> Workspace:
    root.mkdir()
    (root / "data.dvc").write_text(yaml.safe_dump({"outs": [{"path": "data"}], "meta": meta}))
    return open_workspace(root)


@pytest.mark.slow
def test_absent_data_is_made_by_the_recorded_command_and_checked(tmp_path: Path, sample: tuple[Path, str]) -> None:
    workspace = _workspace(tmp_path / "new", command=COMMAND, content_hash=sample[1])
    lines: list[str] = []
    assert ensure_data(workspace, lines.append) == sample[1]
    assert f"making the sample dataset: {COMMAND}" in lines
    lines.clear()
    assert ensure_data(workspace, lines.append) == sample[1]
    assert not lines, "neither made nor hashed again"


def test_other_content_than_the_pinned_is_an_error_with_both_hashes(tmp_path: Path, sample: tuple[Path, str]) -> None:
    workspace = _workspace(tmp_path / "changed", command=COMMAND, content_hash="0" * 32)
    workspace.data.symlink_to(sample[0])
    with pytest.raises(DataError, match=rf"content hash {sample[1]} is not the 0{{32}} that data\.dvc pins"):
        ensure_data(workspace, lambda line: None)


def test_a_touched_file_is_hashed_again(tmp_path: Path) -> None:
    workspace = _workspace(tmp_path / "touched")
    write_marketplace(workspace.data, users=3, seed=5)
    before = ensure_data(workspace, lambda line: None)
    write_marketplace(workspace.data, users=4, seed=5, replace=True)
    lines: list[str] = []
    assert ensure_data(workspace, lines.append) != before
    assert lines == [f"hashing the content of {workspace.data}"]


@pytest.mark.slow
def test_data_that_dvc_has_are_taken_from_its_cache(tmp_path: Path, sample: tuple[Path, str]) -> None:
    root = tmp_path / "added"
    shutil.copytree(sample[0], root / "data")
    for command in ("init --no-scm", "add data"):
        subprocess.run([sys.executable, "-m", "dvc", *command.split()], cwd=root, check=True, capture_output=True)
    workspace = open_workspace(root)
    shutil.rmtree(workspace.data)
    assert ensure_data(workspace, lambda line: None) == sample[1]

    (workspace.data / "users.parquet").unlink()
    interrupted = workspace.work / "state" / "data-incomplete"
    interrupted.touch()
    assert ensure_data(workspace, lambda line: None) == sample[1], "what was cut off is finished"
    assert not interrupted.exists()
    interrupted.touch()
    shutil.rmtree(root / ".dvc" / "cache")
    with pytest.raises(DataError, match="dvc was interrupted"):
        ensure_data(workspace, lambda line: None)
    assert workspace.data.is_dir(), "it may be somebody's"


def test_absent_data_that_nobody_can_make_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    workspace = _workspace(tmp_path / "nothing")
    with pytest.raises(DataError, match="nothing says how to make it"):
        ensure_data(workspace, lambda line: None)


def test_the_repositorys_data_is_pinned_and_can_be_made() -> None:
    meta = yaml.safe_load((REPOSITORY / "data.dvc").read_text())["meta"]
    assert meta["command"].startswith("perfusion data sample")
    assert len(meta["content_hash"]) == 32
