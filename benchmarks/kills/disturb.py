"""Disturbances besides kills: a disk that is full, a store that is locked or gone, Prefect's server killed.

A run that meets one may wait or fail with a reason. It may not hang, promote what it should not, or leave behind what
the next run cannot go on from.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.kills.attacks import PATIENCE, Siege, Told
from benchmarks.kills.check import after_kill
from benchmarks.kills.place import make_place
from benchmarks.kills.run import FlowRun, await_step, begin

__all__ = ["DISTURBANCES", "Disturbed", "disturb"]

ENDS = 900.0  # seconds within which a disturbed run ends
AWAY = 60.0  # seconds for which a store is away
DISK = "3g"
KIB = 1024


@dataclass(frozen=True)
class Disturbed:
    """What came of one disturbance.

    Attributes:
        name: of the disturbance.
        ended: how the disturbed run ended, in its own words; or why it was not made.
        seconds: that it took.
        losses: what was wrong then, or after the next run.
        next: how the next run ended.
    """

    name: str
    ended: str
    seconds: float = 0.0
    losses: tuple[str, ...] = ()
    next: str = ""


@dataclass(frozen=True)
class Disturbance:
    """One way to disturb a run.

    Attributes:
        step: the stage or step that is made to run, and that the disturbance meets.
        while_it_runs: disturbs the run from its beginning, and has ended the disturbance when it is left.
        on_small_disk: needs a disk that can be filled.
    """

    step: str
    while_it_runs: Callable[[Siege, FlowRun], None]
    on_small_disk: bool = False
    own_server: bool = False


def disturb(names: Sequence[str], root: Path, data: Path, tell: Told) -> Iterator[Disturbed]:
    """Make some of `DISTURBANCES` in a place of their own, on a small disk where this process may mount one."""
    with _small_disk(root) as mounted, Siege(make_place(root / "place", data), tell) as siege:
        for name in names:
            what = DISTURBANCES[name]
            if what.on_small_disk and not mounted:
                yield Disturbed(name, "not made: mounting a small disk needs root")
                continue
            try:
                yield _disturb(siege, name, what)
            except (OSError, RuntimeError) as error:
                yield Disturbed(name, f"not carried out: {error}", losses=("not carried out",))


def _disturb(siege: Siege, name: str, what: Disturbance) -> Disturbed:
    before = siege.prepare(what.step)
    began = time.monotonic()
    with ExitStack() as filled:
        if name in FREE_KIB:
            filled.enter_context(_full(siege.place.root, FREE_KIB[name] * KIB))
        run = begin(siege.place, None if what.own_server else siege.server.address, any_disk=True)
        try:
            what.while_it_runs(siege, run)
            losses = [] if run.wait(ENDS) else [f"the run hangs: {run.log}"]
            seconds = time.monotonic() - began
            losses += [f"{left} outlives the run" for left in run.orphans()]
        finally:
            run.stop()
    ended = f"exit code {run.process.returncode}: {_last_words(run)}"
    losses += after_kill(siege.place, siege.reference, before)
    mended = siege.mended(what.step, before)
    return Disturbed(name, ended, seconds, (*losses, *mended.losses), " ".join([mended.ended, *mended.resumed]))


def _nothing(siege: Siege, run: FlowRun) -> None:
    pass


def _fill_disk(siege: Siege, run: FlowRun) -> None:
    """Fill the disk when the stage's process is there, until the run has ended."""
    await_step(run, "encode", PATIENCE, "trainer")
    with _full(siege.place.root, 0):
        run.wait(ENDS)


def _lock_store(siege: Siege, run: FlowRun) -> None:
    """Hold MLflow's database for a minute, so that nobody else reads or writes it."""
    await_step(run, "reward", PATIENCE)
    with closing(sqlite3.connect(siege.place.workspace.mlruns / "mlflow.db", timeout=60)) as database:
        database.execute("BEGIN EXCLUSIVE")
        run.wait(AWAY)
        database.rollback()


def _move_store(siege: Siege, run: FlowRun) -> None:
    """Take MLflow's database away for a minute."""
    await_step(run, "reward", PATIENCE)
    database = siege.place.workspace.mlruns / "mlflow.db"
    away = database.with_suffix(".away")
    database.rename(away)
    run.wait(AWAY)
    away.replace(database)


def _restart_server(siege: Siege, run: FlowRun) -> None:
    """Kill Prefect's server, and start it again at the same address after some seconds."""
    await_step(run, "reward", PATIENCE)
    siege.server.kill()
    run.wait(8)
    siege.server.start()


def _kill_server(siege: Siege, run: FlowRun) -> None:
    """Kill the Prefect server that the run started for itself; nobody starts it again."""
    await_step(run, "reward", PATIENCE)
    for process in run.alive():
        if "flows.server" in process.cmdline():
            process.kill()


#: KiB left on the disk when the run begins.
FREE_KIB = {"disk full at the start": 0, "disk full while registering": 3000}
DISTURBANCES = {
    "disk full at the start": Disturbance("reward", _nothing, on_small_disk=True),
    "disk full in a stage": Disturbance("encode", _fill_disk, on_small_disk=True),
    "disk full while registering": Disturbance("register", _nothing, on_small_disk=True),
    "MLflow's database locked for a minute": Disturbance("reward", _lock_store),
    "MLflow's database gone for a minute": Disturbance("reward", _move_store),
    "Prefect's server killed and restarted": Disturbance("reward", _restart_server),
    "Prefect's server killed for good": Disturbance("reward", _kill_server, own_server=True),
}


@contextmanager
def _small_disk(root: Path) -> Iterator[bool]:
    """A disk in memory mounted at `root`; yields whether that was possible, otherwise `root` is a plain folder."""
    root.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(root)]
    mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(root)], check=True)


@contextmanager
def _full(root: Path, left: int) -> Iterator[None]:
    """Fill the disk but for `left` bytes."""
    ballast = root.parent / "ballast"
    with open(ballast, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, shutil.disk_usage(root).free - left))
    try:
        yield
    finally:
        ballast.unlink()


def _last_words(run: FlowRun) -> str:
    """The last line that the run said, shortened."""
    said = run.log.read_text(errors="replace").strip().splitlines()
    return said[-1][:160] if said else "nothing"
