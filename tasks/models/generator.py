"""`{name}-generator` as MLflow serves it: rows of user and prompt in, PNG pictures out."""

from __future__ import annotations

import io
import threading
from typing import Any

import pandas as pd
import torch
from diffusers.utils import logging as diffusers_logging
from mlflow.pyfunc import PythonModel, PythonModelContext
from PIL import Image
from transformers.utils import logging as transformers_logging

from perfusion.generation import PerFusionPipeline
from perfusion.seeding import generator_for
from tasks.models.requests import MAX_PICTURES, MAX_SEED, number, texts, user_mistakes
from tasks.models.users import KnownUsers, encoder_of

__all__ = ["OPTIONS", "GeneratorModel", "draw"]

OPTIONS = {  # request parameter -> argument of the pipeline, least, largest, whole number
    "steps": ("num_inference_steps", 1, 1000, True),
    "guidance_scale": ("guidance_scale", 0, 100, False),
    "user_scale": ("user_scale", 0, 100, False),
}


class GeneratorModel(PythonModel):
    """Draws pictures for users.

    Input columns: `user_id` (optional), `prompt`, `n` (pictures, default 5), `seed` (default 0), and any user feature,
    which wins over the stored one. Parameters: `steps`, `guidance_scale`, `user_scale`. Output, one row a picture:
    `request` (input row), `index` (0 .. n-1), `seed`, `image` (PNG bytes), `user_blind`. A picture depends on its own
    user, prompt, seed and index, not on what else was asked for. Requests that come at the same time (MLflow's server
    answers in threads) are drawn one after the other: a pipeline's scheduler knows of one picture at a time.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Read the pipeline and its users from the artifact."""
        diffusers_logging.disable_progress_bar()
        transformers_logging.disable_progress_bar()
        self.pipe = PerFusionPipeline.from_pretrained(context.artifacts["model"])
        self.users = KnownUsers.read(context.artifacts["users"], encoder_of(self.pipe.features))
        self.drawing = threading.Lock()

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """`n` pictures a row."""
        options = sampling_options(params or {})
        with user_mistakes():
            prompts = texts(model_input, "prompt")
            requests = model_input.to_dict("records")
            counts = [int(number(request, "n", 5, 1, MAX_PICTURES)) for request in requests]
            seeds = [int(number(request, "seed", 0, 0, MAX_SEED)) for request in requests]
            codes, blind = self.users.codes(model_input)
        rows = []
        for row, prompt in enumerate(prompts):
            user = None if blind[row] else codes[row]
            with self.drawing:
                pictures = draw(self.pipe, prompt, user, counts[row], seeds[row], **options)
            for index, picture in enumerate(pictures):
                rows.append((row, index, seeds[row], _png(picture), blind[row]))
        return pd.DataFrame(rows, columns=["request", "index", "seed", "image", "user_blind"])


def draw(
    pipe: PerFusionPipeline, prompt: str, user: torch.Tensor | None, n: int, seed: int, **options: Any
) -> list[Image.Image]:
    """`n` pictures; the noise of picture i is that of (seed, i), whoever the user is and however many are drawn.

    Picture 0 starts from the plain seed, as an item of the evaluation does: what was evaluated can be asked for again.
    """
    noise = [torch.Generator().manual_seed(seed), *(generator_for(seed, "picture", index) for index in range(1, n))]
    return pipe(prompt, user=user, num_images_per_prompt=n, generator=noise, **options).images


def sampling_options(params: dict[str, Any]) -> dict[str, Any]:
    """The pipeline's arguments from request parameters; those not given keep the pipeline's defaults."""
    return {
        argument: number(params, name, 0, low, high, whole)
        for name, (argument, low, high, whole) in OPTIONS.items()
        if params.get(name) is not None
    }


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
