"""Give back what a registered version was made of: code, configuration, data and checkpoints, in a git worktree.

The run that registered a version keeps its commit, the difference to it, dvc.yaml, dvc.lock, params.yaml and data.dvc
(`FlowRecord.origin`). Outputs come out of DVC's cache by that dvc.lock, as copies; every byte is hashed again before
the worktree is handed over. The worktree's root is the workspace, whichever workspace the version came from: all of
them have the same dvc.yaml and the same paths.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from perfusion.errors import DataError, GateError
from tasks.dvc_cache import Cache, cache_of, differences
from tasks.registry import Registry, changed_files, file_hashes, manifest_digest
from tasks.restoring_source import Source
from tasks.run_stage import stage_environment
from tasks.workspace import REPOSITORY, Workspace, link_to, open_workspace

__all__ = ["Restored", "restore"]

Tell = Callable[[str], None]
_SHOWN = 5


@dataclass(frozen=True)
class Restored:
    """What was given back; every hash here was computed from the restored files.

    Attributes:
        name, version: of the registered model.
        folder: the git worktree, a workspace.
        run_id: MLflow's run that it was restored from.
        commit: of the code.
        changed: files that differed from the commit when the run began, patched here too.
        unlike_lock: code that the stages read and that is not what dvc.lock recorded: edited after the run began.
        outputs: path -> DVC's hash (MD5) of the data, and of every stage's outputs and metrics.
        data_from: "DVC's cache", or the command that made the data again.
        manifest: SHA-256 of the registered files' hashes.
        lineage: hash of the run's lineage record; None for a run from before there was one.
    """

    name: str
    version: int
    folder: Path
    run_id: str
    commit: str
    changed: tuple[str, ...]
    unlike_lock: tuple[str, ...]
    outputs: dict[str, str]
    data_from: str
    manifest: str
    lineage: str | None


def restore(workspace: Workspace, registry: Registry, source: Source, folder: Path, tell: Tell) -> Restored:
    """Make a worktree of everything a version was made of.

    Args:
        workspace: from whose checkout the worktree is made, and whose DVC cache and remotes are asked.
        registry: of the version.
        source: the version, and what its run kept.
        folder: where; must not exist, or be empty.
        tell: called with a line about each step.

    Raises:
        GateError: the registered files are not those that were registered, or differ from the restored ones.
        DataError: something is not there to be restored, or is not, byte for byte, what the run recorded.
    """
    registered = registry.files(source.name, source.version)
    _require_commit(source)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(
            f"{folder}: there is something already\nremedy: name another folder, or remove an earlier restoration: "
            f"git worktree remove --force {folder}"
        )
    tell(f"code: git worktree at commit {source.commit}")
    _git("worktree", "add", "--quiet", "--detach", str(folder), source.commit)
    try:
        changed = _configure(source, folder)
        cache = _connect(workspace, source, folder)
        data_from = _check_out(source, cache, folder, tell)
        _verify(source, cache, folder, rebuilt=data_from == source.rebuild)
        _verify_model(source, registered, folder)
    except BaseException:
        subprocess.run(["git", "worktree", "remove", "--force", str(folder)], cwd=REPOSITORY, capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return Restored(
        source.name, source.version, folder, source.run_id, source.commit, changed, _unlike_lock(source, folder),
        source.outputs, data_from, manifest_digest(registered), source.lineage,
    )  # fmt: skip


# -- code and configuration -------------------------------------------------------------------------------------------


def _require_commit(source: Source) -> None:
    """See that the version's commit can be had from this checkout."""
    if _succeeds("cat-file", "-e", f"{source.commit}^{{commit}}"):
        return
    lacks = f"has no commit {source.commit}" if _succeeds("rev-parse", "--git-dir") else "is no git checkout"
    raise DataError(
        f"{source.name} version {source.version}: its code cannot be given back, because {REPOSITORY} {lacks}; data "
        "and checkpoints without the code that reads them would not be the version\n"
        "remedy: run this in a clone that has the commit; the model itself, with the code that serves it, is whole in "
        f"{source.artifact}"
    )


def _configure(source: Source, folder: Path) -> tuple[str, ...]:
    """The recorded difference and files over the commit. Returns the names of files that the difference touches."""
    changed: tuple[str, ...] = ()
    if source.diff:
        told = _git("apply", "--numstat", "-z", "-", cwd=folder, given=source.diff).split("\0")
        changed = tuple(line.split("\t")[-1] for line in told if line)
        _git("apply", "--whitespace=nowarn", "-", cwd=folder, given=source.diff)
    (folder / "data.dvc").unlink(missing_ok=True)  # of the default workspace; another workspace's data is another
    for name, content in source.files.items():
        (folder / name).write_bytes(content)
    if not (folder / "data.dvc").exists():
        outs = [{"md5": source.data, "hash": "md5", "path": "data"}]
        desc = f"The dataset of {source.name} version {source.version}."
        (folder / "data.dvc").write_text(yaml.safe_dump({"outs": outs, "desc": desc}, sort_keys=False))
    return changed


def _unlike_lock(source: Source, folder: Path) -> tuple[str, ...]:
    """Code and other files in git that the stages read and that are not, byte for byte, those of dvc.lock."""
    return tuple(path for path, md5 in source.inputs.items() if differences(folder / path, md5))


# -- data and checkpoints ---------------------------------------------------------------------------------------------


