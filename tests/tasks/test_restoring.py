"""Restoring a version: everything back, byte for byte, or an error that names what is lost, and nothing half done."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from perfusion.config import Params
from perfusion.errors import DataError, GateError
from tasks import publishing
from tasks.dvc_cache import Cache, folder_files, folder_md5, keep_data
from tasks.registry import Registry, open_registry, version_named
from tasks.restoring import Restored, restore
from tasks.restoring_source import Source, source_of
from tasks.tracking import FlowRecord, experiment_of, open_store, source_state
from tasks.workspace import Workspace, open_workspace

NAME = "perfusion-generator"
CONTENT_HASH = "c0ffee" * 5
COMMITTED = {
    "perfusion/model.py": b"layers = 2\r\n",
    "tasks/stages.py": b"# stages\n",
    "dvc.yaml": b"stages: {}\n",
    "params.yaml": b"seed: 0\n",
    ".dvc/config": b"",
    ".gitignore": b"/work/\n/data/\n/mlruns/\n/.dvc/cache\n/.dvc/tmp\n/.dvc/config.local\n",
}
WORKING = {
    **COMMITTED,
    "perfusion/model.py": b"layers = 3\r\n",  # changed and not committed
    "perfusion/new.py": b"# in no version control\n",
    "perfusion/logo.png": b"\x89PNG\x00\xff" * 40,
    "data/users.parquet": b"users",
    "data/images/part-0.parquet": b"pictures" * 1000,
    "work/generator/pan/weights.safetensors": b"\x00\x01" * 5000,
    "work/generator/model_index.json": b"{}",
    "work/reward/weights.safetensors": b"\x01" * 100,
    "work/metrics/evaluate-generator.json": b'{"gain": 0.1}\n',
}


def git(folder: Path, *words: str) -> str:
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *words]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A git checkout with uncommitted code, as it stands after two runs that were killed before they published.

    Version 1 is of a quiet run; while version 2 was made, somebody edited the code. Tests leave all of it as it was.
    """
    root = tmp_path_factory.mktemp("shop") / "checkout"
    for files in (COMMITTED, WORKING):
        for name, content in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)
        if files is COMMITTED:
            git(root, "init", "--quiet")
            git(root, "add", ".")
            git(root, "commit", "--quiet", "--message", "code")
    (root / "notes.txt").write_text("nobody's business")
    workspace, edited = open_workspace(root, root / "mlruns"), root / "perfusion" / "model.py"
    open_store(workspace).create_registered_model(NAME)
    register_version(workspace)
    with changed(edited, b"layers = 4\n"):
        edited.write_bytes(WORKING["perfusion/model.py"])
        register_version(workspace, between=lambda: edited.write_bytes(b"layers = 4\n"))
    return workspace


@pytest.fixture
def registry(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """The checkout's registry; the checkout is the repository for as long as the test lasts."""
    monkeypatch.setattr("tasks.restoring.REPOSITORY", workspace.root)
    return open_registry(workspace.tracking_uri, workspace.mlruns)


@contextmanager
def changed(file: Path, content: bytes | None) -> Iterator[None]:
    """A file with other content, or away, for a while."""
    before, mode = file.read_bytes(), file.stat().st_mode
    file.chmod(0o644)
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    try:
        yield
    finally:
        file.write_bytes(before)
        file.chmod(mode)


def register_version(workspace: Workspace, between: Callable[[], object] = lambda: None) -> None:
    """What a run does up to the registration; `between` happens after it began and before its stages ran."""
    record, client, root = begin_run(workspace), open_store(workspace), workspace.root
    between()
    write_lock(workspace)
    keep_data(workspace, folder_md5(folder_files(workspace.data)))
    record.origin(CONTENT_HASH)
    artifact = root / "mlruns" / record.run_id
    shutil.copytree(workspace.generator, artifact / "artifacts" / "generator")
    made = client.create_model_version(NAME, str(artifact), run_id=record.model_run("generator", "generator"))
    open_registry(workspace.tracking_uri, workspace.mlruns).register(NAME, int(made.version))


def begin_run(workspace: Workspace) -> FlowRecord:
    """What a run records when it begins."""
    params, client, source = Params(), open_store(workspace), source_state(workspace.root)
    experiment = experiment_of(client, workspace, params.name)
    tags = {"workspace": str(workspace.root), "mlflow.source.git.commit": source["commit"]}
    run_id = client.create_run(experiment, tags=tags).info.run_id
    record = FlowRecord(client, experiment, run_id, workspace, params)
    record.configuration(source)
    return record


def write_lock(workspace: Workspace) -> None:
    """Put the outputs into DVC's cache and write the dvc.lock that says so."""
    root, cache = workspace.root, Cache(workspace.root / ".dvc" / "cache")

    def entry(path: str) -> dict[str, str]:
        place = root / path
        files = folder_files(place if place.is_dir() else place.parent)
        return {"path": path, "hash": "md5", "md5": folder_md5(files) if place.is_dir() else files[place.name]}

    for folder in (workspace.generator, workspace.reward, root / "work" / "metrics"):
        cache.keep(folder)
    stages = {
        "validate": {"cmd": "v", "deps": [entry("data"), entry("tasks/stages.py")], "outs": []},
        "reward": {"cmd": "r", "deps": [], "outs": [entry("work/reward")]},
        "generator": {"cmd": "g", "deps": [entry("perfusion")], "outs": [entry("work/generator")]},
        "evaluate-generator": {
            "cmd": "e", "deps": [entry("work/generator")], "outs": [entry("work/metrics/evaluate-generator.json")],
        },
    }  # fmt: skip
    workspace.dvc_lock.write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))


