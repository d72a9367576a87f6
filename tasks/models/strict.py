"""MLflow's server drops what a signature does not name, before the model sees it. Our models refuse it by name.

There is no setting for it: the server hands the parsed request to `PyFuncModel.predict`, which enforces the signature
and keeps what it knows. So that step is wrapped, in processes that serve and in no others. An artifact pins MLflow's
version, and a test asks a real server.
"""

from __future__ import annotations

from functools import wraps
from inspect import signature
from typing import Any

import mlflow
import pandas as pd
from mlflow import pyfunc
from mlflow.environment_variables import _MLFLOW_IS_IN_SERVING_ENVIRONMENT as SERVING
from mlflow.types import ParamSchema, Schema

from perfusion.errors import GateError
from tasks.models.requests import parameter_names, refuse_unknown

__all__ = ["refuse_what_would_be_dropped"]

_STEP = "_validate_prediction_input"


def refuse_what_would_be_dropped() -> None:
    """From now on a served request with an unknown field or parameter is refused; safe to repeat.

    Raises:
        GateError: this MLflow does not have the step that is wrapped.
    """
    plain = getattr(pyfunc, _STEP, None)
    if plain is None:
        raise GateError(
            f"MLflow {mlflow.__version__} has no {_STEP}, and would drop unknown fields of requests without a word; "
            "serve with the version in the artifact's requirements.txt"
        )
    if getattr(plain, "refuses", False):
        return

    arguments = signature(plain)

    @wraps(plain)
    def enforced(*given: Any, **named: Any) -> Any:
        if SERVING.get():
            asked = arguments.bind(*given, **named).arguments
            _refuse(asked["data"], asked["params"], asked["input_schema"], asked["params_schema"])
        return plain(*given, **named)

    enforced.refuses = True  # type: ignore[attr-defined]
    setattr(pyfunc, _STEP, enforced)


def _refuse(data: Any, params: dict[str, Any] | None, inputs: Schema | None, options: ParamSchema | None) -> None:
    names = data.columns if isinstance(data, pd.DataFrame) else data if isinstance(data, dict) else ()
    refuse_unknown("field", names, [] if inputs is None else inputs.input_names())
    refuse_unknown("parameter", params or (), parameter_names(options))
