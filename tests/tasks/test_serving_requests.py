"""What the server answers, and what it refuses: every malformed request is told the field, none reaches a model."""

from __future__ import annotations

import base64
import io
import re
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from tiny_models import picture
from tiny_requests import GENERATE, SCORE, base64_text

from perfusion import __version__
from tasks.models.served import load_served
from tasks.registry import Registry
from tasks.serving.app import create_app
from tasks.serving.bodies import MAX_BODY
from tasks.serving.champions import Champions
from tasks.serving.worker import Busy, Worker

PAIR = {"shop-reward": 1, "shop-generator": 1}


def bomb(side: int = 30_000) -> bytes:
    """A PNG of a few bytes that says it has 900 million pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def registry(tiny_store: Callable[[Path], Registry], tmp_path_factory: pytest.TempPathFactory) -> Registry:
    registry = tiny_store(tmp_path_factory.mktemp("serving"))
    registry.promote(PAIR, expected=registry.champions("shop"), decisions=(), force=True, reason="for this test")
    return registry


@pytest.fixture(scope="module")
def champions(registry: Registry) -> Champions:
    workers = {role: Worker(role, 4) for role in ("reward", "generator")}
    return Champions(registry, "shop", workers, 3600.0, print)


@pytest.fixture(scope="module")
def client(champions: Champions) -> Iterator[TestClient]:
    with TestClient(create_app(champions)) as client:
        yield client


def test_scores_are_those_of_the_model_and_name_its_version(client: TestClient, registry: Registry) -> None:
    answer = client.post("/score", json=SCORE)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert (told["model"], told["version"], told["user_blind"]) == ("shop-reward", 1, False)
    asked = pd.DataFrame([{**SCORE, "images": [picture(10), picture(200)]}])
    assert told["scores"] == pytest.approx(load_served(registry, "shop-reward").ask(asked)["score"].tolist(), rel=1e-6)


def test_pictures_are_drawn_for_the_user_and_name_their_version(client: TestClient) -> None:
    answers = [client.post("/generate", json={**GENERATE, "user_id": user}).json() for user in ("u1", "u2", "u1")]
    assert {(told["model"], told["version"], told["user_blind"]) for told in answers} == {("shop-generator", 1, False)}
    assert answers[0]["images"] == answers[2]["images"] != answers[1]["images"]
    with Image.open(io.BytesIO(base64.b64decode(answers[0]["images"][0]))) as drawn:
        assert (drawn.format, np.asarray(drawn).shape) == ("PNG", (16, 16, 3))
    more = client.post("/generate", json={**GENERATE, "steps": 1, "guidance_scale": 3, "user_scale": 0.5})
    assert more.status_code == 200
    assert more.json()["images"] != answers[0]["images"]


@pytest.mark.parametrize(("path", "asked"), [("/score", SCORE), ("/generate", {**GENERATE, "n": 1})])
def test_an_unknown_user_is_served_blind_and_told_so(client: TestClient, path: str, asked: dict[str, Any]) -> None:
    known = client.post(path, json=asked).json()
    nobody = client.post(path, json={name: value for name, value in asked.items() if name != "user_id"}).json()
    stranger = client.post(path, json={**asked, "user_id": "stranger"}).json()
    described = client.post(path, json={**asked, "user_id": "stranger", "features": {"style": "bold", "age": 31}})
    assert stranger == nobody
    assert (known["user_blind"], stranger["user_blind"], described.json()["user_blind"]) == (False, True, False)
    given = "scores" if path == "/score" else "images"
    assert len({str(answer[given]) for answer in (known, stranger, described.json())}) == 3


@pytest.mark.parametrize(
    ("path", "change", "field", "says"),
    [
        ("/score", {"imagse": []}, "imagse", "not permitted"),
        ("/score", {"n": 3}, "n", "not permitted"),
        ("/score", {"prompt": None}, "prompt", "valid string"),
        ("/score", {"prompt": "  "}, "prompt", "nothing in it"),
        ("/score", {"prompt": "x" * 2001}, "prompt", "2000"),
        ("/score", {"user_id": 7}, "user_id", "valid string"),
        ("/score", {"user_id": "u" * 201}, "user_id", "200"),
        ("/score", {"images": []}, "images", "at least 1"),
        ("/score", {"images": base64_text(picture())}, "images", "valid list"),
        ("/score", {"images": [base64_text(picture())] * 65}, "images", "64"),
        ("/score", {"images": [base64_text(picture()), "no base64!"]}, "images.1", "not base64"),
        ("/score", {"images": [7]}, "images.0", "base64 text"),
        ("/score", {"images": [""]}, "images.0", "0 bytes"),
        ("/score", {"images": [base64_text(b"\x89PNG but no picture")]}, "images", "picture 0.*not a picture"),
        (
            "/score",
            {"images": [*SCORE["images"][:1], base64_text(bomb())]},
            "images",
            "picture 1.* (50,000,000|far more)",
        ),
        ("/score", {"features": {"shoe": "9"}}, "features.shoe", "known are age, style"),
        ("/score", {"features": {"prompt": "coat"}}, "features.prompt", "unknown"),
        ("/score", {"features": {"age": "old"}}, "features.age", "not a number"),
        ("/score", {"features": {"style": 3}}, "features.style", "not a text"),
        ("/score", {"features": {"age": True}}, "features.age", "valid"),
        ("/score", {"features": []}, "features", "valid dictionary"),
        ("/generate", {"step": 3}, "step", "not permitted"),
        ("/generate", {"images": []}, "images", "not permitted"),
        ("/generate", {"n": 0}, "n", "greater than or equal to 1"),
        ("/generate", {"n": 65}, "n", "less than or equal to 64"),
        ("/generate", {"n": "2"}, "n", "valid integer"),
        ("/generate", {"n": 2.5}, "n", "valid integer"),
        ("/generate", {"seed": -1}, "seed", "greater than or equal to 0"),
        ("/generate", {"seed": 2**60}, "seed", "less than or equal to"),
        ("/generate", {"steps": 0}, "steps", "greater than or equal to 1"),
        ("/generate", {"guidance_scale": 101}, "guidance_scale", "less than or equal to 100"),
        ("/generate", {"user_scale": "much"}, "user_scale", "valid number"),
    ],
)
def test_a_malformed_request_is_refused_by_field(
    client: TestClient, path: str, change: dict[str, Any], field: str, says: str
) -> None:
    answer = client.post(path, json={**(SCORE if path == "/score" else GENERATE), **change})
    assert answer.status_code == 422, answer.text
    faults = {".".join(map(str, fault["loc"][1:])): fault["msg"] for fault in answer.json()["detail"]}
    matching = [name for name in faults if name == field or name.startswith(f"{field}.")]
    assert matching, faults
    assert re.search(says, faults[matching[0]]), faults
    assert len(answer.content) < 2000, "the request is not sent back"


@pytest.mark.parametrize("missing", ["prompt", "images"])
def test_a_missing_field_is_named(client: TestClient, missing: str) -> None:
    answer = client.post("/score", json={name: value for name, value in SCORE.items() if name != missing})
    assert (answer.status_code, answer.json()["detail"][0]["loc"]) == (422, ["body", missing])


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"7", b'{"prompt": NaN}', b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_json_object_is_refused(client: TestClient, body: bytes) -> None:
    answer = client.post("/generate", content=body, headers={"Content-Type": "application/json"})
    assert 400 <= answer.status_code < 500


def test_a_request_that_is_too_long_is_not_read(client: TestClient) -> None:
    says_so = client.post("/score", content=b"{}", headers={"Content-Length": str(MAX_BODY + 1)})
    assert (says_so.status_code, says_so.json()["detail"][0]["type"]) == (413, "too_long")

    def without_saying() -> Iterator[bytes]:
        for _ in range(MAX_BODY // 2**20 + 2):
            yield b" " * 2**20

    assert client.post("/score", content=without_saying()).status_code == 413


def test_other_methods_and_places_are_no_answers(client: TestClient) -> None:
    assert client.get("/score").status_code == 405
    assert client.post("/invocations", json={}).status_code == 404
    assert client.get("/docs").status_code == 404, "a page that fetches its scripts from elsewhere"


def test_health_and_version_tell_what_answers(client: TestClient) -> None:
    health = client.get("/health")
    assert (health.status_code, health.json()["status"], health.json()["registry"]) == (200, "ok", None)
    generator = health.json()["models"]["generator"]
    assert (generator["name"], generator["version"], generator["champion"]) == ("shop-generator", 1, 1)
    assert (generator["problem"], generator["waiting"], generator["room"]) == (None, 0, 4)
    assert client.get("/version").json() == {"perfusion": __version__, "models": PAIR}


def test_a_full_queue_is_told_when_to_come_back(client: TestClient, champions: Champions) -> None:
    """Four requests are in: one that is being answered and three that wait. Scores are not kept waiting by pictures."""
    worker, hold = champions.places["generator"].worker, threading.Event()
    held = [worker.submit(hold.wait) for _ in range(4)]
    refused = client.post("/generate", json=GENERATE)
    scored = client.post("/score", json=SCORE)
    health = client.get("/health").json()
    hold.set()
    assert (refused.status_code, refused.json()["detail"][0]["type"]) == (503, "busy")
    assert int(refused.headers["Retry-After"]) >= 1
    assert scored.status_code == 200
    assert health["models"]["generator"]["waiting"] == 4
    assert [future.result(10) for future in held] == [True] * 4
    assert client.post("/generate", json=GENERATE).status_code == 200


def test_a_worker_answers_in_order_and_makes_room_even_for_what_failed_or_was_taken_back() -> None:
    worker, hold, seen = Worker("test", 3), threading.Event(), []
    first = worker.submit(hold.wait)
    failing = worker.submit(lambda: seen.append("second") or 1 / 0)
    withdrawn = worker.submit(lambda: seen.append("never"))
    with pytest.raises(Busy) as busy:
        worker.submit(lambda: None)
    assert busy.value.seconds >= 1
    assert withdrawn.cancel()
    last = worker.submit(lambda: seen.append("third"))
    worker.after_those(lambda: seen.append("after"))
    hold.set()
    worker.close()
    assert first.result() is True
    assert isinstance(failing.exception(), ZeroDivisionError)
    assert last.done()
    assert seen == ["second", "third", "after"]
    deadline = time.monotonic() + 5
    while worker.waiting and time.monotonic() < deadline:
        time.sleep(0.01)
    assert worker.waiting == 0
