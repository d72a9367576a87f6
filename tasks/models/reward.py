"""`{name}-reward` as MLflow serves it: rows of user, prompt and picture in, scores out."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import pandas as pd
import torch
from mlflow.pyfunc import PythonModel, PythonModelContext

from perfusion.data import decode_pixels
from perfusion.reward import PerFusionRM
from tasks.models.requests import RequestError, column, texts, user_mistakes
from tasks.models.users import KnownUsers, encoder_of

__all__ = ["RewardModel"]


class RewardModel(PythonModel):
    """Scores pictures for users.

    Input columns: `user_id` (optional), `prompt`, `image` (encoded bytes, or base64 text in JSON), and any user
    feature, which wins over the stored one. Output columns: `score` (scale times cosine, higher is better; compare
    within a prompt), `user_blind` (True where nothing was known about the user).
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Read the model and its users from the artifact."""
        self.model = PerFusionRM.from_pretrained(context.artifacts["model"])
        self.users = KnownUsers.read(context.artifacts["users"], encoder_of(self.model.encoder))
        self.size = self.model.config.backbone_config.vision_config.image_size

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """One score a row."""
        with user_mistakes():
            prompts = texts(model_input, "prompt")
            encoded = [(f"row {row}", _bytes(row, value)) for row, value in enumerate(column(model_input, "image"))]
            pixels = decode_pixels(encoded, len(encoded), self.size)
            codes, blind = self.users.codes(model_input)
        scores = torch.empty(len(prompts))
        for is_blind in (False, True):
            rows = [row for row, flag in enumerate(blind) if flag is is_blind]
            users = None if is_blind else codes[rows]
            scores[rows] = self.model.score([prompts[row] for row in rows], pixels[rows].unsqueeze(1), users)[:, 0]
        return pd.DataFrame({"score": scores.double().numpy(), "user_blind": blind})


def _bytes(row: int, value: Any) -> bytes:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, str):
        try:
            return base64.b64decode(value, validate=True)
        except binascii.Error:
            raise RequestError(f"field 'image', row {row}: a text that is not base64; send encoded bytes") from None
    raise RequestError(f"field 'image', row {row}: {type(value).__name__}, want the encoded bytes of one picture")
