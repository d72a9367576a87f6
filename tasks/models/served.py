"""The models that serve: loading the champion (or a named version) of a workspace's store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PyFuncModel, load_model
from mlflow.types import DataType, Schema
from PIL import Image

from perfusion.errors import GateError
from tasks.models.requests import parameter_names, refuse_unknown
from tasks.registry import CHAMPION, Registry

__all__ = ["Served", "contact_strip", "load_served"]

_NO_FEATURES = {"user_id", "n", "seed", "image", "images"}  # optional fields that say nothing of the user


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

    @property
    def features(self) -> dict[str, type]:
        """The user's features that a request may give, and whether each is text or a number."""
        optional = [column for column in self.inputs if not column.required and column.name not in _NO_FEATURES]
        return {column.name: float if column.type == DataType.double else str for column in optional}

    def ask(self, request: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """The model's answer.

        Raises:
            RequestError: a field or parameter that the model does not know. MLflow would drop it with a warning, before
                the model sees it, and answer a question that was not asked.
        """
        refuse_unknown("field", request.columns, self.inputs.input_names())
        schema = self._model.metadata.get_params_schema()
        refuse_unknown("parameter", params or (), parameter_names(schema))
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


def contact_strip(pictures: list[Image.Image], gap: int = 4) -> Image.Image:
    """Pictures of one size side by side on white."""
    width, height = pictures[0].size
    strip = Image.new("RGB", (len(pictures) * (width + gap) + gap, height + 2 * gap), "white")
    for index, picture in enumerate(pictures):
        strip.paste(picture, (gap + index * (width + gap), gap))
    return strip
