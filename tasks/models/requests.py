"""What a request may hold. Every refusal names the field, the row, the value and the rule, and is a 400 when served."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.types import ParamSchema

from perfusion.errors import PerFusionError

__all__ = [
    "MAX_PICTURES",
    "MAX_PROMPT",
    "MAX_SEED",
    "RequestError",
    "column",
    "number",
    "parameter_names",
    "refuse_unknown",
    "texts",
    "user_mistakes",
]

MAX_PICTURES = 64  # a request row may ask for; more belongs in a batch job
MAX_PROMPT = 2000  # characters
MAX_SEED = 2**53  # the largest whole number that JSON's readers agree on


class RequestError(MlflowException):
    """A request is malformed; its text names the field.

    Attributes:
        field: the same name by itself, for who tells of it in a form of his own; None: no single field is at fault.
    """

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message, error_code=INVALID_PARAMETER_VALUE)
        self.field = field


@contextmanager
def user_mistakes(field: str | None = None) -> Iterator[None]:
    """Turn the library's errors about a user's input, in this field, into refusals of the request."""
    try:
        yield
    except PerFusionError as error:
        raise RequestError(str(error), field) from error


def refuse_unknown(kind: str, given: Iterable[object], known: Sequence[object]) -> None:
    """Refuse what MLflow would drop with a warning: it would answer a question that was not asked.

    Args:
        kind: "field" or "parameter".
        given: names in the request.
        known: names in the model's signature.

    Raises:
        RequestError: a given name is not known.
    """
    unknown = [name for name in given if name not in known]
    if unknown:
        raise RequestError(
            f"{kind} {unknown[0]!r} is unknown to this model; known are {', '.join(map(str, known)) or 'none'}",
            str(unknown[0]),
        )


def parameter_names(schema: ParamSchema | None) -> list[str]:
    """Names of request parameters; a model without any has no schema."""
    return [] if schema is None else [spec.name for spec in schema.params]


def column(frame: pd.DataFrame, name: str) -> list[Any]:
    """A column that must be there and without nulls.

    Raises:
        RequestError: the column is absent, or a row has no value in it.
    """
    if name not in frame.columns:
        given = ", ".join(map(str, frame.columns)) or "no field"
        raise RequestError(f"field {name!r} is missing; the request has {given}", name)
    values = frame[name].tolist()
    for row, value in enumerate(values):
        if value is None or (isinstance(value, float) and math.isnan(value)):
            raise RequestError(f"field {name!r}, row {row}: no value", name)
    return values


def texts(frame: pd.DataFrame, name: str, longest: int = MAX_PROMPT) -> list[str]:
    """A column of texts, none empty, none longer than `longest` characters."""
    values = column(frame, name)
    for row, value in enumerate(values):
        if not isinstance(value, str) or not value.strip():
            raise RequestError(f"field {name!r}, row {row}: {value!r:.80} is not a text with something in it", name)
        if len(value) > longest:
            raise RequestError(f"field {name!r}, row {row}: {len(value)} characters, the limit is {longest}", name)
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
        raise RequestError(f"field {name!r}: {value!r:.80} is not a number", name) from None
    if isinstance(value, bool) or not math.isfinite(parsed) or (whole and parsed != int(parsed)):
        raise RequestError(f"field {name!r}: {value!r} is not a {'whole ' if whole else ''}number", name)
    if not low <= parsed <= high:
        raise RequestError(f"field {name!r}: {value!r} is outside {low:g} .. {high:g}", name)
    return int(parsed) if whole else parsed
