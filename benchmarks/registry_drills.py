"""What `benchmarks.registry` and the tests do to a registry, on a scratch store: races and kills.

The processes that race or are killed are forked from a server that has imported what they need and opened nothing.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path
from typing import Any

from perfusion.errors import GateError
from perfusion.governance import Decision
from tasks.registry import Registry, open_registry

__all__ = [
    "FAMILY", "GENERATOR", "MOMENTS", "PASSED", "REWARD", "Moment", "add_pair", "kill_at", "kill_at_random",
    "make_store", "open_at", "race", "recovered",
]  # fmt: skip

FAMILY = "shop"
REWARD, GENERATOR = f"{FAMILY}-reward", f"{FAMILY}-generator"
PASSED = [Decision(gate, "pass") for gate in ("reward", "load", "promotion")]
PAIRS = 4
PATIENCE = 600.0  # seconds, of a busy machine
_BLOCK = 1 << 24
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__])


@dataclass(frozen=True)
class Moment:
    """A moment of a promotion at which its process is killed.

    Attributes:
        when: "before" or "after" the alias of `model` is set.
        model: the generator's alias moves first.
        status: of the transition once it is recovered.
    """

    when: str
    model: str
    status: str


MOMENTS = {
    "after the intent, before any alias moved": Moment("before", GENERATOR, "aborted"),
    "after the first of two aliases": Moment("after", GENERATOR, "committed"),
    "after both, before the commit": Moment("after", REWARD, "committed"),
}


def open_at(folder: Path) -> Registry:
    """The registry of a scratch store."""
    return open_registry(f"sqlite:///{folder / 'mlflow.db'}", folder, timeout=PATIENCE)


def make_store(folder: Path, pairs: int = PAIRS) -> Registry:
    """A store with registered versions of two models, and no champion."""
    registry = open_at(folder)
    for name in (REWARD, GENERATOR):
        registry.client.create_registered_model(name)
    for number in range(1, pairs + 1):
        add_pair(registry, folder / "files" / str(number))
    return registry


def add_pair(registry: Registry, files: Path, sizes: Sequence[int] = (32,)) -> dict[str, int]:
    """Register a version of both models, of files of these many random bytes. Returns name -> version."""
    versions = {}
    for name in (REWARD, GENERATOR):
        folder = files / name
        folder.mkdir(parents=True)
        for number, size in enumerate(sizes):
            _write_random(folder / f"part-{number}.safetensors", size)
        versions[name] = int(registry.client.create_model_version(name, str(folder)).version)
        registry.register(name, versions[name])
    return versions


def race(folder: Path, attempts: int, racers: int = 2) -> dict[str, Any]:
    """Let processes promote at once, each `attempts` times, and compare what they say with what the log says.

    Returns:
        attempts, promoted, refused (as stale), by all together; committed in the log; problems, one line each, of which
        there must be none; seconds.
    """
    start, pipes, processes = _CONTEXT.Barrier(racers + 1), [], []
    for _ in range(racers):
        ours, theirs = _CONTEXT.Pipe(duplex=False)
        pipes.append(ours)
        processes.append(_start(_race, folder, attempts, start, theirs))
        theirs.close()
    start.wait(PATIENCE)
    began = time.monotonic()
    told: list[dict[str, int]] = [pipe.recv() for pipe in pipes]  # EOFError where a racer failed; it tells why itself
    seconds = time.monotonic() - began
    for process in processes:
        process.join(PATIENCE)
    promoted, refused = (sum(racer[key] for racer in told) for key in ("promoted", "refused"))
    registry = open_at(folder)
    moves = [transition.moves[REWARD] for transition in registry.history() if transition.status == "committed"]
    problems = registry.verify()
    problems += [f"lost or doubled: {a} is followed by {b}" for a, b in pairwise(moves) if a[1] != b[0]]
    if moves and registry.version(REWARD) != moves[-1][1]:
        problems.append(f"the champion is {registry.version(REWARD)}, the last transition made it {moves[-1][1]}")
    if len(moves) != promoted:
        problems.append(f"the log has {len(moves)} transitions, the racers made {promoted}")
    if promoted + refused != attempts * racers:
        problems.append(f"{promoted} promoted + {refused} refused is not {attempts * racers}")
    return {
        "processes": racers, "attempts": attempts * racers, "promoted": promoted, "refused": refused,
        "committed": len(moves), "each": told, "problems": problems, "seconds": round(seconds, 1),
    }  # fmt: skip


def kill_at(folder: Path, moment: Moment) -> None:
    """Kill a promotion at a moment."""
    ready = _CONTEXT.Event()  # held here until the process has taken it up
    process = _start(_promote, folder, ready, moment)
    process.join(PATIENCE)
    if process.exitcode != -signal.SIGKILL:
        raise RuntimeError(f"the promotion was to be killed, but its exit code is {process.exitcode}")


def kill_at_random(folder: Path, chance: random.Random, longest: float) -> None:
    """Kill a process that promotes again and again after up to `longest` seconds."""
    ready = _CONTEXT.Event()
    process = _start(_promote, folder, ready, None)
    if not ready.wait(PATIENCE):
        raise RuntimeError(f"the promoting process did not start; its exit code is {process.exitcode}")
    time.sleep(chance.uniform(0.0, longest))
    process.kill()
    process.join()


def recovered(folder: Path) -> tuple[str, list[str]]:
    """Recover after a kill.

    Returns:
        "committed" or "aborted", what became of the transition that was cut, or "nothing" where none was under way; and
        what is wrong, one line each.
    """
    registry = open_at(folder)
    resolved = registry.recover()
    problems = registry.verify()
    champions = registry.champions(FAMILY)
    if len(set(champions.values())) != 1:
        problems.append(f"half a promotion: {champions}")
    return resolved.status if resolved is not None else "nothing", problems


# -- the processes ----------------------------------------------------------------------------------------------------


def _start(work: Callable[..., None], *arguments: object) -> BaseProcess:
    process = _CONTEXT.Process(target=work, args=arguments, daemon=True)
    process.start()
    return process


def _race(folder: Path, attempts: int, start: Barrier, told: Connection) -> None:
    registry = open_at(folder)
    count = {"promoted": 0, "refused": 0}
    registry.version(REWARD)  # opens the database before the race begins
    start.wait(PATIENCE)
    for _ in range(attempts):
        seen = registry.version(REWARD)
        try:
            registry.promote({REWARD: (seen or 0) % PAIRS + 1}, expected={REWARD: seen}, decisions=PASSED)
            count["promoted"] += 1
        except GateError as error:
            if "stale" not in str(error):
                raise
            count["refused"] += 1
    told.send(count)


def _promote(folder: Path, ready: Event, moment: Moment | None) -> None:
    """Promote pair after pair; killed by its own hand at the moment, where one is given."""
    registry = open_at(folder)
    set_alias = registry.client.set_registered_model_alias

    def set_and_die(name: str, alias: str, version: str) -> None:
        now = (moment.when, moment.model) if moment is not None else None
        if now == ("before", name):
            os.kill(os.getpid(), signal.SIGKILL)
        set_alias(name, alias, version)
        if now == ("after", name):
            os.kill(os.getpid(), signal.SIGKILL)

    registry.client.set_registered_model_alias = set_and_die  # type: ignore[method-assign]
    ready.set()
    while True:
        seen = registry.champions(FAMILY)
        target = (seen[GENERATOR] or 0) % PAIRS + 1
        registry.promote({REWARD: target, GENERATOR: target}, expected=seen, decisions=PASSED)


def _write_random(file: Path, size: int) -> None:
    with open(file, "wb") as stream:
        while size > 0:
            size -= stream.write(os.urandom(min(size, _BLOCK)))
        stream.flush()
        os.fsync(stream.fileno())
