"""What every stage has in common: its key, its resumable state, its live log, outputs that are whole or absent."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from perfusion.checkpoint import atomic_write, run_key
from perfusion.config import PLAIN, ComputeConfig, OptimiserConfig, Params
from perfusion.errors import ConfigError
from tasks.livelog import LiveLog
from tasks.workspace import Workspace

if TYPE_CHECKING:
    from torch import Tensor

    from perfusion.distributed import Processes
    from perfusion.loop import TrainingRun

__all__ = [
    "StageRun",
    "begin_stage",
    "content_hash",
    "record_seconds",
    "resumable",
    "stage_key",
    "stages_of",
    "value_at",
    "whole",
    "write_metrics",
]

SAMPLES = 4  # sample pictures of a training run are drawn at this many evenly spaced steps


@dataclass(frozen=True)
class StageRun:
    """A stage that is running.

    Attributes:
        name: of the stage in dvc.yaml.
        workspace: its paths.
        params: all parameters; the stage hands its own section on.
        key: names everything that the stage depends on.
        log: its live log.
        processes: that share its training, where a launcher started several; None is this one alone.
    """

    name: str
    workspace: Workspace
    params: Params
    key: str
    log: LiveLog = field(repr=False)
    processes: Processes | None = None

    @property
    def leads(self) -> bool:
        """Whether this process logs and writes; of several that share a training one does."""
        return self.processes is None or self.processes.leads

    @property
    def state(self) -> Path:
        return self.workspace.state / self.name

    def training(self, name: str, optimiser: OptimiserConfig, compute: ComputeConfig = PLAIN) -> TrainingRun:
        """A resumable training run whose metrics and sample pictures go to the stage's live log."""
        from perfusion.distributed import ALONE
        from perfusion.loop import TrainingRun

        steps = optimiser.steps

        def on_metrics(step: int, metrics: Mapping[str, float]) -> None:
            self.log.write(run=name, step=step, of=steps, metrics=dict(metrics))

        def on_pictures(step: int, pictures: Tensor) -> None:
            file = self.workspace.samples(name) / f"{step:06d}.png"
            _save_strip(pictures, file)
            path = str(file.relative_to(self.workspace.root))
            self.log.write(run=name, step=step, image=path, name=f"samples/{name}")

        sample_steps = frozenset(max(1, steps * part // SAMPLES) for part in range(1, SAMPLES + 1))
        return TrainingRun(
            name=name, seed=self.params.seed, state_dir=self.state, key=self.key, compute=compute,
            processes=self.processes or ALONE, on_metrics=on_metrics if self.leads else None,
            on_pictures=on_pictures if self.leads else None, sample_steps=sample_steps,
        )  # fmt: skip


def begin_stage(name: str, workspace: Workspace, processes: Processes | None = None) -> StageRun:
    """Read parameters, compute the stage's key, and begin its log or go on with the one a crash cut short.

    Args:
        name: of the stage.
        workspace: where.
        processes: that share the stage's training; all but the first leave the log alone.

    Raises:
        ConfigError: parameters are wrong, or dvc.yaml has no such stage.
    """
    params = workspace.params()
    key = stage_key(name, workspace, params)
    if processes is not None and not processes.leads:
        return StageRun(name, workspace, params, key, LiveLog(workspace.log(name)), processes)
    return replace(resumable(name, workspace, params, key), processes=processes)


def resumable(name: str, workspace: Workspace, params: Params, key: str) -> StageRun:
    """A stage with its log begun, or gone on with where the state of the same `key` was left by a crash."""
    log = LiveLog.begin(workspace.log(name), key, _resumed_steps(workspace.state / name, key))
    return StageRun(name, workspace, params, key, log)


def stages_of(dvc_yaml: Path) -> dict[str, dict[str, Any]]:
    """The stages of a dvc.yaml in their order, each with `deps` and `params`."""
    return dict(yaml.safe_load(dvc_yaml.read_text())["stages"])


def stage_key(name: str, workspace: Workspace, params: Params) -> str:
    """A key of all that a stage depends on by dvc.yaml: parameter sections, and the content of every dependency."""
    stages = stages_of(workspace.dvc_yaml)
    if name not in stages:
        raise ConfigError(f"{workspace.dvc_yaml}: no stage {name!r}; stages are {', '.join(stages)}")
    values = params.model_dump(mode="json")
    sections = {path: value_at(values, path) for path in stages[name].get("params", ())}
    deps = {path: content_hash(workspace.root / path) for path in stages[name].get("deps", ())}
    return run_key(stage=name, params=sections, deps=deps)


def value_at(values: dict[str, Any], path: str) -> Any:
    """The value at a dotted path, e.g. "data.image_size"."""
    for name in path.split("."):
        values = values[name]
    return values


def content_hash(path: Path) -> str:
    """Hash of a file, or of a folder's files with their names; compiled Python is left out, as .dvcignore does."""
    digest = hashlib.blake2b(digest_size=16)
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    for file in files:
        if file.is_file() and "__pycache__" not in file.parts:
            digest.update(f"{file.relative_to(path)}\0{file.stat().st_size}\0".encode())
            with open(file, "rb") as content:
                while part := content.read(1 << 20):
                    digest.update(part)
    return digest.hexdigest()


def _resumed_steps(folder: Path, key: str) -> dict[str, int]:
    """From which step each training run of a stage will go on."""
    from perfusion.checkpoint import load_training_state

    states = {file.stem: load_training_state(file, key) for file in sorted(folder.glob("*.pt"))}
    return {name: int(state["step"]) for name, state in states.items() if state is not None}


@contextmanager
def whole(*outs: Path, keep: bool = True) -> Iterator[tuple[Path, ...]]:
    """Folders to write into that take the names `outs` when the block ends well, and vanish when it does not.

    Args:
        keep: False for a process whose results another one of the same training writes: its own vanish always.
    """
    if not keep:
        with tempfile.TemporaryDirectory(prefix="perfusion-") as scratch:
            discarded = tuple(Path(scratch) / out.name for out in outs)
            for part in discarded:
                part.mkdir()
            yield discarded
        return
    parts = tuple(out.with_name(f".{out.name}.part") for out in outs)
    try:
        for part in parts:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
        yield parts
        for part, out in zip(parts, outs, strict=True):
            if out.exists():
                shutil.rmtree(out)
            part.rename(out)
    finally:
        for part in parts:
            shutil.rmtree(part, ignore_errors=True)


def write_metrics(path: Path, metrics: Mapping[str, Any]) -> None:
    """Write a stage's metrics in an order and a precision that depend on nothing else."""
    text = json.dumps(metrics, indent=2, sort_keys=True, default=_plain)
    atomic_write(path, (text + "\n").encode())


def _plain(value: Any) -> Any:
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{value!r} of type {type(value).__name__} is no metric")


def record_seconds(workspace: Workspace, stage: str, seconds: float) -> None:
    """Note how long a stage took; a cached run leaves the note of the run that did the work."""
    workspace.seconds.parent.mkdir(parents=True, exist_ok=True)
    seen = json.loads(workspace.seconds.read_text()) if workspace.seconds.exists() else {}
    seen[stage] = round(seconds, 2)
    atomic_write(workspace.seconds, json.dumps(seen, indent=2, sort_keys=True).encode())


def _save_strip(pictures: Tensor, file: Path) -> None:
    """Write pictures (n, 3, S, S) uint8 side by side as one PNG."""
    import io

    from PIL import Image

    strip = pictures.permute(2, 0, 3, 1).reshape(pictures.shape[2], -1, 3).contiguous().cpu().numpy()
    buffer = io.BytesIO()
    Image.fromarray(strip).save(buffer, "PNG")
    atomic_write(file, buffer.getvalue())
