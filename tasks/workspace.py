"""A workspace: one parameter file, one dataset, and everything a retraining of the two leaves behind.

The repository's root is the default workspace. Every other pair of parameters and data has a folder of its own under
`work/workspaces/`, made as a DVC project that shares the code, the cache of files and the MLflow store with the root.
Its `dvc.yaml` is the root's, verbatim: code and data are reached through links, so that every path in it, and in
`dvc.lock`, is the same in every workspace.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import filelock
import yaml

from perfusion.checkpoint import atomic_write
from perfusion.config import Params, load_params
from perfusion.errors import ConfigError, DataError, PerFusionError
from tasks.mending import mend_dvc, remove_parts
from tasks.store import is_server, tracking_uri

__all__ = [
    "REPOSITORY",
    "Workspace",
    "WorkspaceBusyError",
    "init_dvc",
    "link_to",
    "open_workspace",
    "prepare_workspace",
    "write_if_changed",
]

REPOSITORY = Path(__file__).resolve().parents[1]
DEFAULT_PARAMS = "params.yaml"
DEFAULT_DATA = "data"
CODE_FOLDERS = ("perfusion", "tasks")


class WorkspaceBusyError(PerFusionError):
    """Another run holds the workspace."""


@dataclass(frozen=True)
class Workspace:
    """Every path of a workspace, named once.

    Attributes:
        root: folder of dvc.yaml, params.yaml and work/.
        mlruns: folder of the MLflow store and of the promotion log, shared by all workspaces of a checkout; unused
            where the environment names a server (tasks/store.py).
    """

    root: Path
    mlruns: Path

    # inputs
    @property
    def params_file(self) -> Path:
        return self.root / "params.yaml"

    @property
    def data(self) -> Path:
        """The dataset: users.parquet, groups.parquet, images/part-*.parquet, and world.json for a sample."""
        return self.root / "data"

    @property
    def dvc_yaml(self) -> Path:
        return self.root / "dvc.yaml"

    @property
    def dvc_lock(self) -> Path:
        return self.root / "dvc.lock"

    @property
    def data_dvc(self) -> Path:
        """The data's version file; only the root workspace has one."""
        return self.root / "data.dvc"

    @property
    def is_default(self) -> bool:
        return self.data_dvc.exists()

    # stage outputs
    @property
    def work(self) -> Path:
        return self.root / "work"

    @property
    def valid(self) -> Path:
        return self.work / "valid"

    @property
    def quarantine(self) -> Path:
        return self.work / "quarantine"

    @property
    def split(self) -> Path:
        return self.work / "split"

    @property
    def clip(self) -> Path:
        return self.work / "backbones" / "clip"

    @property
    def diffusion(self) -> Path:
        return self.work / "backbones" / "diffusion"

    @property
    def pickscore(self) -> Path:
        return self.work / "pickscore"

    @property
    def reward(self) -> Path:
        return self.work / "reward"

    @property
    def encode(self) -> Path:
        return self.work / "encode"

    @property
    def dpo(self) -> Path:
        return self.work / "dpo"

    @property
    def sft(self) -> Path:
        return self.work / "sft"

    @property
    def generator(self) -> Path:
        return self.work / "generator"

    @property
    def reward_evaluation(self) -> Path:
        return self.work / "evaluation" / "reward"

    @property
    def generator_evaluation(self) -> Path:
        return self.work / "evaluation" / "generator"

    # records about stages and runs
    def metrics(self, stage: str) -> Path:
        """The stage's DVC metrics: one JSON object."""
        return self.work / "metrics" / f"{stage}.json"

    def log(self, stage: str) -> Path:
        """The stage's live log, one JSON object a line; not an output, so that it survives a cached run."""
        return self.work / "logs" / f"{stage}.jsonl"

    def samples(self, stage: str) -> Path:
        """Sample pictures made while the stage trains."""
        return self.work / "samples" / stage

    @property
    def seconds(self) -> Path:
        """{stage: seconds} of the last time each stage really ran."""
        return self.work / "metrics" / "seconds.json"

    @property
    def state(self) -> Path:
        """Resumable training state, outside every stage's outputs because DVC deletes those before a run."""
        return self.work / "state"

    @property
    def accepted(self) -> Path:
        """What the last dataset that passed the data gate looked like: the baseline of drift and unseen categories."""
        return self.work / "accepted.json"

    @property
    def verified_data(self) -> Path:
        """Which files of data/ were found to have the content hash that data.dvc pins."""
        return self.work / "state" / "data-verified.json"

    @property
    def gates(self) -> Path:
        """By gate, what the last run's gates said of its models, and the MLflow run in which each was asked."""
        return self.work / "metrics" / "gates.json"

    @property
    def outcome(self) -> Path:
        """How the last flow run ended: status, reasons, run id, model versions."""
        return self.work / "outcome.json"

    @property
    def report(self) -> Path:
        return self.work / "report"

    @property
    def watched(self) -> Path:
        """What the last run of the monitor found."""
        return self.work / "monitor.json"

    @property
    def snapshot(self) -> Path:
        """What the last run trained on, in short: what `perfusion monitor` compares fresh picks with."""
        return self.work / "snapshot"

    @property
    def studies(self) -> Path:
        """The DVC project of `perfusion benchmark`; a workspace of its own that reads this one's outputs."""
        return self.work / "studies"

    @property
    def gate_trials(self) -> Path:
        """What `perfusion benchmark gates` found."""
        return self.work / "benchmarks" / "gates.json"

    @property
    def lock(self) -> Path:
        return self.work / "run.lock"

    # the store
    @property
    def tracking_uri(self) -> str:
        """MLflow's tracking and registry URI; a server's where MLFLOW_TRACKING_URI names one.

        Raises:
            ConfigError: what it names is none, or holds credentials.
        """
        return tracking_uri(self.mlruns)

    @property
    def has_store(self) -> bool:
        """Whether there is a store to read; a server counts as one, whether it answers or not."""
        return is_server(self.tracking_uri) or (self.mlruns / "mlflow.db").exists()

    def params(self) -> Params:
        """The workspace's parameters, read and checked."""
        return load_params(self.params_file)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the workspace for one run.

        Raises:
            WorkspaceBusyError: another run holds it; names its process, its start and the remedy.
        """
        self.work.mkdir(parents=True, exist_ok=True)
        owner = self.lock.with_suffix(".json")
        lock = filelock.FileLock(self.lock, timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout:
            raise WorkspaceBusyError(_who_holds(owner, self.root)) from None
        try:
            note = {"pid": os.getpid(), "since": datetime.now(UTC).isoformat(timespec="seconds")}
            atomic_write(owner, json.dumps(note).encode())
            mend_dvc(self.root)
            remove_parts(self.work)
            yield
        finally:
            owner.unlink(missing_ok=True)
            lock.release()


def _who_holds(owner: Path, root: Path) -> str:
    try:
        note = json.loads(owner.read_text())
        who = f"process {note['pid']} holds it since {note['since']}"
    except (OSError, ValueError, KeyError):
        who = "another process holds it"
    return (
        f"workspace {root}: a run is already going on here: {who}\n"
        "remedy: wait for it, stop that process, or run with another PARAMS file (it gets a workspace of its own)"
    )


def open_workspace(root: Path | str | None = None, mlruns: Path | str | None = None) -> Workspace:
    """The workspace at `root` (default: the repository), as it is; nothing is made or checked."""
    root = Path(root).resolve() if root is not None else REPOSITORY
    return Workspace(root, Path(mlruns).resolve() if mlruns is not None else REPOSITORY / "mlruns")


def prepare_workspace(
    params: Path | str | None = None,
    data: Path | str | None = None,
    root: Path | str | None = None,
    mlruns: Path | str | None = None,
) -> Workspace:
    """Find or make the workspace of a parameter file and a dataset; safe to repeat.

    Args:
        params: parameter file; None is the repository's params.yaml.
        data: dataset folder; None is the repository's data/.
        root: the workspace's folder; None is the repository itself for the default pair and otherwise
            work/workspaces/<stem of params>.
        mlruns: the store; None is the repository's mlruns/.

    Raises:
        ConfigError: the parameter file is absent or wrong (nothing is made then).
        DataError: the dataset's folder is absent.
    """
    source = Path(params).resolve() if params is not None else REPOSITORY / DEFAULT_PARAMS
    dataset = Path(data).resolve() if data is not None else REPOSITORY / DEFAULT_DATA
    values = load_params(source).model_dump(mode="json")
    if data is not None and not dataset.is_dir():
        raise DataError(
            f"{dataset}: no such dataset folder (DATA)\n"
            "remedy: name a folder with users.parquet, groups.parquet and images/part-*.parquet; "
            "`perfusion data sample --out DIR` writes a sample"
        )
    if root is None and source == REPOSITORY / DEFAULT_PARAMS and dataset == REPOSITORY / DEFAULT_DATA:
        return open_workspace(REPOSITORY, mlruns)
    folder = Path(root).resolve() if root is not None else REPOSITORY / "work" / "workspaces" / source.stem
    if folder == REPOSITORY:
        raise ConfigError(f"{folder}: the repository's own workspace takes only its params.yaml and data/")
    workspace = open_workspace(folder, mlruns)
    folder.mkdir(parents=True, exist_ok=True)
    for name in CODE_FOLDERS:
        link_to(folder / name, REPOSITORY / name)
    link_to(folder / "data", dataset)
    if (REPOSITORY / ".venv").is_dir():
        link_to(folder / ".venv", REPOSITORY / ".venv")  # where dvc.yaml looks for python
    resolved = f"# {source.name} with every default written out\n{yaml.safe_dump(values, sort_keys=False)}"
    write_if_changed(workspace.params_file, resolved.encode())
    for name in ("dvc.yaml", ".dvcignore"):
        write_if_changed(folder / name, (REPOSITORY / name).read_bytes())
    if not (folder / ".dvc").is_dir():
        init_dvc(folder)
    return workspace


def link_to(link: Path, target: Path) -> None:
    """Make `link` point at `target`; a link that already does is left alone."""
    if link.is_symlink() and link.readlink() == target:
        return
    if link.exists() and not link.is_symlink():
        raise ConfigError(f"{link}: is a real file or folder where the workspace keeps a link; move it away")
    link.unlink(missing_ok=True)
    link.symlink_to(target, target_is_directory=True)


def write_if_changed(path: Path, content: bytes) -> None:
    """Write a file unless it holds this already, so that its time of change stays true."""
    if not path.exists() or path.read_bytes() != content:
        atomic_write(path, content)


#: DVC asks nobody whether there is a newer one, and tells nobody that it ran.
DVC_CONFIG = "[core]\n    no_scm = True\n    analytics = false\n    check_update = false\n"


def init_dvc(folder: Path) -> None:
    """Make `folder` a DVC project without git whose cache is the repository's: whole or not at all.

    It is made beside the folder, because DVC writes the cache's place relative to the project's.
    """
    dvc = [sys.executable, "-m", "dvc"]
    made = folder.with_name(f".{folder.name}.dvc.part")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    try:
        done = subprocess.run([*dvc, "init", "--no-scm", "--quiet"], cwd=made, capture_output=True, text=True)
        if done.returncode == 0 and (REPOSITORY / ".dvc").is_dir() and folder.is_relative_to(REPOSITORY):
            cache = REPOSITORY / ".dvc" / "cache"
            done = subprocess.run(
                [*dvc, "cache", "dir", "--local", str(cache)], cwd=made, capture_output=True, text=True
            )  # fmt: skip
        if done.returncode != 0:
            raise ConfigError(f"{folder}: could not be made a DVC project:\n{done.stderr.strip()}")
        (made / ".dvc" / "config").write_text(DVC_CONFIG)
        (made / ".dvc").rename(folder / ".dvc")
    finally:
        shutil.rmtree(made, ignore_errors=True)
