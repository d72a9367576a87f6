"""Workspaces: made from parameters and data, shared with nothing they should not share, held by one run at a time."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from perfusion.config import load_params
from perfusion.errors import ConfigError, DataError
from tasks.run_stage import DiskFullError, StageError, require_disk, run_stage
from tasks.workspace import REPOSITORY, Workspace, WorkspaceBusyError, open_workspace, prepare_workspace

SMOKE = REPOSITORY / "params" / "smoke.yaml"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "users.parquet").write_bytes(b"no parquet at all")
    return folder


@pytest.fixture
def workspace(tmp_path: Path, data: Path) -> Workspace:
    return prepare_workspace(SMOKE, data, tmp_path / "workspace", tmp_path / "mlruns")


def test_the_default_pair_is_the_repository_itself() -> None:
    assert prepare_workspace().root == REPOSITORY
    assert prepare_workspace(REPOSITORY / "params.yaml").is_default


def test_a_workspace_holds_the_same_graph_and_every_parameter(workspace: Workspace) -> None:
    assert workspace.dvc_yaml.read_bytes() == (REPOSITORY / "dvc.yaml").read_bytes()
    written = yaml.safe_load(workspace.params_file.read_text())
    assert written == load_params(SMOKE).model_dump(mode="json"), "defaults written out, so that DVC sees them change"
    assert not workspace.is_default


def test_preparing_again_changes_nothing(workspace: Workspace, data: Path, tmp_path: Path) -> None:
    before = {file: file.lstat().st_mtime_ns for file in workspace.root.rglob("*")}
    prepare_workspace(SMOKE, data, workspace.root, tmp_path / "mlruns")
    assert {file: file.lstat().st_mtime_ns for file in workspace.root.rglob("*")} == before


def test_other_data_of_the_same_name_takes_the_place_of_the_first(workspace: Workspace, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    assert prepare_workspace(SMOKE, other, workspace.root).data.resolve() == other


def test_a_real_folder_in_the_place_of_a_link_is_not_touched(tmp_path: Path, data: Path) -> None:
    mine = tmp_path / "workspace" / "data"
    mine.mkdir(parents=True)
    (mine / "precious").touch()
    with pytest.raises(ConfigError, match="move it away"):
        prepare_workspace(SMOKE, data, tmp_path / "workspace")
    assert (mine / "precious").exists()


def test_wrong_parameters_make_nothing(tmp_path: Path, data: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("reward: {stepz: 3}\n")
    with pytest.raises(ConfigError, match="stepz"):
        prepare_workspace(wrong, data, tmp_path / "workspace")
    assert not (tmp_path / "workspace").exists()


def test_absent_data_is_named_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such dataset folder"):
        prepare_workspace(SMOKE, tmp_path / "nowhere", tmp_path / "workspace")


def test_a_workspace_is_held_by_one_process(workspace: Workspace) -> None:
    script = f"""
from tasks.workspace import open_workspace
with open_workspace({str(workspace.root)!r}).held():
    print("held", flush=True)
    input()
"""
    holder = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(WorkspaceBusyError, match=rf"process {holder.pid} holds it"), workspace.held():
            pass
        holder.kill()
    with workspace.held():
        assert json.loads(workspace.lock.with_suffix(".json").read_text())["pid"] != holder.pid
    assert not workspace.lock.with_suffix(".json").exists()


def test_too_little_disk_is_told_before_anything_starts(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(workspace.root)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=5 * 2**20))
    with pytest.raises(DiskFullError, match="5 MiB free on this disk, a retraining needs 2048 MiB"):
        require_disk(workspace)


def test_a_failing_stage_speaks_for_itself_and_leaves_nothing(workspace: Workspace) -> None:
    with pytest.raises(StageError, match=r"users\.parquet") as failure:
        run_stage(workspace, "validate", lambda line: None)
    assert failure.value.expected
    assert "Traceback" not in str(failure.value)
    assert not workspace.valid.exists()
    assert not list(workspace.work.glob(".*part*"))


def test_paths_are_the_same_in_every_workspace(tmp_path: Path) -> None:
    one, other = open_workspace(tmp_path / "one"), open_workspace(tmp_path / "other")
    assert one.generator.relative_to(one.root) == other.generator.relative_to(other.root)
    assert one.mlruns == other.mlruns == REPOSITORY / "mlruns"
