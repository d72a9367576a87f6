"""Whom to kill, when and how: every stage and every acting step of the flow, by a seed."""

from __future__ import annotations

import random
import signal
from dataclasses import dataclass

from flows.retrain import STAGES

__all__ = ["TARGETS", "Attack", "plan"]

TARGETS = ("flow", "dvc", "trainer")
SIGNALS = (signal.SIGKILL, signal.SIGTERM)
#: The flow's own steps, with how often each is attacked while every stage is attacked once by each target and signal.
OWN_STEPS = {"data": 1, "register": 3, "load gate": 2, "promotion gate": 1, "promote": 4, "publish": 2}


@dataclass(frozen=True)
class Attack:
    """One kill.

    Attributes:
        number: its place in the plan, from 1.
        step: a stage, or another step of the flow.
        target: "flow"; for a stage also "dvc" or "trainer".
        signal: SIGKILL or SIGTERM.
        at: when, as a share of the time that the target's part in the step takes, in [0, 1).
    """

    number: int
    step: str
    target: str
    signal: signal.Signals
    at: float


def plan(kills: int, seed: int) -> list[Attack]:
    """That many attacks: every cell of the matrix in a random order, then all again, each at a moment of its own."""
    cells = [(stage, target, number) for stage in STAGES for target in TARGETS for number in SIGNALS]
    cells += [(step, "flow", number) for step, times in OWN_STEPS.items() for number in SIGNALS for _ in range(times)]
    draw = random.Random(seed)
    attacks: list[Attack] = []
    while len(attacks) < kills:
        for cell in draw.sample(cells, len(cells)):
            attacks.append(Attack(len(attacks) + 1, *cell, draw.random()))
    return attacks[:kills]
