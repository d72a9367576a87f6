"""A question put to one loaded model, in the words of the served model's signature."""

from __future__ import annotations

import base64
from typing import Any

import pandas as pd

from tasks.models.generator import OPTIONS
from tasks.models.requests import RequestError
from tasks.models.served import Served
from tasks.serving.bodies import Drawn, GenerateRequest, Scored, ScoreRequest

__all__ = ["drawn", "scored"]


def scored(asked: ScoreRequest, served: Served) -> Scored:
    """Scores of the request's pictures.

    Raises:
        RequestError: a feature that the model does not know or that has another type, or bytes that are no picture.
    """
    answer = served.ask(pd.DataFrame([{**_who(asked, served), "prompt": asked.prompt, "images": asked.images}]))
    return Scored(**_by(served, answer), scores=answer["score"].tolist())


def drawn(asked: GenerateRequest, served: Served) -> Drawn:
    """Pictures drawn for the request.

    Raises:
        RequestError: a feature that the model does not know or that has another type.
    """
    row = {**_who(asked, served), "prompt": asked.prompt, "n": asked.n, "seed": asked.seed}
    given = {name: value for name in OPTIONS if (value := getattr(asked, name)) is not None}
    answer = served.ask(pd.DataFrame([row]), given)
    images = [base64.b64encode(data).decode("ascii") for data in answer["image"]]
    return Drawn(**_by(served, answer), seed=asked.seed, images=images)


def _by(served: Served, answer: pd.DataFrame) -> dict[str, Any]:
    return {"model": served.name, "version": served.version, "user_blind": bool(answer["user_blind"].any())}


def _who(asked: ScoreRequest | GenerateRequest, served: Served) -> dict[str, Any]:
    """The columns that say who asks."""
    known = served.features
    for name, value in asked.features.items():
        if name not in known:
            raise RequestError(f"unknown to this model; known are {', '.join(known) or 'none'}", f"features.{name}")
        if (known[name] is float) != isinstance(value, float):
            kind = "a number" if known[name] is float else "a text"
            raise RequestError(f"{value!r:.80} is not {kind}", f"features.{name}")
    return dict(asked.features) if asked.user_id is None else {"user_id": asked.user_id, **asked.features}
