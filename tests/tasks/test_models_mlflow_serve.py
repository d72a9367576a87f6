"""MLflow's server on the registered artifacts: it answers, and refuses by name what the signature does not know."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny_models import PROMPTS, picture
from tiny_requests import base64_text

from tasks.models.clean_process import QUIET
from tasks.process import cpu_environment, group
from tasks.registry import Registry

pytestmark = pytest.mark.slow

ROW: dict[str, Any] = {"user_id": "u1", "prompt": PROMPTS[0]}
IMAGES = {"images": [base64_text(picture(10)), base64_text(picture(200))]}


@pytest.fixture(scope="module")
def ports(tiny_store: Callable[[Path], Registry], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, int]]:
    """Both models behind `mlflow models serve`, in processes of their own, far from this repository's code."""
    root = tmp_path_factory.mktemp("mlflow-serve")
    store = tiny_store(root).client.tracking_uri
    ports = {role: _free_port() for role in ("reward", "generator")}
    with _serving(root, store, "reward", ports["reward"]), _serving(root, store, "generator", ports["generator"]):
        for role, port in ports.items():
            _wait_for(port, root / f"{role}.log")
        yield ports


@contextmanager
def _serving(root: Path, store: str, role: str, port: int) -> Iterator[None]:
    away = root / f"{role}-away"
    away.mkdir()
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # MLflow calls uvicorn by its name
    environment = {**own, **QUIET, **cpu_environment(1), "MLFLOW_TRACKING_URI": store, "PATH": path}
    words = f"-m mlflow models serve -m models:/shop-{role}/1 --env-manager local --host 127.0.0.1 --port {port}"
    with (root / f"{role}.log").open("w") as log, group(
        [sys.executable, *words.split()], cwd=away, env=environment, stdout=subprocess.DEVNULL, stderr=log
    ):  # fmt: skip
        yield


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _wait_for(port: int, log: Path, seconds: float = 900.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5):
                return
        except OSError:
            assert time.monotonic() < deadline, f"no server; it said:\n{log.read_text()[-2000:]}"
            time.sleep(0.2)


def ask(port: int, body: dict[str, Any] | bytes) -> tuple[int, dict[str, Any]]:
    """Status and answer of one request."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/invocations", data, headers)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_it_scores_for_known_and_unknown_users(ports: dict[str, int]) -> None:
    rows = [{**ROW, **IMAGES, "user_id": user} for user in ("u1", "stranger")]
    status, answer = ask(ports["reward"], {"dataframe_records": rows})
    assert status == 200, answer
    told = answer["predictions"]
    assert [(row["request"], row["index"], row["user_blind"]) for row in told] == [
        (0, 0, False), (0, 1, False), (1, 0, True), (1, 1, True),
    ]  # fmt: skip
    assert len({row["score"] for row in told}) == 4


def test_it_draws_with_request_parameters(ports: dict[str, int]) -> None:
    asked = {"dataframe_records": [{**ROW, "n": 2, "seed": 1}]}
    status, plain = ask(ports["generator"], asked)
    assert status == 200, plain
    with Image.open(io.BytesIO(base64.b64decode(plain["predictions"][0]["image"]))) as drawn:
        assert (drawn.format, drawn.size) == ("PNG", (16, 16))
    _, blind = ask(ports["generator"], {**asked, "params": {"user_scale": 0.0}})
    assert [row["image"] for row in blind["predictions"]] != [row["image"] for row in plain["predictions"]]


@pytest.mark.parametrize(
    ("role", "row", "params", "field"),
    [
        ("reward", {**IMAGES, "prompt": None}, None, "prompt"),
        ("reward", {**IMAGES, "stile": "bold"}, None, "stile"),
        ("reward", {**IMAGES, "n": 2}, None, "n"),
        ("reward", {**IMAGES, "age": "old"}, None, "age"),
        ("reward", {"images": ["no base64!"]}, None, "images"),
        ("reward", {"images": [base64_text(b"\x89PNG no")]}, None, "picture 0"),
        ("reward", {}, None, "images"),
        ("reward", IMAGES, {"steps": 3}, "steps"),
        ("generator", {"prompt": "x" * 2001}, None, "prompt"),
        ("generator", {"n": 1000}, None, "n"),
        ("generator", {"n": "two"}, None, "n"),
        ("generator", {}, {"stepz": 3}, "stepz"),
        ("generator", {}, {"steps": "many"}, "steps"),
        ("generator", {}, {"steps": 0}, "steps"),
    ],
)
def test_a_malformed_request_is_refused_by_field(
    ports: dict[str, int], role: str, row: dict[str, Any], params: dict[str, Any] | None, field: str
) -> None:
    body = {"dataframe_records": [{**ROW, **row}], **({} if params is None else {"params": params})}
    status, answer = ask(ports[role], body)
    assert status == 400, answer
    assert re.search(rf"\b{field}\b", answer["message"].rpartition("\nError: ")[2]), answer


def test_a_missing_field_and_what_is_no_request_are_refused(ports: dict[str, int]) -> None:
    status, answer = ask(ports["reward"], {"dataframe_records": [IMAGES]})
    assert (status, "prompt" in answer["message"]) == (400, True)
    for body in (b"{", b"[]", b"{}"):
        assert ask(ports["reward"], body)[0] == 400


def test_requests_at_the_same_time_do_not_disturb_one_another(ports: dict[str, int]) -> None:
    """MLflow's server answers in threads; a pipeline draws one request at a time, each with its own steps."""
    bodies = [
        {"dataframe_records": [{**ROW, "n": 1, "seed": seed}], "params": {"steps": steps}}
        for seed, steps in ((1, 2), (2, 7), (3, 3), (4, 12))
    ]
    alone = [ask(ports["generator"], body) for body in bodies]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda body: ask(ports["generator"], body), bodies * 2))
    assert together == alone * 2
    assert {status for status, _ in together} == {200}
