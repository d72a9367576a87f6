"""The snapshot of a run's training data: written beside its evidence, found again from the model that serves."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from perfusion.errors import DataError, GateError
from tasks.workspace import Workspace

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient

    from perfusion.governance.snapshot import Snapshot

__all__ = ["snapshot_of_dataset", "snapshot_of_version", "write_snapshot"]


def write_snapshot(workspace: Workspace) -> None:
    """Write work/snapshot of a run that came to evaluate its reward model; remove an earlier run's otherwise."""
    shutil.rmtree(workspace.snapshot, ignore_errors=True)
    evaluated = workspace.reward_evaluation / "groups.parquet"
    if not evaluated.exists():
        return
    import pandas as pd

    from perfusion.data import read_groups, read_users
    from perfusion.governance.snapshot import take_snapshot

    users = read_users(workspace.split / "users.parquet")
    groups = read_groups(workspace.split / "groups.parquet", extra=("split",))
    ranked = pd.read_parquet(evaluated, columns=["user_id", "split", "auc_perfusion_rm"])
    known = ranked[ranked["split"] == "test"].rename(columns={"auc_perfusion_rm": "auc"})[["user_id", "auc"]]
    take_snapshot(users, groups, known.reset_index(drop=True)).save(workspace.snapshot)


def snapshot_of_version(client: MlflowClient, name: str, version: int) -> Snapshot:
    """The snapshot of the run that registered a version.

    Raises:
        DataError: that run kept none.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

    from perfusion.governance.snapshot import Snapshot

    run_id = client.get_model_version(name, str(version)).run_id
    if run_id is None:
        raise GateError(f"{name} version {version} names no run; register it with a retraining")
    parent = client.get_run(run_id).data.tags.get(MLFLOW_PARENT_RUN_ID, run_id)
    with tempfile.TemporaryDirectory(prefix="perfusion-snapshot-") as folder:
        try:
            found = Path(client.download_artifacts(parent, "snapshot", folder))
        except (MlflowException, OSError):
            raise DataError(
                f"{name} version {version}: its run {parent} kept no snapshot of its training data (it is of an older "
                "release); name the dataset it was trained on: --reference FOLDER"
            ) from None
        return Snapshot.load(found)


def snapshot_of_dataset(users: pd.DataFrame, groups: pd.DataFrame) -> Snapshot:
    """The snapshot of a dataset that is named by hand; how well the model did on it is not known."""
    from perfusion.governance.snapshot import take_snapshot

    return take_snapshot(users, groups)