def give_back(workspace: Workspace, registry: Registry, folder: Path, source: Source | None = None) -> Restored:
    source = source if source is not None else source_of(registry, NAME, 1)
    return restore(workspace, registry, source, folder, lambda line: None)


def nothing_is_left(workspace: Workspace, folder: Path) -> bool:
    return not folder.exists() and str(folder) not in git(workspace.root, "worktree", "list")


def test_a_version_comes_back_whole_though_its_run_was_killed_before_it_published(
    workspace: Workspace, registry: Registry, tmp_path: Path
) -> None:
    folder = tmp_path / "restored"
    with changed(workspace.params_file, b"seed: 1\n"), changed(workspace.data / "users.parquet", b"new users"):
        done = give_back(workspace, registry, folder)
    assert {name: (folder / name).read_bytes() for name in WORKING} == WORKING
    assert yaml.safe_load((folder / "dvc.lock").read_text())["stages"]["validate"]["deps"][0]["md5"] == (
        folder_md5(folder_files(folder / "data"))
    )
    assert not (folder / "notes.txt").exists()
    assert git(folder, "rev-parse", "HEAD").strip() == done.commit == source_state(workspace.root)["commit"]
    assert set(done.changed) == {"perfusion/model.py", "perfusion/new.py", "perfusion/logo.png"}
    assert done.unlike_lock == ()
    assert done.data_from == "DVC's cache"
    assert done.outputs["work/generator"] == folder_md5(folder_files(folder / "work" / "generator"))
    assert source_of(registry, NAME, 1).content_hash == CONTENT_HASH
    for path in folder.rglob("*"):  # whatever is written there, the cache stays as it is: restoring again proves it
        if path.is_file() and ".dvc" not in path.parts and path.name != ".git":
            path.write_bytes(b"spoiled")
    give_back(workspace, registry, tmp_path / "again")


