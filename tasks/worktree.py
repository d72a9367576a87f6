"""Where scheduled runs happen: a git worktree of its own for each run, over what the schedule keeps between runs.

    work/scheduled/NAME/
        checkout/      the worktree of the run's commit; there while a run goes on
        kept/          data, work and dvc.lock: moved into the worktree when a run begins, and back when it ends
        ticks.jsonl    what became of every tick
        going          the flow run that goes on; still there after one that was killed
        lock

The worktree has the commit's code and parameters, whatever lies about in the user's own checkout; what is moved in has
the results and the memory (accepted data, training states) of the runs before. Moving costs nothing and copies nothing.
The DVC cache and the MLflow store are the user's checkout's.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import filelock

from perfusion.checkpoint import atomic_write
from perfusion.errors import ConfigError, PerFusionError
from tasks.workspace import WorkspaceBusyError, link_to

__all__ = ["SchedulePlace", "commit_of", "current_branch", "params_text"]

MOVED = ("data", "work", "dvc.lock", ".dvc/tmp")  # DVC's tmp holds what it knows of files it has hashed
COPIED = ("params.yaml", "dvc.yaml", "data.dvc")  # make kept/ a workspace for commands that read
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True)
class SchedulePlace:
    """Every path of a schedule, named once.

    Attributes:
        repository: the user's checkout.
        name: of the schedule: letters, digits, "_", "-" and ".", at most 64.
    """

    repository: Path
    name: str

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ConfigError(
                f"schedule {self.name!r}: not a name for a folder\n"
                'remedy: letters, digits, "_", "-" and ".", at most 64, the first a letter or a digit'
            )

    @property
    def root(self) -> Path:
        return self.repository / "work" / "scheduled" / self.name

    @property
    def tree(self) -> Path:
        """The worktree; always the same place, so that what DVC and links remember of paths stays true."""
        return self.root / "checkout"

    @property
    def kept(self) -> Path:
        return self.root / "kept"

    @property
    def ticks(self) -> Path:
        return self.root / "ticks.jsonl"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the schedule for one tick.

        Raises:
            WorkspaceBusyError: another tick holds it.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(self.root / "lock", timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout:
            raise WorkspaceBusyError(f"schedule {self.name}: a run is still going on in {self.tree}") from None
        try:
            yield
        finally:
            lock.release()

    def unended(self) -> str | None:
        """The run that began and never came to its end, because it was killed. For the holder of the schedule only."""
        return self._going.read_text() if self._going.exists() else None

    @contextmanager
    def noted(self, run: str) -> Iterator[None]:
        """Note that a run goes on, until the block ends."""
        atomic_write(self._going, run.encode())
        try:
            yield
        finally:
            self._going.unlink(missing_ok=True)

    @property
    def _going(self) -> Path:
        return self.root / "going"

    @contextmanager
    def checkout(self, commit: str) -> Iterator[Path]:
        """The worktree of a commit, with everything kept from the runs before; gone when the block ends."""
        self.clear()
        self.tree.parent.mkdir(parents=True, exist_ok=True)
        # no hook of the user's; --force: the place may still be registered for a worktree that was deleted by hand
        no_hooks = ("-c", f"core.hooksPath={os.devnull}")
        _git(self.repository, *no_hooks, "worktree", "add", "--quiet", "--force", "--detach", str(self.tree), commit)
        try:
            self._move_in()
            _share_dvc(self.repository, self.tree)
            yield self.tree
        finally:
            self.clear()

    def clear(self) -> None:
        """Take back what belongs to the schedule and remove the worktree, also one that a killed run has left."""
        if self.tree.exists():
            self._move_out()
            _git(self.repository, "worktree", "remove", "--force", "--force", str(self.tree), strict=False)
            shutil.rmtree(self.tree, ignore_errors=True)  # where git did not know it
            _git(self.repository, "worktree", "prune")

    def _move_in(self) -> None:
        same_data = _bytes(self.kept / "data.dvc") == _bytes(self.tree / "data.dvc")
        if not same_data:  # the commit pins another version of the data, and it has yet to be fetched or made
            shutil.rmtree(self.kept / "data", ignore_errors=True)
        for name in MOVED:
            if (self.kept / name).exists():
                (self.tree / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(self.kept / name, self.tree / name)

    def _move_out(self) -> None:
        """What is still in `kept` was not moved in, and wins over what the commit has under that name."""
        self.kept.mkdir(parents=True, exist_ok=True)
        for name in MOVED:
            if (self.tree / name).exists() and not (self.kept / name).exists():
                (self.kept / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(self.tree / name, self.kept / name)
        for name in COPIED:
            if (self.tree / name).exists():
                shutil.copyfile(self.tree / name, self.kept / name)


def commit_of(repository: Path, branch: str) -> str:
    """The full hash of a branch's last commit.

    Raises:
        ConfigError: this is no git checkout, or it has no such branch.
    """
    name = f"{branch}^{{commit}}"
    found = _git(repository, "rev-parse", "--verify", "--quiet", "--end-of-options", name, strict=False)
    if found is None:
        raise ConfigError(
            f"{repository}: git knows no branch {branch!r} here, and scheduled runs are made from a commit\n"
            "remedy: name one of `git branch`: --branch main (deployments: parameter branch)"
        )
    return found.strip()


def params_text(repository: Path, commit: str, params: str | None) -> str:
    """The text of the parameter file that a run of a commit takes.

    Args:
        repository: the checkout.
        commit: its hash.
        params: the file: relative to the repository, then the commit's; or absolute; None is params.yaml.

    Raises:
        ConfigError: there is no such file.
    """
    file = Path(params or "params.yaml")
    if file.is_absolute():
        if not file.is_file():
            raise ConfigError(f"{file}: no such parameter file\nremedy: name one of params/, or write one")
        return file.read_text()
    text = _git(repository, "show", f"{commit}:{file}", strict=False)
    if text is None:
        raise ConfigError(
            f"{file}: not in commit {commit[:12]}, from which the scheduled run is made\n"
            "remedy: commit the file, or name one outside the repository"
        )
    return text


def current_branch(repository: Path) -> str:
    """The branch that is checked out.

    Raises:
        ConfigError: this is no git checkout, or none is.
    """
    name = _git(repository, "symbolic-ref", "--quiet", "--short", "HEAD", strict=False)
    if name is None:
        raise ConfigError(
            f"{repository}: no branch of git is checked out here; a scheduled run is made from a branch's last commit\n"
            "remedy: name the branch: --branch main"
        )
    return name.strip()


def _share_dvc(repository: Path, tree: Path) -> None:
    """Have the worktree use the checkout's DVC cache, and its settings that git does not carry (remotes, access)."""
    from dvc.config import Config, merge  # here: a quarter of a second of import

    checkout = Config(str(repository / ".dvc"))
    with Config(str(tree / ".dvc")).edit("local") as settings:
        merge(settings, checkout.read("local"))
    (tree / ".dvc" / "config.local").chmod(0o600)
    cache = Path(checkout["cache"].get("dir") or repository / ".dvc" / "cache")
    cache.mkdir(parents=True, exist_ok=True)
    link_to(tree / ".dvc" / "cache", cache)


def _bytes(file: Path) -> bytes | None:
    return file.read_bytes() if file.exists() else None


def _git(repository: Path, *arguments: str, strict: bool = True) -> str | None:
    """What git says; None where it fails and that is an answer.

    Raises:
        PerFusionError: it fails and `strict`; holds git's words.
    """
    done = subprocess.run(["git", *arguments], cwd=repository, env=_plain(os.environ), capture_output=True, text=True)
    if done.returncode == 0:
        return done.stdout
    if strict:
        raise PerFusionError(f"git {' '.join(arguments)}: exit code {done.returncode}\n{done.stderr.strip()}")
    return None


def _plain(environment: Mapping[str, str]) -> dict[str, str]:
    """Without what git sets for its hooks, which would point it at another repository."""
    return {name: value for name, value in environment.items() if not name.startswith("GIT_")}
