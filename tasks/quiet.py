"""What keeps every tool from telling others that it runs, and from running what a file holds: their own switches."""

from __future__ import annotations

__all__ = ["QUIET"]

QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "true",  # of Prefect, MLflow and the hub; "1" would not stop MLflow
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DVC_NO_ANALYTICS": "1",  # its check for a newer version is turned off in .dvc/config
    "ITERATIVE_DO_NOT_TRACK": "true",  # of what DVC is made of
    "GX_ANALYTICS_ENABLED": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",  # and of transformers and diffusers
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",  # no model of ours needs it; one that does is not of ours
}