def test_what_restoring_needs_is_kept_before_there_is_a_version(
    workspace: Workspace, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No model serves yet, and nothing was registered: the case in which a champion can come of it the soonest."""

    def killed(*_: object, **__: object) -> int:
        raise RuntimeError("killed")

    monkeypatch.setattr("tasks.models.artifact.log_reward", killed)
    workspace.verified_data.parent.mkdir(parents=True, exist_ok=True)
    workspace.verified_data.write_text('{"content_hash": "abc"}')
    record = begin_run(workspace)
    params = Params(name="other")
    with pytest.raises(RuntimeError, match="killed"):
        publishing.register(workspace, params, record)
    kept = {artifact.path for artifact in registry.client.list_artifacts(record.run_id)}
    assert {"dvc.lock", "dvc.yaml", "params.yaml", "git.diff", "lineage.json"} <= kept


def test_code_edited_while_the_run_went_on_is_told(workspace: Workspace, registry: Registry, tmp_path: Path) -> None:
    done = give_back(workspace, registry, tmp_path / "restored", source_of(registry, NAME, 2))
    assert done.unlike_lock == ("perfusion",)


def test_a_lost_object_is_named_with_its_output_and_a_remedy(
    workspace: Workspace, registry: Registry, tmp_path: Path
) -> None:
    cache = Cache(workspace.root / ".dvc" / "cache")
    gone = folder_files(workspace.generator)["pan/weights.safetensors"]
    with (
        changed(cache.place(gone), None),
        pytest.raises(DataError, match=rf"work/generator: {gone} \(.*\)\nremedy: add the DVC remote"),
    ):
        give_back(workspace, registry, tmp_path / "restored")
    assert nothing_is_left(workspace, tmp_path / "restored")


@pytest.mark.slow
def test_what_the_cache_has_lost_comes_from_the_remote(
    workspace: Workspace, registry: Registry, tmp_path: Path
) -> None:
    source, cache = source_of(registry, NAME, 1), Cache(workspace.root / ".dvc" / "cache")
    remote = f"[core]\n    remote = far\n['remote \"far\"']\n    url = {tmp_path / 'remote'}\n"
    shutil.copytree(cache.folder, tmp_path / "remote")
    stages = {
        "reward": {"cmd": "r", "outs": ["work/reward"]},
        "generator": {"cmd": "g", "outs": ["work/generator"]},
        "evaluate-generator": {"cmd": "e", "outs": ["work/metrics/evaluate-generator.json"]},
    }
    known = {**source.files, "dvc.yaml": yaml.safe_dump({"stages": stages}).encode()}
    lost = [folder_files(workspace.data)["users.parquet"], source.outputs["work/generator"]]
    with (
        changed(workspace.root / ".dvc" / "config", remote.encode()),
        changed(cache.place(lost[0]), None),
        changed(cache.place(lost[1]), None),
    ):
        done = give_back(workspace, registry, tmp_path / "restored", replace(source, files=known))
    assert done.data_from == "DVC's cache"
    assert (tmp_path / "restored" / "data" / "users.parquet").read_bytes() == b"users"


def test_a_damaged_object_is_found_and_nothing_is_handed_over(
    workspace: Workspace, registry: Registry, tmp_path: Path
) -> None:
    cache = Cache(workspace.root / ".dvc" / "cache")
    harmed = cache.place(folder_files(workspace.data)["images/part-0.parquet"])
    told = r"1 restored files are not those of its dvc.lock:\n.*images/part-0.parquet"
    with changed(harmed, b"pictures" * 999 + b"Pictures"), pytest.raises(DataError, match=told):
        give_back(workspace, registry, tmp_path / "restored")
    assert nothing_is_left(workspace, tmp_path / "restored")


def test_outside_git_the_error_says_what_is_impossible(
    workspace: Workspace, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_of(registry, NAME, 1)
    with pytest.raises(DataError, match="has no commit fff"):
        give_back(workspace, registry, tmp_path / "restored", replace(source, commit="f" * 40))
    bare = tmp_path / "unpacked"
    bare.mkdir()
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    monkeypatch.setattr("tasks.restoring.REPOSITORY", bare)
    with pytest.raises(DataError, match=r"its code cannot be given back, because .*unpacked is no git checkout"):
        give_back(workspace, registry, tmp_path / "restored", source)


def test_a_checkpoint_unlike_the_registered_one_is_refused(
    workspace: Workspace, registry: Registry, tmp_path: Path
) -> None:
    source = source_of(registry, NAME, 1)
    with changed(workspace.generator / "model_index.json", b'{"another": "run"}'):
        other = Cache(workspace.root / ".dvc" / "cache").keep(workspace.generator)
    unlike = replace(source, outputs={**source.outputs, "work/generator": other})
    with pytest.raises(GateError, match=r"not the registered one:\n  different: model_index.json"):
        give_back(workspace, registry, tmp_path / "restored", unlike)
    assert nothing_is_left(workspace, tmp_path / "restored")


def test_a_folder_that_holds_something_is_left_alone(workspace: Workspace, registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="there is something already"):
        give_back(workspace, registry, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_versions_are_named_as_people_do(registry: Registry) -> None:
    registry.client.set_registered_model_alias(NAME, "champion", "1")
    names = ("1", "champion", "generator@1", "generator/champion", f"{NAME}@champion", f"{NAME}/1")
    assert {version_named(registry.client, "perfusion", name) for name in names} == {(NAME, 1)}
    for wrong in ("3", "reward@1", "@", "generator@", "0", "../1"):
        with pytest.raises(GateError, match="remedy: name a version such as"):
            version_named(registry.client, "perfusion", wrong)
