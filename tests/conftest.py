"""What every test needs before anything else is imported."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from perfusion import torchvision_guard

if TYPE_CHECKING:
    from tasks.registry import Registry

for name in ("MLFLOW_TRACKING_URI", "PERFUSION_PROMOTION_LOG", "PREFECT_API_URL"):
    os.environ.pop(name, None)  # whatever server the shell names, tests have their own
os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}  # read while mlflow is imported
torchvision_guard.install()
torch.set_num_threads(1)  # on a busy machine two threads of a tiny model wait for each other longer than they work

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of optional inputs beside the checkout (real photographs, one pretrained head)."""
    folder = REPOSITORY.parent / "shared"
    if not (folder / "data" / "marketplace" / "groups.parquet").exists():
        pytest.skip("optional inputs are not beside the checkout: ../shared/data/marketplace/groups.parquet is absent")
    return folder


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Registry]:
    """A function that gives a store of one's own in a folder: two versions of both tiny models, no champion.

    Built once. The versions' files are shared: whoever changes one puts it back.
    """
    from tiny_models import make_store

    from tasks.registry import open_registry

    built = tmp_path_factory.mktemp("tiny-store")
    make_store(built, versions=2)

    def give(folder: Path) -> Registry:
        for name in ("mlflow.db", "promotions.jsonl"):
            shutil.copy(built / name, folder / name)
        return open_registry(f"sqlite:///{folder / 'mlflow.db'}", folder)

    return give
