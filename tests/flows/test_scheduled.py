"""What a tick decides: run, nothing new, give way, and whom it tells; with a retraining that only says how it ended."""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from uuid import UUID, uuid4

import pytest
from checkout import commit, make_checkout
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Crashed, Failed, Running

from flows import scheduled as module
from flows import webhook
from flows.cli_run import tick_parameters
from flows.outcome import Outcome
from flows.scheduled import CUT_OFF
from perfusion.errors import PerFusionError
from perfusion.world.marketplace import write_marketplace
from tasks.dataset import content_of
from tasks.livelog import read_log
from tasks.workspace import link_to, open_workspace
from tasks.worktree import SchedulePlace

FILES = {
    "params.yaml": "seed: 0\n", "params/shop.yaml": "seed: 1\n", "dvc.yaml": "stages: {}\n", ".dvc/config": "",
    "data.dvc": "outs: [{path: data}]\n", ".gitignore": "/work/\n/data/\n/.dvc/cache\n/.dvc/config.local\n",
}  # fmt: skip


class Retraining:
    """Takes the place of `perfusion retrain`, and of the webhook."""

    def __init__(self) -> None:
        self.ends: Outcome | Exception = Outcome("refused", ("not promoted",), "run-1")
        self.runs = 0
        self.told: list[dict[str, Any]] = []

    def __call__(self, tree: Path, root: Path, params: str | None, data: str | None) -> Outcome:
        self.runs += 1
        if data is not None:
            root.mkdir(parents=True, exist_ok=True)
            link_to(root / "data", Path(data))
            content_of(open_workspace(root), lambda line: None)
        if isinstance(self.ends, Exception):
            raise self.ends
        return self.ends


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = make_checkout(tmp_path / "repository", FILES)
    monkeypatch.setattr(module, "REPOSITORY", root)
    return root


@pytest.fixture
def retraining(monkeypatch: pytest.MonkeyPatch) -> Retraining:
    stands_in = Retraining()
    monkeypatch.setattr(module, "_retrain", stands_in)
    monkeypatch.setattr(module, "announce", stands_in.told.append)
    monkeypatch.setattr(module, "get_run_logger", lambda: logging.getLogger("tick"))
    return stands_in


def tick(**parameters: Any) -> State[Any]:
    """One tick, without Prefect's engine around it."""
    return module.scheduled.fn(schedule="nightly", **parameters)


