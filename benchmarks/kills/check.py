"""What may be seen after a kill, and what must be there after the run that follows it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import yaml

from benchmarks.kills.place import FAMILY, Place
from perfusion.errors import GateError
from tasks.publishing import CONTENT
from tasks.registry.transitions import final_champions, pending_intent, transitions
from tasks.stage_run import content_hash, stages_of
from tasks.workspace import Workspace

__all__ = ["State", "after_kill", "after_run", "fingerprint", "state_of"]

#: Metrics that no two runs share: what drawing cost, how long reading took.
UNSTEADY = {"evaluate-generator": "costs", "validate": "seconds"}

#: Folders of an output that come into being one by one, each of them whole.
PARTS = {"backbones": ("clip", "diffusion")}


@dataclass(frozen=True)
class State:
    """What serves, and how it came to be.

    Attributes:
        champions: by registered name, as the aliases stand.
        committed: moves of champions that the log has committed.
    """

    champions: dict[str, int | None]
    committed: int


def state_of(place: Place) -> State:
    """The registry's state between two runs, when nothing is pending."""
    registry = place.registry
    moves = [move for move in registry.history(FAMILY) if move.status == "committed"]
    return State(registry.champions(FAMILY), len(moves))


def fingerprint(workspace: Workspace) -> dict[str, str]:
    """Hash of every output of every stage that is there, and its metrics but for what they tell of time.

    A folder's own metrics.json is left out, being the stage's metrics once more.
    """
    found = {}
    for stage, entry in stages_of(workspace.dvc_yaml).items():
        for out in entry["outs"]:
            for path in (workspace.root / out / part for part in PARTS.get(stage, ("",))):
                if path.exists():
                    found[str(path.relative_to(workspace.root))] = _hash(path)
        metrics = workspace.metrics(stage)
        if metrics.exists():
            told = json.loads(metrics.read_text())
            told.pop(UNSTEADY.get(stage, ""), None)
            found[stage] = json.dumps(told, sort_keys=True)
    return found


def _hash(path: Path) -> str:
    if path.is_file():
        return content_hash(path)
    files = (file for file in sorted(path.rglob("*")) if file.is_file() and file.name != "metrics.json")
    return " ".join(f"{file.relative_to(path)} {content_hash(file)}" for file in files)


def after_kill(place: Place, reference: Mapping[str, str], before: State) -> list[str]:
    """What is wrong with what a killed run left behind, one line each."""
    return [
        *_half_written(place, reference),
        *_unreadable(place.workspace.work),
        *_wrong_champions(place, before),
    ]


def after_run(place: Place, reference: Mapping[str, str], before: State, moves: int) -> list[str]:
    """What is wrong after the run that followed a kill.

    Args:
        place: where.
        reference: fingerprint of the uninterrupted run.
        before: of the registry before the killed run.
        moves: of champions that both runs together had to make.
    """
    registry, workspace = place.registry, place.workspace
    found = fingerprint(workspace)
    wrong = [
        f"{name}: differs from the uninterrupted run's" for name in reference if found.get(name) != reference[name]
    ]
    wrong += [f"{name}: the uninterrupted run has none" for name in found.keys() - reference.keys()]
    wrong += _unreadable(workspace.work)
    wrong += registry.verify()
    now = state_of(place)
    if now.committed - before.committed != moves:
        wrong.append(f"champions moved {now.committed - before.committed} times, expected {moves}")
    made = yaml.safe_load(workspace.dvc_lock.read_text())["stages"]
    for name, version in now.champions.items():
        if version is None:
            wrong.append(f"{name}: no champion")
            continue
        content = str(made[name.removeprefix(f"{FAMILY}-")]["outs"][0]["md5"])
        if registry.client.get_model_version(name, str(version)).tags.get(CONTENT) != content:
            wrong.append(f"{name}: champion {version} was not made from this run's model")
    return [*wrong, *_still_running(place)]


def _half_written(place: Place, reference: Mapping[str, str]) -> Iterator[str]:
    try:
        found = fingerprint(place.workspace)
    except ValueError as error:
        yield f"metrics are half-written: {error}"
        return
    for name, value in found.items():
        if value != reference[name]:
            yield f"{name}: neither absent nor whole"


def _unreadable(work: Path) -> Iterator[str]:
    """Files under their final names that cannot be read to their end."""
    for file in sorted(work.rglob("*")):
        if any(part.startswith(".") for part in file.relative_to(work).parts) or not file.is_file():
            continue
        try:
            if file.suffix == ".json":
                json.loads(file.read_text())
            elif file.suffix == ".parquet":
                pq.read_table(file)
        except (OSError, ValueError) as error:
            yield f"{file.relative_to(work)}: cannot be read: {error}"


def _wrong_champions(place: Place, before: State) -> Iterator[str]:
    """Champions that moved although the log has not committed to it, or a log that does not verify."""
    registry = place.registry
    try:
        entries = registry.ledger.entries()
    except GateError as error:
        yield str(error)
        return
    logged, intent = final_champions(entries), pending_intent(entries)
    for name, version in registry.champions(FAMILY).items():
        allowed = {logged.get(name), *(intent.body["moves"].get(name, ()) if intent is not None else ())}
        if version not in allowed:
            yield f"{name}: champion {version}, the log allows {sorted(map(str, allowed))}"
    if intent is None and registry.verify():
        yield from registry.verify()
    committed = sum(move.status == "committed" for move in transitions(entries))
    if committed not in (before.committed, before.committed + 1):
        yield f"champions moved {committed - before.committed} times in one run"


def _still_running(place: Place) -> Iterator[str]:
    """Runs of MLflow that nobody writes any more and that say they go on."""
    client = place.registry.client
    experiment = client.get_experiment_by_name(FAMILY)
    for run in client.search_runs([experiment.experiment_id] if experiment else [], "attributes.status = 'RUNNING'"):
        yield f"MLflow's run {run.info.run_name} is left RUNNING"
