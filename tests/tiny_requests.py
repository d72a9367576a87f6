"""Requests to the server of tiny models."""

from __future__ import annotations

import base64
from typing import Any

from tiny_models import PROMPTS, picture

__all__ = ["GENERATE", "SCORE", "base64_text"]


def base64_text(data: bytes) -> str:
    """Bytes as JSON carries them."""
    return base64.b64encode(data).decode("ascii")


SCORE: dict[str, Any] = {
    "user_id": "u1", "prompt": PROMPTS[0], "images": [base64_text(picture(10)), base64_text(picture(200))],
}  # fmt: skip
GENERATE: dict[str, Any] = {"user_id": "u1", "prompt": PROMPTS[0], "n": 2, "seed": 3}
