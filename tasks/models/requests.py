"""What a request may hold. Every refusal names the field, the row, the value and the rule, and is a 400 when served."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from perfusion.errors import PerFusionError

__all__ = ["MAX_PICTURES", "RequestError", "column", "number", "texts", "user_mistakes"]

MAX_PICTURES = 64  # a request row may ask for; more belongs in a batch job


class RequestError(MlflowException):
    """A request is malformed; its text names the field."""

    def __init__(self, message: str) -> None:
        super().__init__(message, error_code=INVALID_PARAMETER_VALUE)


@contextmanager
def user_mistakes() -> Iterator[None]:
    """Turn the library's errors about a user's input into refusals of the request."""
    try:
        yield
    except PerFusionError as error:
        raise RequestError(str(error)) from error


def column(frame: pd.DataFrame, name: str) -> list[Any]:
    """A column that must be there and without nulls.

    Raises:
        RequestError: the column is absent, or a row has no value in it.
    """
    if name not in frame.columns:
        given = ", ".join(map(str, frame.columns)) or "no field"
        raise RequestError(f"field {name!r} is missing; the request has {given}")
    values = frame[name].tolist()
    for row, value in enumerate(values):
        if value is None or (isinstance(value, float) and math.isnan(value)):
            raise RequestError(f"field {name!r}, row {row}: no value")
    return values


def texts(frame: pd.DataFrame, name: str, longest: int = 2000) -> list[str]:
    """A column of texts, none empty, none longer than `longest` characters."""
    values = column(frame, name)
    for row, value in enumerate(values):
        if not isinstance(value, str) or not value.strip():
            raise RequestError(f"field {name!r}, row {row}: {value!r:.80} is not a text with something in it")
        if len(value) > longest:
            raise RequestError(f"field {name!r}, row {row}: {len(value)} characters, the limit is {longest}")
    return values


def number(source: Mapping[str, Any], name: str, default: float, low: float, high: float, whole: bool = True) -> float:
    """A number within [low, high]; absent or null takes the default.

    Raises:
        RequestError: not a (whole) number, or outside the range.
    """
    value = source.get(name)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return default
    try:
        parsed = float(value)
    except (TypeError, ValueError):
        raise RequestError(f"field {name!r}: {value!r:.80} is not a number") from None
    if isinstance(value, bool) or not math.isfinite(parsed) or (whole and parsed != int(parsed)):
        raise RequestError(f"field {name!r}: {value!r} is not a {'whole ' if whole else ''}number")
    if not low <= parsed <= high:
        raise RequestError(f"field {name!r}: {value!r} is outside {low:g} .. {high:g}")
    return int(parsed) if whole else parsed
