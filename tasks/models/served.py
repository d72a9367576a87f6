"""The models that serve: loading the champion (or a named version) of a workspace's store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PyFuncModel, load_model
from mlflow.types import Schema
from PIL import Image

from perfusion.errors import GateError
from tasks.models.requests import RequestError
from tasks.registry import CHAMPION, Registry

__all__ = ["Served", "contact_strip", "load_served"]


@dataclass(frozen=True)
class Served:
    """A loaded model.

    Attributes:
        name: registered name.
        version: of it.
    """

    name: str
    version: int
    _model: PyFuncModel

    @property
    def inputs(self) -> Schema:
        """What a request may hold."""
        return self._model.metadata.get_input_schema()

    def ask(self, request: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """The model's answer.

        Raises:
            RequestError: a field or parameter that the model does not know. MLflow would drop it with a warning, before
                the model sees it, and answer a question that was not asked.
        """
        _refuse_unknown("field", request.columns, self.inputs.input_names())
        schema = self._model.metadata.get_params_schema()
        _refuse_unknown("parameter", params or (), [] if schema is None else [spec.name for spec in schema.params])
        return pd.DataFrame(self._model.predict(request, params=dict(params) if params else None))


def load_served(registry: Registry, name: str, version: int | None = None) -> Served:
    """Load a version of the registered model `name`, after checking its files; None takes the champion.

    Raises:
        GateError: there is no champion, or no such version, or its files are not those that were registered.
    """
    chosen = registry.version(name, CHAMPION) if version is None else version
    if chosen is None:
        raise GateError(
            f"{name}: no champion yet; `perfusion retrain` makes one when its gates pass, `perfusion report` tells why "
            "one did not, --version N takes any version"
        )
    try:
        registry.client.get_model_version(name, str(chosen))
    except MlflowException as error:
        raise GateError(f"{name} version {chosen}: {error.message}; `perfusion history` lists versions") from None
    registry.files(name, chosen)
    mlflow.set_tracking_uri(registry.client.tracking_uri)
    mlflow.set_registry_uri(registry.client.tracking_uri)
    return Served(name, chosen, load_model(f"models:/{name}/{chosen}"))


def _refuse_unknown(kind: str, given: Iterable[object], known: Sequence[object]) -> None:
    unknown = [name for name in given if name not in known]
    if unknown:
        raise RequestError(
            f"{kind} {unknown[0]!r} is unknown to this model; known are {', '.join(map(str, known)) or 'none'}"
        )


def contact_strip(pictures: list[Image.Image], gap: int = 4) -> Image.Image:
    """Pictures of one size side by side on white."""
    width, height = pictures[0].size
    strip = Image.new("RGB", (len(pictures) * (width + gap) + gap, height + 2 * gap), "white")
    for index, picture in enumerate(pictures):
        strip.paste(picture, (gap + index * (width + gap), gap))
    return strip
