"""What the tools must be told before they are imported: keep quiet, keep to yourself, keep your files here."""

from __future__ import annotations

import os
from pathlib import Path

from tasks.quiet import QUIET

__all__ = ["quieten"]

_DEFAULTS = {
    "HF_HUB_OFFLINE": "1",  # weights are named by path; set it to 0 to let hub ids be fetched
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # a busy machine needs more than the default 20
    "PREFECT_SERVER_UI_ENABLED": "false",  # the server that a flow starts for itself is gone when the flow ends
    # artifacts pass through MLflow's server, which would else send clients to the bucket by links naming its key
    "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",
    "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "TOKENIZERS_PARALLELISM": "false",
}


def quieten(repository: Path) -> None:
    """Set the environment of flows and of every process they start; what the user has set wins over the defaults."""
    os.environ.update(QUIET)
    for name, value in {**_DEFAULTS, "PREFECT_HOME": str(repository / "work" / "prefect")}.items():
        os.environ.setdefault(name, value)
    Path(os.environ["PREFECT_HOME"]).parent.mkdir(parents=True, exist_ok=True)  # Prefect makes no folder above its own
