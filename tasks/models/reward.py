"""`{name}-reward` as MLflow serves it: rows of user, prompt and picture in, scores out."""

from __future__ import annotations

import base64
import binascii
import math
from typing import Any

import pandas as pd
import torch
from mlflow.pyfunc import PythonModel, PythonModelContext
from transformers.utils import logging

from perfusion.data import decode_pixels
from perfusion.reward import PerFusionRM
from tasks.models.requests import RequestError, texts, user_mistakes
from tasks.models.users import KnownUsers, encoder_of

__all__ = ["RewardModel", "pictures_of"]

_PLACE = ["request", "index", "user_blind"]


class RewardModel(PythonModel):
    """Scores pictures for users.

    Input columns: `user_id` (optional), `prompt`, either `image` (encoded bytes, or base64 text in JSON) or `images`
    (a list of them), and any user feature, which wins over the stored one. Output, one row a picture: `request` (input
    row), `index` (place in the row's list), `score` (scale times cosine, higher is better; compare within a request),
    `user_blind` (True where nothing was known about the user).
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Read the model and its users from the artifact."""
        logging.disable_progress_bar()
        self.model = PerFusionRM.from_pretrained(context.artifacts["model"])
        self.users = KnownUsers.read(context.artifacts["users"], encoder_of(self.model.encoder))
        # As in training and evaluation; versions registered before that was kept read at the backbone's own size.
        self.size = int((context.model_config or {}).get("image_size", self.model.blind.side))

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """One score a picture."""
        with user_mistakes():
            prompts = texts(model_input, "prompt")
            pictures = pictures_of(model_input)
            codes, blind = self.users.codes(model_input)
        with user_mistakes("images"):
            named = [(f"row {row}, picture {index}", data) for row, index, data in pictures]
            pixels = decode_pixels(named, len(named), self.size)
        answer = pd.DataFrame([(row, index, blind[row]) for row, index, _ in pictures], columns=_PLACE)
        scores = torch.empty(len(pictures))
        for is_blind, part in answer.groupby("user_blind"):
            at = part.index.tolist()
            group, requests = pd.factorize(part["request"])  # a request's prompt is encoded once for all its pictures
            users = None if is_blind else codes[requests]
            asked = [prompts[row] for row in requests]
            scores[at] = self.model.score_pictures(asked, pixels[at], torch.from_numpy(group), users)
        return answer.assign(score=scores.double().numpy())[["request", "index", "score", "user_blind"]]


def pictures_of(frame: pd.DataFrame) -> list[tuple[int, int, bytes]]:
    """(row, place in the row's list, encoded bytes) of every picture that a request holds.

    Raises:
        RequestError: a row has neither `image` nor `images`, or both, or something that is no picture.
    """
    pictures = []
    for row, request in enumerate(frame.reindex(columns=["image", "images"]).itertuples(index=False)):
        one, many = ([] if _absent(value) else [value] for value in request)
        if len(one) + len(many) != 1:
            raise RequestError(f"row {row}: give field 'image' (one picture) or 'images' (a list), not both")
        values = one if one else list(many[0])
        field = "image" if one else "images"
        pictures += [(row, index, _bytes(field, row, value)) for index, value in enumerate(values)]
    return pictures


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _bytes(field: str, row: int, value: Any) -> bytes:
    """Encoded bytes as they are; base64, which JSON needs and no picture file looks like, decoded."""
    if isinstance(value, str):
        value = value.encode("utf-8")
    if not isinstance(value, bytes):
        raise RequestError(f"field {field!r}, row {row}: {type(value).__name__}, want a picture's encoded bytes")
    if not value.isascii():
        return value
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error:
        raise RequestError(
            f"field {field!r}, row {row}: text that is not base64; send a picture's encoded bytes"
        ) from None
