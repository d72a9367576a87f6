"""Where studies live: a DVC project below the workspace, which reads what the retraining made and leaves it alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import yaml

from perfusion.errors import DataError
from tasks.mending import mend_dvc
from tasks.studies.pipeline import PIPELINE, Stage, resolve
from tasks.studies.plan import Plan, make_plan
from tasks.workspace import (
    CODE_FOLDERS,
    REPOSITORY,
    Workspace,
    init_dvc,
    link_to,
    open_workspace,
    write_if_changed,
)

__all__ = ["BASE", "Studies", "features_of", "prepare_studies"]

#: Outputs of the retraining that studies read, reached as base/NAME.
BASE = ("valid", "split", "backbones", "pickscore", "reward", "encode", "dpo", "sft", "generator", "evaluation")


@dataclass(frozen=True)
class Studies:
    """The studies of a workspace.

    Attributes:
        workspace: whose retraining they build on.
        place: their own paths; `place.root` is the DVC project.
        plan: of all studies.
        stages: every stage of the pipeline, each after those that it needs.
    """

    workspace: Workspace
    place: Workspace
    plan: Plan
    stages: dict[str, Stage]


def prepare_studies(workspace: Workspace, seeds: int) -> Studies:
    """Make the project, or bring it up to date with the workspace's parameters; safe to repeat.

    Args:
        workspace: with a dataset.
        seeds: training seeds of each system.
    """
    params = workspace.params()
    plan = make_plan(params, features_of(workspace), seeds)
    root = workspace.studies
    (root / "base").mkdir(parents=True, exist_ok=True)
    for name in CODE_FOLDERS:
        link_to(root / name, REPOSITORY / name)
    if (REPOSITORY / ".venv").is_dir():
        link_to(root / ".venv", REPOSITORY / ".venv")
    link_to(root / "data", workspace.data.resolve())
    for name in BASE:
        link_to(root / "base" / name, workspace.work / name)
    resolved = "# the workspace's parameters with every default written out\n" + yaml.safe_dump(
        params.model_dump(mode="json"), sort_keys=False
    )
    write_if_changed(root / "params.yaml", resolved.encode())
    write_if_changed(root / "plan.json", json.dumps({"plan": plan.items}, indent=1).encode())
    write_if_changed(root / "dvc.yaml", PIPELINE.read_bytes())
    write_if_changed(root / ".dvcignore", (REPOSITORY / ".dvcignore").read_bytes())
    if not (root / ".dvc").is_dir():
        init_dvc(root)
    mend_dvc(root)
    return Studies(workspace, open_workspace(root, workspace.mlruns), plan, resolve(plan.items))


def features_of(workspace: Workspace) -> tuple[str, ...]:
    """The columns of the dataset's users but for the id, by name.

    Raises:
        DataError: there is no users.parquet.
    """
    file: Path = workspace.data / "users.parquet"
    if not file.is_file():
        raise DataError(f"{file}: no such file; `perfusion retrain` fetches or draws the sample dataset")
    return tuple(sorted(name for name in pq.read_schema(file).names if name != "user_id"))
