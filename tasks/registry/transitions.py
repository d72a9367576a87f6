"""What the log's entries mean: transitions, the champions they left, and which champion a rollback returns to. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from perfusion.errors import GateError
from perfusion.governance import Decision
from tasks.registry.ledger import Entry

__all__ = [
    "ROLES",
    "Evidence",
    "Transition",
    "family_of",
    "final_champions",
    "pending_intent",
    "rollback_target",
    "transition_of",
    "transitions",
]

ROLES = ("reward", "generator")
_STATUS = {"commit": "committed", "abort": "aborted"}

Champions = dict[str, int | None]


@dataclass(frozen=True)
class Evidence:
    """What the gates said about a set of versions.

    Attributes:
        versions: registered name -> version.
        expected: the champions they were compared with; None: there was none.
        decisions: the gates' decisions.
        runs: gate -> MLflow run in which it was asked, as far as known.
    """

    versions: dict[str, int]
    expected: dict[str, int | None]
    decisions: tuple[Decision, ...]
    runs: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Transition:
    """One move of the champion aliases, as the log tells it.

    Attributes:
        number: the log entry of its intent; grows with time.
        action: "promote", "rollback" or "adopt" (an alias moved by other hands, taken as it was found).
        moves: model name -> (version before, version after); None where there was no champion.
        status: "committed", "aborted" or "pending" (a crash that nobody has cleaned up after yet).
        by: user, host and process that made it.
        files: model name -> file -> SHA-256, as verified by this very transition; empty when read back from the log.
    """

    number: int
    time: str
    action: str
    moves: dict[str, tuple[int | None, int | None]]
    status: str
    reason: str
    forced: bool
    by: str
    decisions: tuple[Decision, ...] = ()
    files: dict[str, dict[str, str]] = field(default_factory=dict)


def family_of(name: str) -> str:
    """The family of a registered model: "perfusion" for "perfusion-reward" and "perfusion-generator"."""
    prefix, _, role = name.rpartition("-")
    return prefix if prefix and role in ROLES else name


def transition_of(entry: Entry, status: str, files: dict[str, dict[str, str]] | None = None) -> Transition:
    """The transition of an "intent" or "adopt" entry."""
    body = entry.body
    return Transition(
        number=entry.seq,
        time=entry.time,
        action=body["action"],
        moves={name: (before, after) for name, (before, after) in body["moves"].items()},
        status=status,
        reason=body["reason"],
        forced=body["forced"],
        by=body["by"],
        decisions=tuple(Decision.from_dict(record) for record in body["decisions"]),
        files=files or {},
    )


def transitions(entries: Sequence[Entry]) -> list[Transition]:
    """Every transition in the log, oldest first."""
    ended = {entry.body["id"]: _STATUS[entry.event] for entry in entries if entry.event in _STATUS}
    told = []
    for entry in entries:
        if entry.event == "adopt":
            told.append(transition_of(entry, "committed"))
        elif entry.event == "intent":
            told.append(transition_of(entry, ended.get(entry.body["id"], "pending")))
    return told


def pending_intent(entries: Sequence[Entry]) -> Entry | None:
    """The intent that has neither commit nor abort; the lock lets there be one at most."""
    ended = {entry.body["id"] for entry in entries if entry.event in _STATUS}
    return next((e for e in reversed(entries) if e.event == "intent" and e.body["id"] not in ended), None)


def final_champions(entries: Sequence[Entry]) -> Champions:
    """The champions that the log's committed transitions leave; reads moves alone, because every promotion asks it."""
    committed = {entry.body["id"] for entry in entries if entry.event == "commit"}
    done = (e for e in entries if e.event == "adopt" or (e.event == "intent" and e.body["id"] in committed))
    return {name: after for entry in done for name, (_, after) in entry.body["moves"].items()}


def rollback_target(history: Sequence[Transition], name: str, to: int | None) -> Champions:
    """The joint champions of a family to return to.

    Rollbacks undo: going back twice goes two champions back, not to and fro.

    Args:
        history: one family's transitions, oldest first.
        name: a model of the family, or the family itself.
        to: version of the model (of the generator, for a family); None is the champion before this one.

    Raises:
        GateError: there is no such earlier champion.
    """
    stack, every = _joint_champions([t for t in history if t.status == "committed"])
    whole_family = family_of(name) == name
    model = f"{name}-generator" if whole_family else name
    if to is not None:
        earlier = [state for state in every if state.get(model) == to]
        if not earlier:
            known = sorted({version for state in every if (version := state.get(model)) is not None})
            raise GateError(f"{model}: version {to} was never champion; versions that were: {known or 'none'}")
    else:
        unlike = (None, stack[-1].get(model)) if stack else ()
        earlier = [state for state in stack[:-1] if whole_family or state.get(model) not in unlike]
        if not earlier:
            raise GateError(
                f"{name}: there is no earlier champion to return to; `perfusion history` lists what there was"
            )
    return {**dict.fromkeys(stack[-1]), **earlier[-1]}


def _joint_champions(history: Sequence[Transition]) -> tuple[list[Champions], list[Champions]]:
    """The champions of all models after each transition: as an undo stack, and all in order of time."""
    stack: list[Champions] = []
    every: list[Champions] = []
    state: Champions = {}
    for transition in history:
        state = {**state, **{name: after for name, (_, after) in transition.moves.items()}}
        if transition.action == "rollback":
            same = [index for index, old in enumerate(stack) if _present(old) == _present(state)]
            del stack[same[-1] if same else len(stack) :]
        stack.append(state)
        every.append(state)
    return stack, every


def _present(state: Champions) -> dict[str, int]:
    return {name: version for name, version in state.items() if version is not None}
