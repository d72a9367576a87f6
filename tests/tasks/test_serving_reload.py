"""The alias moves under load: nobody is refused, nobody goes back, and what cannot serve leaves the old one serving."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tiny_requests import GENERATE, SCORE

from tasks.registry import CHAMPION, Registry
from tasks.registry.artifacts import local_folder
from tasks.serving.app import create_app
from tasks.serving.champions import Champions, settled_champions
from tasks.serving.worker import Worker

NAMES = ("shop-reward", "shop-generator")
ROLES = ("reward", "generator")


@pytest.fixture
def store(tiny_store: Callable[[Path], Registry], tmp_path: Path) -> Registry:
    """Two versions and no champion."""
    return tiny_store(tmp_path)


@pytest.fixture
def registry(store: Registry) -> Registry:
    """Two versions, the first one champion."""
    crown(store, 1)
    return store


def crown(registry: Registry, version: int) -> None:
    before = registry.champions("shop")
    registry.promote(dict.fromkeys(NAMES, version), expected=before, decisions=(), force=True, reason="for this test")


def champions_of(registry: Registry, interval: float = 0.2, room: int = 64) -> Champions:
    return Champions(registry, "shop", {role: Worker(role, room) for role in ROLES}, interval, print)


def until(condition: Callable[[], bool], seconds: float = 900.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@dataclass
class Customer:
    """Asks one thing after the other until told to stop, and keeps what it was answered."""

    client: TestClient
    path: str
    asked: dict[str, Any]
    stop: threading.Event
    answers: list[tuple[int, int | None]] = field(default_factory=list)  # status, version

    def run(self) -> None:
        while not self.stop.is_set():
            answer = self.client.post(self.path, json=self.asked)
            self.answers.append((answer.status_code, answer.json().get("version")))


def test_the_alias_moves_under_a_stream_of_requests_and_nobody_notices_but_by_the_version(registry: Registry) -> None:
    champions, stop = champions_of(registry), threading.Event()
    with TestClient(create_app(champions)) as client:
        asked = [("/score", SCORE), ("/score", SCORE), ("/generate", {**GENERATE, "n": 1}), ("/generate", GENERATE)]
        customers = [Customer(client, path, body, stop) for path, body in asked]
        threads = [threading.Thread(target=customer.run) for customer in customers]
        for thread in threads:
            thread.start()
        for version in (2, 1):  # a promotion, then a rollback
            until(lambda: all(len(customer.answers) >= 3 for customer in customers))
            if version == 2:
                crown(registry, 2)
            else:
                registry.rollback("shop", reason="returns rose")
            until(lambda v=version: all(place.version == v for place in champions.places.values()))
            seen = [len(customer.answers) for customer in customers]
            until(lambda s=seen: all(len(c.answers) >= n + 3 for c, n in zip(customers, s, strict=True)))
        stop.set()
        for thread in threads:
            thread.join(60)
        health = client.get("/health").json()
    assert health["status"] == "ok"
    for customer in customers:
        assert {status for status, _ in customer.answers} == {200}
        versions = [version for _, version in customer.answers]
        changes = [after for before, after in pairwise(versions) if after != before]
        assert (versions[0], changes) == (1, [2, 1]), "every switch is seen once, and nobody goes back in between"


def test_the_old_model_is_let_go_when_its_last_answer_is_given(registry: Registry) -> None:
    champions = champions_of(registry)
    champions.look()
    place = champions.places["reward"]
    old = weakref.ref(place.model()._model.unwrap_python_model().model)
    hold, begun = threading.Event(), threading.Event()

    def question() -> int:
        served = place.model()
        begun.set()
        hold.wait(60)
        return served.version

    answer = place.worker.submit(question)
    assert begun.wait(10)
    crown(registry, 2)
    champions.look()
    assert place.version == 2
    assert old() is not None, "it is still answering"
    hold.set()
    assert answer.result(10) == 1
    until(lambda: gc.collect() is not None and old() is None, 20)
    for place in champions.places.values():
        place.worker.close()


def test_a_version_whose_files_were_altered_leaves_the_old_one_serving(registry: Registry) -> None:
    champions = champions_of(registry, interval=3600)
    script = local_folder(registry.client, "shop-generator", 2) / "serve_generator.py"
    with TestClient(create_app(champions)) as client:
        crown(registry, 2)
        kept = script.read_text()
        script.write_text(kept + "\n# altered\n")
        champions.look()
        health = client.get("/health")
        answer = client.post("/generate", json=GENERATE).json()
        script.write_text(kept)
        told = health.json()
        generator = told["models"]["generator"]
        assert (health.status_code, told["status"]) == (200, "degraded")
        assert (generator["version"], generator["champion"]) == (1, 2)
        assert "different: serve_generator.py" in generator["problem"]
        assert (told["models"]["reward"]["version"], told["models"]["reward"]["problem"]) == (2, None)
        assert answer["version"] == 1
        champions.look()
        assert champions.places["generator"].version == 1, "what failed is not tried at every look"
        registry.rollback("shop", reason="cannot serve")
        champions.look()
        assert client.get("/health").json()["status"] == "ok"
        crown(registry, 2)  # mended meanwhile: another promotion is another try
        champions.look()
        assert client.post("/generate", json=GENERATE).json()["version"] == 2


def test_an_artifact_that_does_not_load_leaves_the_old_one_serving(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    champions = champions_of(registry, interval=3600)
    champions.look()
    crown(registry, 2)

    def broken(uri: str) -> None:
        raise ImportError(f"no module named 'newer' for {uri}")

    monkeypatch.setattr("tasks.models.served.load_model", broken)
    champions.look()
    assert [place.version for place in champions.places.values()] == [1, 1]
    assert all("no module named 'newer'" in str(place.problem) for place in champions.places.values())
    assert "ImportError" in caplog.text
    for place in champions.places.values():
        place.worker.close()


def test_no_half_of_a_pair_is_seen(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transition that was interrupted between its two aliases."""
    champions = champions_of(registry)
    champions.look()
    plain = type(registry.client).set_registered_model_alias
    moved: list[str] = []

    def dies_after_one(client: Any, name: str, alias: str, version: str) -> None:
        if alias == CHAMPION and moved:
            raise KeyboardInterrupt
        moved.append(name)
        plain(client, name, alias, version)

    monkeypatch.setattr(type(registry.client), "set_registered_model_alias", dies_after_one)
    with pytest.raises(KeyboardInterrupt):
        crown(registry, 2)
    monkeypatch.undo()
    assert sorted(registry.champions("shop").values()) == [1, 2]
    assert settled_champions(registry, "shop") is None
    champions.look()
    assert [place.version for place in champions.places.values()] == [1, 1]
    assert "under way" in str(champions.problem)
    registry.recover()
    champions.look()
    assert [place.version for place in champions.places.values()] == [2, 2]
    assert champions.problem is None
    for place in champions.places.values():
        place.worker.close()


def test_a_registry_that_cannot_be_read_is_told_and_the_models_serve_on(registry: Registry) -> None:
    champions = champions_of(registry, interval=3600)
    log = registry.ledger.path
    with TestClient(create_app(champions)) as client:
        kept = log.read_text()
        log.write_text(kept.replace('"promote"', '"PROMOTE"', 1))
        champions.look()
        told = client.get("/health").json()
        assert told["status"] == "degraded"
        assert "does not give its hash" in told["registry"]
        assert client.post("/score", json=SCORE).status_code == 200
        log.write_text(kept)
        champions.look()
        assert client.get("/health").json()["status"] == "ok"


def test_without_a_champion_the_server_says_so_and_serves_as_soon_as_there_is_one(store: Registry) -> None:
    champions = champions_of(store, interval=3600)
    with TestClient(create_app(champions)) as client:
        health, refused = client.get("/health"), client.post("/score", json=SCORE)
        assert (health.status_code, health.json()["status"]) == (503, "unavailable")
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "3600")
        assert "no champion yet" in refused.json()["detail"][0]["msg"]
        crown(store, 2)
        champions.look()
        assert (client.get("/health").status_code, client.post("/score", json=SCORE).json()["version"]) == (200, 2)
