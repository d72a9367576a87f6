"""`perfusion serve` as a process: it answers over HTTP, follows a promotion, and ends in good order."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_requests import GENERATE, SCORE

from flows.cli import main
from tasks.process import group
from tasks.registry import Registry, open_registry

pytestmark = pytest.mark.slow

NAMES = ("shop-reward", "shop-generator")


@pytest.fixture(scope="module")
def shop(tiny_store: Callable[[Path], Registry], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace folder whose store has two versions of both models; the first ones are champions."""
    root = tmp_path_factory.mktemp("shop")
    (root / "mlruns").mkdir()
    (root / "params.yaml").write_text("name: shop\n")
    (root / "dvc.yaml").write_text("stages: {}\n")
    _crown(tiny_store(root / "mlruns"), 1)
    return root


def _crown(registry: Registry, version: int) -> None:
    before = registry.champions("shop")
    registry.promote(dict.fromkeys(NAMES, version), expected=before, decisions=(), force=True, reason="for this test")


@pytest.fixture
def server(shop: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process, and where it listens."""
    words = ["serve", "--port", "0", "--interval", "0.2", "--grace", "900", "-w", str(shop)]
    command = [sys.executable, "-m", "flows.cli", *words]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with (tmp_path / "errors").open("w") as errors, group(
        command, env=environment, stdout=subprocess.PIPE, stderr=errors
    ) as process:  # fmt: skip
        assert process.stdout is not None
        place = re.search(r"http://\S+", process.stdout.readline())
        assert place, (tmp_path / "errors").read_text()
        yield process, place[0]


def ask(url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        return dict(json.loads(answer.read()))


def _wait_for(url: str, seconds: float = 900.0) -> None:
    """Until somebody listens: the address is said before the models are loaded."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            ask(url)
            return
        except urllib.error.URLError:
            assert time.monotonic() < deadline, "nobody listens"
            time.sleep(0.2)


def test_it_serves_follows_a_promotion_and_answers_what_it_accepted_before_it_ends(
    shop: Path, server: tuple[subprocess.Popen[str], str]
) -> None:
    process, url = server
    _wait_for(f"{url}/health")
    assert ask(f"{url}/health")["status"] == "ok"
    assert ask(f"{url}/score", SCORE)["version"] == 1
    _crown(open_registry(f"sqlite:///{shop / 'mlruns' / 'mlflow.db'}", shop / "mlruns"), 2)
    deadline = time.monotonic() + 600
    while set(ask(f"{url}/version")["models"].values()) != {2}:
        assert time.monotonic() < deadline, "the promotion was not seen"
        time.sleep(0.1)
    answers: list[dict[str, Any]] = []
    asked = [{**GENERATE, "n": 4, "steps": 20, "seed": seed} for seed in range(4)]
    askers = [threading.Thread(target=lambda b=body: answers.append(ask(f"{url}/generate", b))) for body in asked]
    for asker in askers:
        asker.start()
    while ask(f"{url}/health")["models"]["generator"]["waiting"] < 2:
        assert time.monotonic() < deadline
    process.send_signal(signal.SIGTERM)
    for asker in askers:
        asker.join(600)
    assert process.wait(300) == 0
    assert len(answers) == 4
    assert {(answer["version"], len(answer["images"])) for answer in answers} == {(2, 4)}
    assert process.stdout is not None
    said = process.stdout.read()
    assert "shop-generator: version 2 serves, 1 before" in said
    assert said.rstrip().endswith("everything that was accepted is answered")


def test_an_address_that_is_taken_is_told(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        with pytest.raises(SystemExit) as stopped:
            main(["serve", "--port", port, "-w", str(shop)])
    assert stopped.value.code == 2
    assert f"127.0.0.1:{port}: Address already in use; name another --port" in capsys.readouterr().err
