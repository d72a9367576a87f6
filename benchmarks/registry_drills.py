"""What `benchmarks.registry` and the tests do to a registry: races, kills, rollbacks, on a scratch store.

`python -m benchmarks.registry_drills race FOLDER ATTEMPTS` and `... promote FOLDER [MOMENT MODEL]` are the processes
that race and that are killed; the rest is called.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
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
    processes = [_start("race", folder, attempts) for _ in range(racers)]
    for process in processes:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise RuntimeError(f"a racer did not start:\n{process.communicate()[1]}")
    began = time.monotonic()
    told: list[dict[str, int]] = []
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        out, errors = process.communicate(timeout=PATIENCE * 6)
        if process.returncode != 0:
            raise RuntimeError(f"a racer failed:\n{errors}")
        told.append(json.loads(out))
    seconds = time.monotonic() - began
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
    process = _start("promote", folder, moment.when, moment.model)
    process.communicate(timeout=PATIENCE)
    if process.returncode != -signal.SIGKILL:
        raise RuntimeError(f"the promotion was to be killed, but ended with {process.returncode}")


def kill_at_random(folder: Path, chance: random.Random, longest: float) -> None:
    """Kill a process that promotes again and again after up to `longest` seconds."""
    process = _start("promote", folder)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(chance.uniform(0.0, longest))
    process.kill()
    process.communicate()


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


def _start(*words: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.registry_drills", *map(str, words)]
    pipe = subprocess.PIPE
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)


def _race(folder: Path, attempts: int) -> None:
    registry = open_at(folder)
    told = {"promoted": 0, "refused": 0}
    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(attempts):
        seen = registry.version(REWARD)
        try:
            registry.promote({REWARD: (seen or 0) % PAIRS + 1}, expected={REWARD: seen}, decisions=PASSED)
            told["promoted"] += 1
        except GateError as error:
            if "stale" not in str(error):
                raise
            told["refused"] += 1
    print(json.dumps(told))


def _promote(folder: Path, when: str | None, model: str | None) -> None:
    """Promote pair after pair; killed by its own hand at the moment, where one is given."""
    registry = open_at(folder)
    set_alias = registry.client.set_registered_model_alias

    def set_and_die(name: str, alias: str, version: str) -> None:
        if (when, model) == ("before", name):
            os.kill(os.getpid(), signal.SIGKILL)
        set_alias(name, alias, version)
        if (when, model) == ("after", name):
            os.kill(os.getpid(), signal.SIGKILL)

    registry.client.set_registered_model_alias = set_and_die  # type: ignore[method-assign]
    print("ready", flush=True)
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


def main() -> None:
    """Be one of the processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    racing = commands.add_parser("race")
    racing.add_argument("folder", type=Path)
    racing.add_argument("attempts", type=int)
    promoting = commands.add_parser("promote")
    promoting.add_argument("folder", type=Path)
    promoting.add_argument("when", nargs="?")
    promoting.add_argument("model", nargs="?")
    options = parser.parse_args()
    if options.command == "race":
        _race(options.folder, options.attempts)
    else:
        _promote(options.folder, options.when, options.model)


if __name__ == "__main__":
    main()
