"""Solvers that reach a picture in fewer steps, over the noise schedule that the weights were trained with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler

from perfusion.errors import ConfigError

__all__ = ["SAMPLERS", "build_sampler"]

#: name -> diffusers class and its options. "dpm-sde" adds fresh noise at every step, as DDIM does with eta near 1.
SAMPLERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "dpm": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
    "dpm-sde": (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": (UniPCMultistepScheduler, {}),
}
_PREDICTIONS = ("epsilon", "sample", "v_prediction")


def build_sampler(name: str, config: Mapping[str, Any]) -> Any:
    """A solver by name, with another scheduler's noise schedule and kind of prediction.

    Args:
        name: a key of `SAMPLERS`.
        config: the config of the scheduler that the weights came with.

    Raises:
        ConfigError: no such name, or a schedule that the solver cannot start from: noise is undefined as a prediction
            where the schedule ends in pure noise.
    """
    if name not in SAMPLERS:
        raise ConfigError(f"sampler {name!r}: known are {', '.join(SAMPLERS)}, and None for the pipeline's own")
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in _PREDICTIONS:
        raise ConfigError(f"sampler {name!r}: prediction_type {prediction!r} is none of {', '.join(_PREDICTIONS)}")
    if prediction == "epsilon" and config.get("rescale_betas_zero_snr"):
        raise ConfigError(
            f"sampler {name!r}: with rescale_betas_zero_snr the first step starts from pure noise, where a prediction "
            "of the noise says nothing of the picture: take weights that predict 'sample' or 'v_prediction'"
        )
    kind, options = SAMPLERS[name]
    return kind.from_config(dict(config), **options)
