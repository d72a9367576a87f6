"""Load a registered artifact as a stranger would: a fresh interpreter, another folder, nothing but MLflow imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from perfusion.errors import GateError
from tasks.process import cpu_environment, group
from tasks.quiet import QUIET

__all__ = ["clean_environment", "load_in_clean_process"]

_ALONE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
_SCRIPT = """
import json, logging, sys
logging.disable(logging.WARNING)
import mlflow, pandas
probe, answer, uri, params = sys.argv[1:]
model = mlflow.pyfunc.load_model(uri)
model.predict(pandas.read_parquet(probe), params=json.loads(params) or None).to_parquet(answer)
"""


def clean_environment(tracking_uri: str, threads: int) -> dict[str, str]:
    """Of a process that knows one store: whichever this process or its environment talks to is not handed on."""
    store = {"MLFLOW_TRACKING_URI": tracking_uri, "MLFLOW_REGISTRY_URI": tracking_uri}
    return {**os.environ, **cpu_environment(threads), **QUIET, **_ALONE, **store}


def load_in_clean_process(
    model_uri: str,
    probe: pd.DataFrame,
    tracking_uri: str,
    params: Mapping[str, Any] | None = None,
    timeout: float = 600.0,
    threads: int | None = None,
) -> pd.DataFrame:
    """What the artifact at `model_uri` answers to `probe` in a clean process.

    Args:
        model_uri: e.g. "models:/perfusion-reward/3".
        probe: a request.
        tracking_uri: of the store.
        params: request parameters.
        timeout: seconds.
        threads: of the numerical libraries; None takes as many as torch does here, because another number may change
            the last bits of an answer.

    Raises:
        GateError: it does not load or answer; holds the last lines of what it said.
    """
    with tempfile.TemporaryDirectory(prefix="perfusion-load-") as folder:
        question, answer = Path(folder, "probe.parquet"), Path(folder, "answer.parquet")
        probe.to_parquet(question)
        arguments = [str(question), str(answer), model_uri, json.dumps(dict(params or {}))]
        environment = clean_environment(tracking_uri, threads or torch.get_num_threads())
        options = {"cwd": folder, "env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        with group([sys.executable, "-c", _SCRIPT, *arguments], **options) as process:
            try:
                _, errors = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                raise GateError(f"{model_uri}: no answer from a clean process within {timeout:g} s") from None
        if process.returncode != 0 or not answer.exists():
            said = "\n  ".join(errors.strip().splitlines()[-6:]) or "nothing"
            raise GateError(f"{model_uri}: a clean process ended with status {process.returncode}; it said:\n  {said}")
        return pd.read_parquet(answer)
