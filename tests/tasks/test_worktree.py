"""The place of scheduled runs: a worktree of a commit, over what the schedule keeps, and nothing of the user in it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from checkout import commit, git, make_checkout

from perfusion.errors import ConfigError
from tasks.workspace import WorkspaceBusyError
from tasks.worktree import SchedulePlace, commit_of, current_branch, params_text

FILES = {
    "params.yaml": "seed: 0\n", "dvc.yaml": "stages: {}\n", "data.dvc": "outs: [{path: data}]\n",
    "perfusion/model.py": "GOOD = True\n", ".dvc/config": "", ".dvc/.gitignore": "/config.local\n/tmp\n/cache\n",
    ".gitignore": "/work/\n/data/\n", "params/other.yaml": "seed: 1\n",
}  # fmt: skip


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return make_checkout(tmp_path / "repository", FILES)


def run_once(place: SchedulePlace, head: str, words: str) -> None:
    """What a run leaves: data, results, a lock file."""
    with place.checkout(head) as tree:
        for name in ("data/groups.parquet", "work/accepted.json", "dvc.lock"):
            (tree / name).parent.mkdir(exist_ok=True)
            (tree / name).write_text(words)


def test_a_run_sees_the_commit_and_not_what_lies_about_in_the_checkout(repository: Path) -> None:
    head = commit_of(repository, "main")
    (repository / "perfusion/model.py").write_text("BROKEN =")
    (repository / "perfusion/new.py").write_text("")
    (repository / "params/other.yaml").unlink()
    git(repository, "add", "params/other.yaml")
    before = git(repository, "status", "--porcelain")
    with SchedulePlace(repository, "nightly").checkout(head) as tree:
        assert (tree / "perfusion/model.py").read_text() == "GOOD = True\n"
        assert not (tree / "perfusion/new.py").exists()
        assert (tree / "params/other.yaml").exists()
        assert git(tree, "status", "--porcelain") == "", "as committed, the links and settings of DVC included"
        (tree / "perfusion/model.py").write_text("of the run")
    assert git(repository, "status", "--porcelain") == before
    assert (repository / "perfusion/model.py").read_text() == "BROKEN ="
    assert not tree.exists()
    assert len(git(repository, "worktree", "list").splitlines()) == 1


def test_a_run_goes_on_from_what_the_last_one_left(repository: Path) -> None:
    place, head = SchedulePlace(repository, "nightly"), commit_of(repository, "main")
    run_once(place, head, "first")
    assert (place.kept / "dvc.yaml").read_text() == FILES["dvc.yaml"], "a workspace for commands that read"
    inode = (place.kept / "data/groups.parquet").stat().st_ino
    with place.checkout(head) as tree:
        assert (tree / "work/accepted.json").read_text() == (tree / "dvc.lock").read_text() == "first"
        assert (tree / "data/groups.parquet").stat().st_ino == inode, "moved, not copied"
        assert not (place.kept / "data").exists()
    assert (place.kept / "work/accepted.json").read_text() == "first"


def test_what_a_killed_run_left_is_taken_back_and_its_worktree_removed(repository: Path) -> None:
    place, head = SchedulePlace(repository, "nightly"), commit_of(repository, "main")
    run_once(place, head, "first")
    run = place.checkout(head)
    tree = run.__enter__()
    (tree / "work/state").mkdir()
    (tree / "work/state/step-7").touch()
    assert tree.exists(), "killed here: nothing of that run happens any more"
    SchedulePlace(repository, "nightly").clear()
    assert not tree.exists()
    assert (place.kept / "work/state/step-7").exists(), "training goes on from there"
    assert len(git(repository, "worktree", "list").splitlines()) == 1


def test_a_run_killed_before_everything_was_moved_in_loses_nothing(repository: Path) -> None:
    (repository / "dvc.lock").write_text("as committed")
    place, head = SchedulePlace(repository, "nightly"), commit(repository)
    run_once(place, head, "first")
    git(repository, "worktree", "add", "--quiet", "--detach", str(place.tree), head)
    (place.kept / "data").rename(place.tree / "data")  # and here the kill
    place.clear()
    for name in ("data/groups.parquet", "work/accepted.json", "dvc.lock"):
        assert (place.kept / name).read_text() == "first"


def test_a_worktree_deleted_by_hand_is_no_hindrance(repository: Path) -> None:
    place, head = SchedulePlace(repository, "nightly"), commit_of(repository, "main")
    git(repository, "worktree", "add", "--quiet", "--detach", str(place.tree), head)
    subprocess.run(["rm", "-r", str(place.root)], check=True)
    run_once(place, head, "first")


def test_another_version_of_the_data_is_not_taken_for_the_pinned_one(repository: Path) -> None:
    place = SchedulePlace(repository, "nightly")
    run_once(place, commit_of(repository, "main"), "first")
    (repository / "data.dvc").write_text("outs: [{path: data, md5: another}]\n")
    with place.checkout(commit(repository)) as tree:
        assert not (tree / "data").exists(), "to be fetched or made anew"
        assert (tree / "work/accepted.json").exists(), "with which the new data will be compared"


def test_dvcs_cache_and_settings_are_the_checkouts(repository: Path, tmp_path: Path) -> None:
    settings = "[core]\n    remote = shop\n['remote \"shop\"']\n    url = ../../remote\n"
    (repository / ".dvc/config.local").write_text(settings)
    with SchedulePlace(repository, "nightly").checkout(commit_of(repository, "main")) as tree:
        from dvc.config import Config

        assert (tree / ".dvc/cache").resolve() == repository / ".dvc/cache"
        config = Config(str(tree / ".dvc"))
        assert config["core"]["remote"] == "shop"
        assert config["remote"]["shop"]["url"] == str(tmp_path / "remote"), "relative to where it was written"
        (tree / ".dvc/cache/kept").touch()
    assert (repository / ".dvc/cache/kept").exists()


def test_one_tick_at_a_time_and_the_second_is_told(repository: Path) -> None:
    place = SchedulePlace(repository, "nightly")
    with (
        place.held(),
        pytest.raises(WorkspaceBusyError, match="still going on"),
        SchedulePlace(repository, "nightly").held(),
    ):
        pass
    with place.held():
        pass


@pytest.mark.parametrize("name", ["", "../escape", "a/b", ".hidden", "x" * 65])
def test_a_name_that_is_no_folder_is_refused(repository: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="not a name"):
        SchedulePlace(repository, name)


def test_a_branch_or_file_that_is_not_there_is_told_with_a_remedy(repository: Path, tmp_path: Path) -> None:
    head = commit_of(repository, "main")
    assert current_branch(repository) == "main"
    with pytest.raises(ConfigError, match="no branch 'nowhere'"):
        commit_of(repository, "nowhere")
    (repository / "params/mine.yaml").touch()
    with pytest.raises(ConfigError, match="commit the file"):
        params_text(repository, head, "params/mine.yaml")
    with pytest.raises(ConfigError, match="no such parameter file"):
        params_text(repository, head, str(tmp_path / "nowhere.yaml"))
    git(repository, "checkout", "--quiet", "--detach")
    with pytest.raises(ConfigError, match="name the branch"):
        current_branch(repository)
