"""The routes, and what becomes of every refusal: 422 by field, 413 too long, 503 no room or no champion."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from perfusion import __version__
from tasks.models.requests import RequestError
from tasks.models.served import Served
from tasks.serving.answers import drawn, scored
from tasks.serving.bodies import (
    MAX_BODY,
    Drawn,
    GenerateRequest,
    Health,
    Scored,
    ScoreRequest,
    Serving,
    Version,
)
from tasks.serving.champions import Champions, NotServing, Place
from tasks.serving.limits import BodyLimit
from tasks.serving.worker import Busy

__all__ = ["create_app"]

T = TypeVar("T")


def create_app(champions: Champions) -> FastAPI:
    """The server's application; it loads the champions when it starts and lets them go when it ends."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(champions.start)
        yield
        await asyncio.to_thread(champions.stop)
        for place in champions.places.values():
            await asyncio.to_thread(place.worker.close)

    async def ask(role: str, question: Callable[[Served], T]) -> T:
        place = champions.places[role]
        place.model()  # where nothing serves there is nothing to wait for
        try:
            return await asyncio.wrap_future(place.worker.submit(lambda: question(place.model())))
        except asyncio.CancelledError:  # by a stop that has waited long enough
            place.worker.abandoned += 1
            raise

    # No pages for reading the interface: they would be drawn by scripts from elsewhere. /openapi.json describes it.
    app = FastAPI(title="perfusion", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(BodyLimit, limit=MAX_BODY)
    _add_refusals(app, math.ceil(champions.interval))

    @app.post("/score")
    async def score(asked: ScoreRequest) -> Scored:
        """Score pictures for a user and a prompt."""
        return await ask("reward", partial(scored, asked))

    @app.post("/generate")
    async def generate(asked: GenerateRequest) -> Drawn:
        """Draw pictures for a user and a prompt."""
        return await ask("generator", partial(drawn, asked))

    @app.get("/health")
    async def health(response: Response) -> Health:
        """What serves, and what is wrong; 503 when nothing serves."""
        told = health_of(champions)
        response.status_code = 503 if told.status == "unavailable" else 200
        return told

    @app.get("/version")
    async def version() -> Version:
        """What answers."""
        return Version(perfusion=__version__, models={place.name: place.version for place in champions.places.values()})

    return app


def health_of(champions: Champions) -> Health:
    """What `/health` says."""
    models = {role: _serving(place) for role, place in champions.places.items()}
    well = champions.problem is None and all(m.version is not None and m.problem is None for m in models.values())
    some = any(model.version is not None for model in models.values())
    return Health(
        status="ok" if well else "degraded" if some else "unavailable", registry=champions.problem,
        looked=champions.looked, models=models,
    )  # fmt: skip


def _serving(place: Place) -> Serving:
    return Serving(
        name=place.name, version=place.version, champion=place.champion, since=place.since, problem=place.problem,
        waiting=place.worker.waiting, room=place.worker.room,
    )  # fmt: skip


def _add_refusals(app: FastAPI, interval: int) -> None:
    """Every refusal has FastAPI's form: `detail`, a list of `loc` (the field), `msg` and `type`."""

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        # without FastAPI's copy of the input, which may be megabytes of picture
        return _refusal(422, [_detail(fault["loc"], fault["msg"], fault["type"]) for fault in error.errors()])

    @app.exception_handler(RequestError)
    async def refused(_: Request, error: RequestError) -> JSONResponse:
        field = [] if error.field is None else error.field.split(".")
        return _refusal(422, [_detail(["body", *field], error.message, "refused")])

    @app.exception_handler(Busy)
    async def busy(_: Request, error: Busy) -> JSONResponse:
        return _refusal(503, [_detail([], str(error), "busy")], error.seconds)

    @app.exception_handler(NotServing)
    async def not_serving(_: Request, error: NotServing) -> JSONResponse:
        return _refusal(503, [_detail([], str(error), "not_serving")], interval)


def _detail(place: Sequence[Any], message: str, kind: str) -> dict[str, Any]:
    return {"loc": list(place), "msg": message, "type": kind}


def _refusal(status: int, detail: list[dict[str, Any]], retry_after: int | None = None) -> JSONResponse:
    headers = {} if retry_after is None else {"Retry-After": str(max(1, retry_after))}
    return JSONResponse({"detail": detail}, status, headers)
