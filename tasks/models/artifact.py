"""Logging the two models as MLflow artifacts and taking them into the registry as challengers."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

from perfusion.data import FeatureEncoder, encode_png
from tasks.models.generator import OPTIONS
from tasks.registry import JUDGED_BY, Registry

__all__ = ["log_generator", "log_reward"]

CODE = Path(__file__).resolve().parents[2]
PACKAGES = (
    "mlflow", "torch", "transformers", "diffusers", "safetensors", "tokenizers", "pandas", "pyarrow", "pillow", "pydantic"
)  # fmt: skip
_USER = ColSpec(DataType.string, "user_id", required=False)


def log_reward(registry: Registry, name: str, model: Path, users: Path) -> int:
    """Log a PerFusionRM folder under the active MLflow run and register it as the challenger of `{name}-reward`.

    Args:
        registry: the store.
        name: family, e.g. "perfusion".
        model: folder written by `PerFusionRM.save_pretrained`, with its features.json.
        users: parquet of user_id and features: the users that can be asked for by id alone.

    Returns:
        The new version.
    """
    encoder = FeatureEncoder.load(model / "features.json")
    picture = encode_png(np.full((48, 48, 3), 255, np.uint8))
    example = pd.DataFrame([{"user_id": _somebody(users), "prompt": "dress, v-neck, slim-fit", "image": picture}])
    request = [_USER, ColSpec(DataType.string, "prompt"), ColSpec(DataType.binary, "image")]
    signature = ModelSignature(
        inputs=Schema([*request, *_features(encoder)]),
        outputs=Schema([ColSpec(DataType.double, "score"), ColSpec(DataType.boolean, "user_blind")]),
    )
    return _log(registry, f"{name}-reward", "serve_reward.py", model, users, signature, example, {})


def log_generator(registry: Registry, name: str, model: Path, users: Path, judged_by: int) -> int:
    """Log a PerFusionPipeline folder under the active MLflow run and register it as challenger of `{name}-generator`.

    Args:
        judged_by: version of `{name}-reward` that its evaluation used; the two are promoted together.
        registry, name, model, users: as for `log_reward`.

    Returns:
        The new version.
    """
    encoder = FeatureEncoder.load(model / "features.json")
    example = pd.DataFrame([{"user_id": _somebody(users), "prompt": "dress, v-neck, slim-fit", "n": 2, "seed": 0}])
    numbers = [ColSpec(DataType.long, name, required=False) for name in ("n", "seed")]
    answer = [ColSpec(DataType.long, name) for name in ("request", "index", "seed")]
    signature = ModelSignature(
        inputs=Schema([_USER, ColSpec(DataType.string, "prompt"), *numbers, *_features(encoder)]),
        outputs=Schema([*answer, ColSpec(DataType.binary, "image"), ColSpec(DataType.boolean, "user_blind")]),
        params=ParamSchema(_sampling_defaults(model)),
    )
    tags = {JUDGED_BY: str(judged_by)}
    return _log(registry, f"{name}-generator", "serve_generator.py", model, users, signature, example, tags)


def _log(
    registry: Registry, name: str, script: str, model: Path, users: Path, signature: ModelSignature,
    example: pd.DataFrame, tags: dict[str, str],
) -> int:  # fmt: skip
    info = mlflow.pyfunc.log_model(
        name=name,
        python_model=str(CODE / "tasks" / "models" / script),
        artifacts={"model": str(model), "users": str(users)},
        code_paths=[str(CODE / "perfusion"), str(CODE / "tasks")],
        signature=signature,
        input_example=example,
        registered_model_name=name,
        pip_requirements=[f"{package}=={version(package)}" for package in PACKAGES],
    )
    number = int(info.registered_model_version)
    for key, value in tags.items():
        registry.client.set_model_version_tag(name, str(number), key, value)
    registry.register(name, number)
    return number


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
