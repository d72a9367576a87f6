"""What every test needs before anything else is imported."""

import os
from pathlib import Path

import pytest
import torch

from perfusion import torchvision_guard

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
