"""DVC is asked once which stages have nothing to do, and its answer is right until a stage runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tasks.run_stage import StageError, run_stage
from tasks.unchanged import Unchanged, recorded_outs, unchanged_stages
from tasks.workspace import Workspace, open_workspace

STAGES = ("first", "second", "other")
GRAPH = {
    "first": {"cmd": "cp data/in first", "deps": ["data/in"], "outs": ["first"]},
    "second": {"cmd": "cp first second", "deps": ["first"], "outs": ["second"]},
    "other": {"cmd": "grep size params.yaml > other", "params": ["size"], "outs": ["other"]},
}


@pytest.fixture
def made(tmp_path: Path) -> Workspace:
    """A small pipeline, run to its end."""
    dvc = [sys.executable, "-m", "dvc"]
    subprocess.run([*dvc, "init", "--no-scm", "-q"], cwd=tmp_path, check=True)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "in").write_text("one")
    (tmp_path / "params.yaml").write_text("size: 1\n")
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": GRAPH}))
    subprocess.run([*dvc, "repro", "-q"], cwd=tmp_path, check=True)
    return open_workspace(tmp_path, tmp_path / "mlruns")


def test_dvc_skips_the_stages_that_are_said_to_be_unchanged(made: Workspace) -> None:
    assert unchanged_stages(made, STAGES) == set(STAGES)
    (made.data / "in").write_text("two")
    assert unchanged_stages(made, STAGES) == {"second", "other"}, "what `first` will make is not known yet"
    (made.root / "other").unlink()
    (made.root / "params.yaml").write_text("size: 2\n")
    known = unchanged_stages(made, STAGES)
    assert known == {"second"}
    assert run_stage(made, "second", lambda _: None).cached


def test_nothing_is_known_once_a_stage_runs(made: Workspace) -> None:
    (made.data / "in").write_text("two")
    unchanged = Unchanged(made, STAGES)
    assert "first" not in unchanged
    assert "second" in unchanged
    unchanged.forget()
    run_stage(made, "first", lambda _: None)
    assert "second" not in unchanged
    assert not run_stage(made, "second", lambda _: None).cached
    assert (made.root / "second").read_text() == "two"


def test_dvc_is_asked_once_more_where_a_stage_made_the_same_as_before(made: Workspace) -> None:
    unchanged, before = Unchanged(made, STAGES), recorded_outs(made, "first")
    assert before is not None
    assert set(before) == {"first"}
    unchanged.forget()
    run_stage(made, "first", lambda _: None, force=True)
    assert recorded_outs(made, "first") == before
    unchanged.ask_again()
    assert {stage for stage in STAGES if stage in unchanged} == set(STAGES)
    assert recorded_outs(made, "nobody") is None


def test_a_workspace_without_data_has_nothing_unchanged(made: Workspace) -> None:
    (made.data / "in").unlink()
    made.data.rmdir()
    unchanged = Unchanged(made, STAGES)
    assert not [stage for stage in STAGES if stage in unchanged]


def test_dvc_that_cannot_tell_is_an_error_in_its_words(made: Workspace) -> None:
    made.dvc_yaml.write_text("stages: 3\n")
    with pytest.raises(StageError, match="could not tell which stages have changed") as failed:
        unchanged_stages(made, STAGES)
    assert "dvc.yaml" in str(failed.value)
