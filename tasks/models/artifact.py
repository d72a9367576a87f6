"""Logging the two models as MLflow artifacts and taking them into the registry as challengers."""

from __future__ import annotations

import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array

from perfusion.data import FeatureEncoder, encode_png
from tasks.models.generator import OPTIONS
from tasks.registry import JUDGED_BY, Registry

__all__ = ["log_generator", "log_reward"]

CODE = Path(__file__).resolve().parents[2]
PACKAGES = (
    "mlflow",
    "torch",
    "transformers",
    "diffusers",
    "safetensors",
    "tokenizers",
    "pandas",
    "pyarrow",
    "pillow",
    "pydantic",
)
_USER = ColSpec(DataType.string, "user_id", required=False)
_BLIND = ColSpec(DataType.boolean, "user_blind")


def log_reward(
    registry: Registry, run_id: str, name: str, model: Path, users: Path, *, image_size: int
) -> int:  # fmt: skip
    """Log a PerFusionRM folder as a model of an MLflow run, and as the challenger of `{name}-reward`.

    Args:
        registry: the store.
        run_id: the MLflow run that trained it; may have ended.
        name: family, e.g. "perfusion".
        model: folder written by `PerFusionRM.save_pretrained`, with its features.json.
        users: parquet of user_id and features: the users that can be asked for by id alone.
        image_size: side in pixels at which pictures were read when the model was trained and evaluated.

    Returns:
        The new version.
    """
    encoder = FeatureEncoder.load(model / "features.json")
    picture = encode_png(np.full((48, 48, 3), 255, np.uint8))
    example = pd.DataFrame([{"user_id": _somebody(users), "prompt": "dress, v-neck, slim-fit", "image": picture}])
    kinds: dict[str, DataType | Array] = {"image": DataType.binary, "images": Array(DataType.binary)}
    pictures = [ColSpec(kind, name, required=False) for name, kind in kinds.items()]
    signature = ModelSignature(
        inputs=Schema([_USER, ColSpec(DataType.string, "prompt"), *pictures, *_features(encoder)]),
        outputs=Schema([*_place("request", "index"), ColSpec(DataType.double, "score"), _BLIND]),
    )
    reading = {"image_size": image_size}
    return _log(registry, run_id, f"{name}-reward", "serve_reward.py", model, users, signature, example, {}, reading)


def log_generator(
    registry: Registry, run_id: str, name: str, model: Path, users: Path, judged_by: int
) -> int:  # fmt: skip
    """Log a PerFusionPipeline folder as a model of an MLflow run, and as the challenger of `{name}-generator`.

    Args:
        judged_by: version of `{name}-reward` that its evaluation used; the two are promoted together.
        registry, run_id, name, model, users: as for `log_reward`.

    Returns:
        The new version.
    """
    encoder = FeatureEncoder.load(model / "features.json")
    example = pd.DataFrame([{"user_id": _somebody(users), "prompt": "dress, v-neck, slim-fit", "n": 2, "seed": 0}])
    numbers = [ColSpec(DataType.long, name, required=False) for name in ("n", "seed")]
    signature = ModelSignature(
        inputs=Schema([_USER, ColSpec(DataType.string, "prompt"), *numbers, *_features(encoder)]),
        outputs=Schema([*_place("request", "index", "seed"), ColSpec(DataType.binary, "image"), _BLIND]),
        params=ParamSchema(_sampling_defaults(model)),
    )
    tags = {JUDGED_BY: str(judged_by)}
    return _log(registry, run_id, f"{name}-generator", "serve_generator.py", model, users, signature, example, tags, {})


def _log(
    registry: Registry, run_id: str, name: str, script: str, model: Path, users: Path, signature: ModelSignature,
    example: pd.DataFrame, tags: dict[str, str], config: dict[str, Any],
) -> int:  # fmt: skip
    """Write the artifact, make it a logged model of the run and a version of the registered model `name`."""
    client = registry.client
    experiment = client.get_run(run_id).info.experiment_id
    logged = client.create_logged_model(experiment, name=name, source_run_id=run_id, model_type=name)
    with tempfile.TemporaryDirectory(prefix="perfusion-log-") as folder:
        artifact = Path(folder) / "model"
        mlflow.pyfunc.save_model(
            artifact,
            python_model=str(CODE / "tasks" / "models" / script),
            artifacts={"model": str(model), "users": str(users)},
            code_paths=[str(CODE / "perfusion"), str(CODE / "tasks")],
            mlflow_model=Model(run_id=run_id, model_uuid=logged.model_id, model_id=logged.model_id),
            signature=signature,
            model_config=config,
            input_example=example,
            pip_requirements=[f"{package}=={version(package)}" for package in PACKAGES],
        )
        client.log_model_artifacts(logged.model_id, str(artifact))
    client.finalize_logged_model(logged.model_id, "READY")
    client.log_outputs(run_id, models=[LoggedModelOutput(logged.model_id, step=0)])
    _ensure_registered(client, name)
    # By its place, not as models:/ID: that MLflow looks up in the process's default store, whichever this client's is.
    made = client.create_model_version(
        name, logged.artifact_location, run_id=run_id, tags=tags, model_id=logged.model_id
    )
    registry.register(name, int(made.version))
    return int(made.version)


def _ensure_registered(client: MlflowClient, name: str) -> None:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _place(*names: str) -> list[ColSpec]:
    return [ColSpec(DataType.long, name) for name in names]


def _features(encoder: FeatureEncoder) -> list[ColSpec]:
    """Optional columns for the user features of a request."""
    kinds = {name: DataType.double if name in encoder.edges else DataType.string for name in encoder.names}
    return [ColSpec(kind, name, required=False) for name, kind in kinds.items() if name != "user_id"]


def _sampling_defaults(model: Path) -> list[ParamSpec]:
    """Request parameters with the pipeline's own defaults, from its model_index.json."""
    index: dict[str, Any] = json.loads((model / "model_index.json").read_text())
    kinds = {True: (DataType.long, int), False: (DataType.double, float)}
    return [
        ParamSpec(name, kinds[whole][0], kinds[whole][1](index[argument]))
        for name, (argument, _, _, whole) in OPTIONS.items()
    ]


def _somebody(users: Path) -> str:
    return str(pd.read_parquet(users, columns=["user_id"])["user_id"].iloc[0])
