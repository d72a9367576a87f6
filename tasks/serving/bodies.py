"""What a request and an answer hold. A field that is not named here is refused by name."""

from __future__ import annotations

import base64
import binascii
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from tasks.models.generator import OPTIONS
from tasks.models.requests import MAX_PICTURES, MAX_PROMPT, MAX_SEED

__all__ = [
    "MAX_BODY",
    "MAX_IMAGE",
    "Drawn",
    "GenerateRequest",
    "Health",
    "ScoreRequest",
    "Scored",
    "Serving",
    "Version",
]

MAX_IMAGE = 10 * 2**20  # bytes of an encoded picture; how many pixels it may have is perfusion.data's to say
MAX_BODY = 64 * 2**20  # bytes of a request
_MAX_ID, _MAX_FEATURE = 200, 1000  # characters


def _said(text: str) -> str:
    if not text.strip():
        raise ValueError("there is nothing in it")
    return text


def _decoded(value: Any) -> bytes:
    """The bytes of a picture from base64 text; whether they are a picture is seen when it is decoded."""
    if not isinstance(value, str):
        raise ValueError("want a picture file's bytes as base64 text")
    try:
        data = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("is not base64; want a picture file's bytes as base64 text") from None
    if not 0 < len(data) <= MAX_IMAGE:
        raise ValueError(f"is {len(data)} bytes; the least is 1, the limit {MAX_IMAGE}")
    return data


Text = Annotated[str, Field(max_length=_MAX_FEATURE)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Picture = Annotated[bytes, BeforeValidator(_decoded)]


def _within(option: str) -> Any:
    _, least, largest, _ = OPTIONS[option]
    return Field(None, ge=least, le=largest, allow_inf_nan=None if option == "steps" else False)


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    user_id: str | None = Field(None, max_length=_MAX_ID, description="left out or unknown: answered user-blind")
    features: dict[str, Text | Number] = Field({}, description="of the user; each wins over the stored one")
    prompt: Annotated[str, Field(max_length=MAX_PROMPT), AfterValidator(_said)]


class ScoreRequest(_Request):
    """Pictures to score for a user and a prompt."""

    images: list[Picture] = Field(min_length=1, max_length=MAX_PICTURES, description="picture files as base64 text")


class GenerateRequest(_Request):
    """Pictures to draw for a user and a prompt."""

    n: int = Field(5, ge=1, le=MAX_PICTURES, description="pictures")
    seed: int = Field(0, ge=0, le=MAX_SEED, description="the same seed starts from the same noise for every user")
    steps: int | None = _within("steps")
    guidance_scale: float | None = _within("guidance_scale")
    user_scale: float | None = _within("user_scale")


class _Answer(BaseModel):
    model: str = Field(description="registered name")
    version: int = Field(description="of it, which gave this answer")
    user_blind: bool = Field(description="nothing is known about the user: answered for nobody's taste in particular")


class Scored(_Answer):
    """Scores in the order of the request's pictures: scale times cosine, comparable within one request."""

    scores: list[float]


class Drawn(_Answer):
    """PNG files as base64 text."""

    seed: int
    images: list[str]


class Serving(BaseModel):
    """How one role is served.

    Attributes:
        name: registered name.
        version: that answers now; null: none does.
        champion: version that the registry's alias names, as last seen.
        since: when `version` began to answer.
        problem: why `version` is not `champion`; null when all is well.
        waiting: requests accepted and not yet answered.
        room: how many there may be.
    """

    name: str
    version: int | None
    champion: int | None
    since: datetime | None
    problem: str | None
    waiting: int
    room: int


class Health(BaseModel):
    """How the server is.

    Attributes:
        status: "ok"; "degraded": something answers, something is wrong; "unavailable": nothing answers.
        registry: why the registry could not be read when it was last looked at; null when it could.
        looked: when that was.
        models: by role.
    """

    status: Literal["ok", "degraded", "unavailable"]
    registry: str | None
    looked: datetime | None
    models: dict[str, Serving]


class Version(BaseModel):
    """What answers.

    Attributes:
        perfusion: version of this program.
        models: registered name -> version that answers now; null: none does.
    """

    perfusion: str
    models: dict[str, int | None]
