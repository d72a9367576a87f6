"""Where runs are killed: a marketplace, a workspace of very small models, a store, and all else that is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from perfusion.checkpoint import atomic_write
from perfusion.world.marketplace import write_marketplace
from tasks.publishing import CONTENT
from tasks.registry import Registry, open_registry
from tasks.workspace import REPOSITORY, Workspace, open_workspace

__all__ = ["FAMILY", "Place", "make_place", "small_parameters"]

FAMILY = "kills"
MERCHANTS = 60
#: What differs from params/smoke.yaml: less of everything, and resumable states all the time.
CHANGES: dict[str, dict[str, Any]] = {
    "clip": {"steps": 40, "pictures": 600},
    "diffusion": {"steps": 20, "pictures": 600},
    "evaluate": {"pairs": 12},
}
CODEC_STEPS = 20
CHECKPOINT_SECONDS = 0.1
ESTRANGED = "estranged"


@dataclass(frozen=True)
class Place:
    """One folder with everything that runs under attack read and write.

    Attributes:
        root: the folder.
        data: the dataset; may lie elsewhere and be shared.
    """

    root: Path
    data: Path

    @property
    def params(self) -> Path:
        return self.root / "kills.yaml"

    @property
    def workspace(self) -> Workspace:
        return open_workspace(self.root / "workspace", self.root / "mlruns")

    @property
    def registry(self) -> Registry:
        return open_registry(self.workspace.tracking_uri, self.workspace.mlruns)

    @property
    def arguments(self) -> list[str]:
        """Of `flows.retrain.retrain`."""
        return [str(path) for path in (self.params, self.data, self.workspace.root, self.workspace.mlruns)]

    def environment(self) -> dict[str, str]:
        """Variables that keep every file of a run in the place."""
        (self.root / "tmp").mkdir(exist_ok=True)
        own = {"TMPDIR": "tmp", "PREFECT_HOME": "prefect", "DVC_SITE_CACHE_DIR": "dvc"}
        return {"PYTHONPATH": str(REPOSITORY), **{name: str(self.root / folder) for name, folder in own.items()}}

    def forget(self, stage: str) -> None:
        """Make a stage that ran run again: dvc.lock tells of another command, and DVC's cache of runs of none."""
        lock = self.workspace.dvc_lock
        told = yaml.safe_load(lock.read_text())
        told["stages"][stage]["cmd"] = "another"
        atomic_write(lock, yaml.safe_dump(told, sort_keys=False).encode())
        for run in (self.workspace.root / ".dvc" / "cache" / "runs").glob("*/*"):
            if any(_is_of(note, stage) for note in run.iterdir()):
                shutil.rmtree(run)

    def estrange(self) -> None:
        """Make the registry forget what its versions were made from, so that the next run registers the models anew."""
        registry = self.registry
        for name in registry.champions(FAMILY):
            for version in registry.client.search_model_versions(f"name = '{name}'"):
                if version.tags.get(CONTENT) != ESTRANGED:
                    registry.client.set_model_version_tag(name, version.version, CONTENT, ESTRANGED)

    def outcome(self) -> dict[str, Any]:
        """How the last run ended; {} where it was killed before it could say so."""
        file = self.workspace.outcome
        return dict(json.loads(file.read_text())) if file.exists() else {}


def make_place(root: Path, data: Path, **changes: Mapping[str, Any]) -> Place:
    """A new place, its dataset drawn unless it is there.

    Args:
        root: a folder that does not exist or is empty.
        data: the dataset's folder.
        changes: of parameters, by section.
    """
    if not data.exists():
        write_marketplace(data, users=MERCHANTS, seed=0)
    root.mkdir(parents=True, exist_ok=True)
    values = small_parameters()
    for section, change in changes.items():
        values[section] = {**values[section], **change}
    place = Place(root, data)
    place.params.write_text(yaml.safe_dump(values))
    return place


def small_parameters() -> dict[str, Any]:
    """The parameters of the runs, as in a parameter file."""
    values: dict[str, Any] = yaml.safe_load((REPOSITORY / "params" / "smoke.yaml").read_text())
    values["name"] = FAMILY
    for section, change in CHANGES.items():
        rest = {name: value for name, value in change.items() if name != "steps"}
        values[section] |= rest
        if "steps" in change:
            values[section]["optimiser"]["steps"] = change["steps"]
    values["diffusion"]["codec"]["optimiser"]["steps"] = CODEC_STEPS
    for section in (*values.values(), values["diffusion"]["codec"]):
        if isinstance(section, dict) and "optimiser" in section:
            section["optimiser"]["checkpoint_seconds"] = CHECKPOINT_SECONDS
    return values


def _is_of(note: Path, stage: str) -> bool:
    """Whether a note in DVC's cache of runs tells of a stage."""
    return str(yaml.safe_load(note.read_text())["cmd"]).endswith(f"tasks.stages {stage}")