def _connect(workspace: Workspace, source: Source, folder: Path) -> Cache:
    """Make the worktree a DVC project on the cache that the run wrote to, whose files it copies and never links to."""
    from dvc.config import Config

    roots = dict.fromkeys((source.workspace, workspace.root, REPOSITORY))
    caches = [cache for root in roots if (cache := cache_of(root)) is not None]
    wanted = source.outputs.values()
    cache = min(caches, key=lambda cache: sum(len(cache.missing(md5)) for md5 in wanted))
    known = Config(str(workspace.root / ".dvc")) if (workspace.root / ".dvc").is_dir() else {}
    (folder / ".dvc").mkdir(exist_ok=True)
    with Config(str(folder / ".dvc")).edit("local") as config:
        config["cache"] = {"dir": str(cache.folder), "type": ["reflink", "copy"]}
        config["remote"] = dict(known.get("remote", {}))
        if (remote := known.get("core", {}).get("remote")) is not None:
            config["core"] = {"remote": remote}
    if (REPOSITORY / ".venv").is_dir():
        link_to(folder / ".venv", REPOSITORY / ".venv")  # where dvc.yaml looks for python
    return cache


def _check_out(source: Source, cache: Cache, folder: Path, tell: Tell) -> str:
    """Bring outputs and data into the worktree, and return where the data came from."""
    if _lost(source.outputs, cache):
        _fetch(folder, tell)
    rebuild = source.rebuild if cache.missing(source.data) else None
    needed = {path: md5 for path, md5 in source.outputs.items() if rebuild is None or path != "data"}
    if lost := _lost(needed, cache):
        shown = [*lost[:_SHOWN], *([f"and {len(lost) - _SHOWN} more"] if len(lost) > _SHOWN else [])]
        raise DataError(
            f"{source.name} version {source.version} cannot be restored: DVC's cache has lost {len(lost)} of its "
            "objects:\n  " + "\n  ".join(shown) + "\nremedy: add the DVC remote that holds them "
            "(`dvc remote add -d NAME URL`) and run this again, or take them from a backup of the cache"
        )
    tell(f"data and checkpoints: copies from {cache.folder}")
    for path, md5 in needed.items():
        cache.check_out(md5, folder / path)
    if rebuild is None:
        return "DVC's cache"
    _make_data(source, folder, rebuild, tell)
    return rebuild


def _lost(outputs: Mapping[str, str], cache: Cache) -> list[str]:
    """One line for each object that the cache lacks: its output, its hash, its place."""
    return [f"{path}: {gone} ({cache.place(gone)})" for path, md5 in outputs.items() for gone in cache.missing(md5)]


def _fetch(folder: Path, tell: Tell) -> None:
    """Ask DVC's remotes, where there are any, for what the cache lacks; what they lack too is told afterwards."""
    listed = _dvc(folder, "remote", "list")
    if listed.returncode != 0 or not listed.stdout.strip():
        return
    tell("not everything is in DVC's cache: asking the remote")
    done = _dvc(folder, "fetch", "dvc.yaml", "data.dvc")
    if done.returncode != 0:
        tell(f"`dvc fetch` did not give everything: {done.stderr.strip()}")


def _make_data(source: Source, folder: Path, command: str, tell: Tell) -> None:
    """Draw the sample anew by data.dvc's command, and see that its content is the recorded one."""
    from tasks.dataset import ensure_data

    tell(f"the data is not in DVC's cache: {command}")
    found = ensure_data(open_workspace(folder, folder / "mlruns"), tell)
    if source.content_hash is not None and found != source.content_hash:
        raise DataError(
            f"{folder / 'data'}: has the content hash {found}, but the run recorded {source.content_hash}\n"
            "remedy: fetch the very files from the DVC remote, or from a backup of the cache"
        )


# -- proof ------------------------------------------------------------------------------------------------------------


def _verify(source: Source, cache: Cache, folder: Path, rebuilt: bool) -> None:
    """Hash every restored output anew and compare with dvc.lock. Of rebuilt data the content was compared already: the
    bytes depend on the versions of the libraries that write them."""
    problems = []
    for path, md5 in source.outputs.items():
        if not (rebuilt and path == "data"):
            listing = cache.listing(md5) if md5.endswith(".dir") else None
            problems += differences(folder / path, md5, listing)
    if problems:
        raise DataError(
            f"{source.name} version {source.version}: {len(problems)} restored files are not those of its dvc.lock:\n  "
            + "\n  ".join(problems[:_SHOWN])
            + f"\nremedy: the cache {cache.folder} is damaged; delete these files' objects there and fetch them again, "
            "or take them from a backup"
        )


def _verify_model(source: Source, registered: Mapping[str, str], folder: Path) -> None:
    """The restored checkpoint is, file by file, the one in the registry."""
    role = source.name.rpartition("-")[2]
    prefix = f"artifacts/{role}/"
    recorded = {name.removeprefix(prefix): sha for name, sha in registered.items() if name.startswith(prefix)}
    found = file_hashes(folder / "work" / role)
    if not recorded or (problems := changed_files(recorded, found)):
        told = "\n  ".join(problems[:_SHOWN]) if recorded else f"the registered model has no {prefix}"
        raise GateError(
            f"{source.name} version {source.version}: the checkpoint in DVC's cache is not the registered one:\n"
            f"  {told}\n"
            "remedy: the version was not made from this run's outputs; register it anew with a retraining run"
        )


# -- tools ------------------------------------------------------------------------------------------------------------


def _git(*arguments: str, cwd: Path | None = None, given: str | None = None) -> str:
    place = cwd or REPOSITORY
    done = subprocess.run(["git", *arguments], cwd=place, capture_output=True, text=True, input=given)
    if done.returncode != 0:
        raise DataError(f"git {' '.join(arguments)} in {place} failed:\n{done.stderr.strip()}")
    return done.stdout


def _succeeds(*arguments: str) -> bool:
    try:
        return subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True).returncode == 0
    except FileNotFoundError:  # git is not installed
        return False


def _dvc(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(command, cwd=folder, env=stage_environment(1), capture_output=True, text=True)