def test_the_command_line_gives_what_holds_wherever_a_tick_runs(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.workspace.REPOSITORY", repository)
    monkeypatch.chdir(repository)
    given = tick_parameters("nightly", None, Path("params/shop.yaml"), Path(".."), True)
    folder = str(repository.parent)
    assert given == {
        "schedule": "nightly", "branch": "main", "params": "params/shop.yaml", "data": folder, "force": True
    }  # fmt: skip
    assert tick_parameters("x", "main", None, None, False) == {"schedule": "x", "branch": "main"}
    for wrong, told in (
        (("a/b", None, None, None), "not a name"), (("x", "gone", None, None), "no branch 'gone'"),
        (("x", None, Path("params/mine.yaml"), None), "commit the file"),
        (("x", None, None, tmp_path / "nowhere"), "no such dataset folder"),
    ):  # fmt: skip
        with pytest.raises(PerFusionError, match=told):
            tick_parameters(*wrong, False)


def test_a_tick_runs_when_something_is_new_or_it_is_forced(repository: Path, retraining: Retraining) -> None:
    assert tick().name == "Refused"
    state = tick()
    assert (state.name, retraining.runs) == ("NothingNew", 1)
    assert "(refused); force: true runs it all the same" in str(state.message)
    assert tick(force=True).name == "Refused"
    (repository / "params.yaml").write_text("seed: 7\n")
    assert (tick().name, retraining.runs) == ("NothingNew", 2), "what is not committed is not there"
    commit(repository)
    retraining.ends = Outcome("promoted", ("better",), "run-2")
    assert (tick().name, retraining.runs) == ("Promoted", 3)
    assert [told["outcome"] for told in retraining.told] == ["refused", "refused"], "a promotion disturbs nobody"
    ticks = read_log(SchedulePlace(repository, "nightly").ticks)
    assert [entry["outcome"] for entry in ticks] == ["refused", "nothing-new", "refused", "nothing-new", "promoted"]


def test_a_named_folder_is_new_when_its_content_is(repository: Path, retraining: Retraining, tmp_path: Path) -> None:
    folder = tmp_path / "delivery"
    write_marketplace(folder, users=3, seed=5)
    given = {"data": str(folder), "params": "params/shop.yaml"}
    assert tick(**given).name == "Refused"
    os.utime(folder / "users.parquet")
    assert tick(**given).name == "NothingNew", "touched, but the same"
    write_marketplace(folder, users=4, seed=5, replace=True)
    assert tick(**given).name == "Refused"
    assert (tick(**given).name, retraining.runs) == ("NothingNew", 2)
    assert (tick().name, retraining.runs) == ("Refused", 3), "the pinned data is another matter"
    missing = tick(data=str(tmp_path / "nowhere"))
    assert missing.is_failed()
    assert "no such dataset folder" in str(missing.message)
    assert retraining.told[-1]["outcome"] == "failed"


def test_a_failure_is_told_and_tried_again(
    repository: Path, retraining: Retraining
) -> None:  # fmt: skip
    retraining.ends = Outcome("failed", ("disk full",), "run-1")
    assert tick().is_failed()
    retraining.ends = ZeroDivisionError("a defect")
    with pytest.raises(ZeroDivisionError):
        tick()
    assert not SchedulePlace(repository, "nightly").tree.exists()
    assert [told["reasons"] for told in retraining.told] == [["disk full"], ["unexpected ZeroDivisionError: a defect"]]
    retraining.ends = Outcome("unchanged", ("serves already",), "run-2")
    assert (tick().name, retraining.runs) == ("Unchanged", 3)


def test_a_tick_gives_way_to_a_run_that_goes_on(
    repository: Path, retraining: Retraining
) -> None:  # fmt: skip
    with SchedulePlace(repository, "nightly").held():
        state = tick()
    assert state.is_cancelled()
    assert "still going on" in str(state.message)
    assert (retraining.runs, retraining.told) == (0, [])


def test_a_crash_is_told_as_prefect_calls_its_hooks(retraining: Retraining) -> None:
    """By name, which the drill in tests/flows/test_schedule.py sees a worker do."""
    run = FlowRun(flow_id=uuid4(), parameters={"schedule": "weekly"})
    (hook,) = module.scheduled.on_crashed_hooks
    hook(flow=module.scheduled, flow_run=run, state=Crashed(message="killed"))
    (told,) = retraining.told
    assert (told["schedule"], told["outcome"], told["flow_run"]) == ("weekly", "crashed", str(run.id))
    assert told["reasons"] == ["killed"]


@pytest.mark.slow
def test_a_run_killed_with_whoever_started_it_is_told_of_at_the_next_tick(
    repository: Path, retraining: Retraining, prefect_server: None
) -> None:
    """No process of it lives that could say so; what is left is its note, and Prefect's word that it is running."""
    place = SchedulePlace(repository, "nightly")
    assert tick().name == "Refused"
    retraining.told.clear()
    with get_client(sync_client=True) as client:

        def run_of(state: State[Any]) -> str:
            return str(client.create_flow_run(module.scheduled, state=state).id)

        left, told_already, elsewhere = run_of(Running()), run_of(Crashed(message="out of memory")), str(uuid4())
        for run in (left, told_already, elsewhere):
            with pytest.raises(KeyError), place.noted(run):
                raise KeyError
            assert place.unended() is None, "a run that ends by an error ends"
            (place.root / "going").write_text(run)
            assert tick().name == "NothingNew"
            assert place.unended() is None
        said = client.read_flow_run(UUID(left)).state
        assert said is not None
        assert (said.name, said.message) == ("Crashed", CUT_OFF)
        kept = client.read_flow_run(UUID(told_already)).state
        assert kept is not None
        assert kept.message == "out of memory"
    assert [(told["flow_run"], told["outcome"]) for told in retraining.told] == [
        (left, "crashed"), (elsewhere, "crashed")
    ]  # fmt: skip
    outcomes = [entry["outcome"] for entry in read_log(place.ticks)]
    assert outcomes == ["refused", *(["crashed", "nothing-new"] * 3)]


@pytest.fixture
def broken() -> Iterator[tuple[str, list[int]]]:
    """A webhook that answers 500, and its calls."""
    calls: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            calls.append(1)
            self.send_error(500)

        def log_message(self, format: str, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/secret", calls
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("answers", [True, False])
def test_an_attempt_that_fails_names_the_status_and_not_the_address(
    answers: bool, broken: tuple[str, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, calls = broken
    monkeypatch.setenv(webhook.ADDRESS, address if answers else "http://127.0.0.1:1/secret")
    with pytest.raises(PerFusionError, match="status 500" if answers else "ConnectError, no answer") as told:
        webhook.post.fn({"outcome": "refused"})
    assert len(calls) == answers
    assert "secret" not in "".join(traceback.format_exception(told.value))


def test_a_webhook_that_never_takes_it_leaves_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Prefect makes the further attempts: tests/flows/test_schedule.py sees one."""
    posted: list[dict[str, Any]] = []

    def fails(message: dict[str, Any], return_state: bool) -> State[Any]:
        posted.append(message)
        return Failed(message="it answered with status 500")

    monkeypatch.setattr(webhook, "post", fails)
    monkeypatch.delenv(webhook.ADDRESS, raising=False)
    webhook.announce({"outcome": "refused"})
    assert posted == [], "nobody asked to be told"
    monkeypatch.setenv(webhook.ADDRESS, "http://127.0.0.1:1/secret")
    with caplog.at_level(logging.WARNING):
        webhook.announce({"outcome": "refused"})
    (warning,) = caplog.records
    assert (warning.levelno, posted) == (logging.WARNING, [{"outcome": "refused"}])
    assert "it answered with status 500" in warning.getMessage()
    assert "secret" not in caplog.text
