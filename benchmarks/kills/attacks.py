"""One place under attack: an uninterrupted run first, then kills, each followed by a run that must mend it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Self

from benchmarks.kills.check import State, after_kill, after_run, fingerprint, state_of
from benchmarks.kills.place import Place
from benchmarks.kills.plan import Attack
from benchmarks.kills.run import FlowRun, Spans, begin, strike, watch
from benchmarks.kills.server import Server
from flows.retrain import STAGES

__all__ = ["PATIENCE", "Mended", "Result", "Siege", "Told"]

PATIENCE = 3600.0  # seconds that a run may take on a busy machine
ENDS = 600.0  # seconds within which a run ends after a kill
TRIES = 4

Told = Callable[[str], None]


@dataclass(frozen=True)
class Mended:
    """The run that follows a kill.

    Attributes:
        ended: "promoted" or "unchanged"; anything else is a loss.
        seconds: that it took.
        resumed: trainings that it took up where they were, e.g. "reward 12/40".
        losses: what was wrong then; empty when nothing is.
    """

    ended: str = ""
    seconds: float = 0.0
    resumed: tuple[str, ...] = ()
    losses: tuple[str, ...] = ()


@dataclass(frozen=True)
class Result:
    """What came of one kill.

    Attributes:
        attack: who, when, how.
        hit: the step in which the flow was when it was hit.
        seconds: from the signal to the end of the flow's process.
        orphans: command lines of processes that outlived it.
        losses: what was wrong then, or after the next run; empty when nothing is.
        mended: the next run.
    """

    attack: Attack
    hit: str = ""
    seconds: float = 0.0
    orphans: tuple[str, ...] = ()
    losses: tuple[str, ...] = ()
    mended: Mended = Mended()


class Siege:
    """A place with its reference: the uninterrupted run, what it made, and how long its steps took."""

    def __init__(self, place: Place, tell: Told) -> None:
        self.place = place
        self.server = Server(place)
        self.reference: dict[str, str] = {}
        self.spans: Spans = {}
        self._tell = tell
        self._opened = ExitStack()

    def __enter__(self) -> Self:
        """Run once, uninterrupted, and let the data be validated once more, now against data that was accepted.

        Raises:
            RuntimeError: a run does not end as it should; nothing can be compared with it.
        """
        with ExitStack() as opened:
            opened.enter_context(self.server)
            self.spans = self._uninterrupted("promoted")
            self.place.forget("validate")
            self._uninterrupted("unchanged")
            self.reference = fingerprint(self.place.workspace)
            took = sum(seconds for (_, who), seconds in self.spans.items() if who == "flow")
            self._tell(f"{self.place.root.name}: the uninterrupted run took {took:.0f} s")
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def attack(self, attack: Attack) -> Result:
        """Kill a run, look at what is left, run again, and compare with the reference."""
        run, hit, began, before = self._hit(attack)
        try:
            losses = [] if run.wait(ENDS) else [f"the flow still ran {ENDS:g} s after the kill"]
            seconds = time.monotonic() - began
            orphans = run.orphans()
        finally:
            run.stop()
        losses += [f"{problem} (after the kill)" for problem in after_kill(self.place, self.reference, before)]
        mended = self.mended(attack.step, before)
        return Result(attack, hit, seconds, tuple(orphans), (*losses, *mended.losses), mended)

    def prepare(self, step: str) -> State:
        """See that the next run comes to a step and does its work; returns the registry's state before."""
        if step in STAGES:
            self.place.forget(step)
        else:
            self.place.estrange()
        return state_of(self.place)

    def mended(self, step: str, before: State) -> Mended:
        """Run again after a run that was attacked in a step, and compare with the reference."""
        run = begin(self.place, self.server.address)
        began = time.monotonic()
        losses = []
        try:
            if not run.wait(PATIENCE):
                losses.append(f"the next run hangs: {run.log}")
            seconds = time.monotonic() - began
            losses += [f"{left} outlives the next run" for left in run.orphans()]
        finally:
            run.stop()
        ended = str(self.place.outcome().get("status", "no outcome"))
        if run.process.returncode != 0 or ended not in ("promoted", "unchanged"):
            losses.append(f"the next run ended {ended} with exit code {run.process.returncode}: {run.log}")
        losses += after_run(self.place, self.reference, before, moves=0 if step in STAGES else 1)
        return Mended(ended, seconds, tuple(run.resumed()), tuple(losses))

    def _uninterrupted(self, expected: str) -> Spans:
        run = begin(self.place, self.server.address)
        spans = watch(run, PATIENCE)
        if run.process.returncode or self.place.outcome().get("status") != expected:
            raise RuntimeError(f"{run.log}: the uninterrupted run ended so: {self.place.outcome()}")
        return spans

    def _hit(self, attack: Attack) -> tuple[FlowRun, str, float, State]:
        """Begin a run and strike it; where the target has ended by then, once more and earlier.

        Raises:
            RuntimeError: the target was missed again and again.
        """
        delay = attack.at * self.spans[attack.step, attack.target]
        own_server = attack.step not in STAGES  # a server that the run starts for itself must be gone with it
        for _ in range(TRIES):
            before = self.prepare(attack.step)
            run = begin(self.place, None if own_server else self.server.address)
            try:
                hit = strike(run, attack.step, attack.target, attack.signal, delay, PATIENCE)
            except BaseException:
                run.stop()
                raise
            if hit:
                return run, hit, time.monotonic(), before
            run.wait(PATIENCE)
            run.stop()
            delay /= 2
        raise RuntimeError(f"{attack}: missed {TRIES} times; see {self.place.root / 'logs'}")
