"""The champion against the world it serves: fresh picks read and judged, outcomes read and judged, a rollback made.

Each step reads, calls the pure decision and returns a value; only `roll_back` acts.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from perfusion.config import Params
from perfusion.data import read_groups, read_users
from perfusion.data.charts import bar_chart
from perfusion.errors import GateError
from perfusion.governance import Decision
from perfusion.governance.monitor import BINS, monitor_gate, outcomes_gate
from perfusion.governance.shift import Shift, shifts
from perfusion.governance.snapshot import Snapshot
from tasks.monitoring_snapshot import snapshot_of_dataset, snapshot_of_version
from tasks.registry import CHAMPION, Registry, Transition
from tasks.registry.artifacts import local_folder
from tasks.validation import validate

__all__ = [
    "Evidence", "Fresh", "champion_of", "judge_outcomes", "judge_picks", "keep", "read_fresh", "roll_back",
    "rolled_back_for", "snapshot_for",
]  # fmt: skip


@dataclass(frozen=True)
class Fresh:
    """Records that came in after the training.

    Attributes:
        data: the dataset's folder.
        users, groups: its valid rows.
        quarantined: group records that broke a rule of the layout, and are not counted.
    """

    data: Path
    users: pd.DataFrame
    groups: pd.DataFrame
    quarantined: int


@dataclass(frozen=True)
class Evidence:
    """What a decision about fresh picks rests on.

    Attributes:
        decision: of the gate "monitor".
        moved: every variable, then and now.
        reliability: one row a bin of predicted shares: predicted, picked, candidates.
    """

    decision: Decision
    moved: list[Shift]
    reliability: pd.DataFrame


def champion_of(registry: Registry, params: Params) -> int:
    """The version of the reward model that serves.

    Raises:
        GateError: there is none.
    """
    version = registry.version(f"{params.name}-reward", CHAMPION)
    if version is None:
        raise GateError(f"{params.name}-reward: no champion yet, nothing to watch; `perfusion retrain` makes one")
    return version


def snapshot_for(registry: Registry, params: Params, reference: Path | None) -> Snapshot:
    """The champion's own snapshot, or that of a dataset named by hand."""
    if reference is None:
        return snapshot_of_version(registry.client, f"{params.name}-reward", champion_of(registry, params))
    found = read_valid(reference, params)
    return snapshot_of_dataset(found.users, found.groups)


def read_valid(data: Path, params: Params) -> Fresh:
    """A dataset's rows that pass the rules of the layout, as a retraining would take them."""
    with tempfile.TemporaryDirectory(prefix="perfusion-monitor-") as folder:
        valid = Path(folder) / "valid"
        report = validate(data, params.data, None, valid, Path(folder) / "quarantine")
        users, groups = read_users(valid / "users.parquet"), read_groups(valid / "groups.parquet")
    return Fresh(data, users, groups, report["quarantined"])


def read_fresh(data: Path, params: Params, snapshot: Snapshot, everything: bool) -> Fresh:
    """The records of a dataset that are newer than the snapshot, or all of them."""
    found = read_valid(data, params)
    if everything:
        return found
    newer = found.groups[found.groups["created_at"] > snapshot.latest].reset_index(drop=True)
    return Fresh(data, found.users, newer, found.quarantined)


def judge_picks(registry: Registry, params: Params, snapshot: Snapshot, fresh: Fresh) -> Evidence:
    """Are fresh picks like those the champion was trained on, and does it still predict them?"""
    from perfusion.evaluation.fresh import score_fresh  # here: it imports torch

    name = f"{params.name}-reward"
    folder = local_folder(registry.client, name, champion_of(registry, params)) / "artifacts" / "reward"
    sample = fresh.groups
    if len(sample) > params.monitor.max_groups:
        order = sample["record_id"].map(lambda record: zlib.crc32(record.encode()))
        sample = sample[order.rank(method="first") <= params.monitor.max_groups]
    users = _with_all_features(fresh.users, snapshot)
    ranked, candidates = score_fresh(fresh.data, users, sample, folder, params.data.image_size)
    moved = [] if fresh.groups.empty else shifts(snapshot, fresh.users, fresh.groups, params.monitor)
    decision = monitor_gate(
        snapshot, fresh.users, fresh.groups, moved, ranked, candidates, params.monitor, params.gates, params.seed
    )
    return Evidence(decision, moved, _reliability(candidates))


def judge_outcomes(events: Path, params: Params, treated: str, control: str) -> tuple[Decision, dict[str, Any]]:
    """Did returns rise against the control arm of the same shops? The decision, and the whole report."""
    from perfusion.evaluation.outcomes import evaluate_outcomes

    gates = params.gates
    report, _, _ = evaluate_outcomes(
        events, treated, control, confidence=gates.confidence, resamples=gates.resamples, seed=params.seed,
        min_stores=gates.min_users,
    )  # fmt: skip
    report["events"] = hashlib.sha256(events.read_bytes()).hexdigest()
    return outcomes_gate(report, params.monitor), report


def rolled_back_for(registry: Registry, params: Params, decision: Decision) -> Transition | None:
    """The rollback that the same file of outcomes has caused already: it says nothing of the champion after it."""
    events = decision.statistics["events"]
    for transition in registry.history(params.name):
        told = [known.statistics.get("events") for known in transition.decisions if known.gate == "outcomes"]
        if transition.action == "rollback" and transition.status == "committed" and events in told:
            return transition
    return None


def roll_back(
    registry: Registry, params: Params, decision: Decision, run_id: str, expected: dict[str, int | None]
) -> Transition:
    """Return to the champions before these; the decision, and the run with its evidence, go into the log.

    Raises:
        GateError: the decision does not ask for it, its outcomes have caused a rollback before, the champions are not
            the expected ones any more, there is no earlier champion, or its bytes changed.
    """
    if decision.verdict != "fail":
        raise GateError(f"no rollback: the {decision.gate} gate says {decision.verdict}")
    if (done := rolled_back_for(registry, params, decision)) is not None:
        raise GateError(f"no rollback: these outcomes caused #{done.number} before; give those of the champion since")
    reason = f"{decision.reasons[0]} (monitor, MLflow run {run_id})"
    return registry.rollback(params.name, reason=reason, expected=expected, decisions=[decision])


def keep(folder: Path, evidence: Evidence | None, outcomes: tuple[Decision, dict[str, Any]] | None) -> list[Decision]:
    """Write decisions, tables and charts of a monitor's run into a folder; the decisions."""
    folder.mkdir(parents=True, exist_ok=True)
    decisions = []
    if evidence is not None:
        decisions.append(evidence.decision)
        table = pd.DataFrame([row.to_dict() for row in evidence.moved])
        table.to_csv(folder / "drift.csv", index=False)
        evidence.reliability.to_csv(folder / "reliability.csv", index=False)
        if len(table):
            (folder / "drift.png").write_bytes(_drift_chart(evidence.moved))
        if len(evidence.reliability):
            (folder / "reliability.png").write_bytes(_reliability_chart(evidence.reliability))
    if outcomes is not None:
        decisions.append(outcomes[0])
        (folder / "outcomes.json").write_text(json.dumps(outcomes[1], indent=1))
    for decision in decisions:
        (folder / f"{decision.gate}.json").write_text(json.dumps(decision.to_dict(), indent=1))
    return decisions


def _with_all_features(users: pd.DataFrame, snapshot: Snapshot) -> pd.DataFrame:
    """The users, with features that the delivery lacks as unknown: the gate tells of them, the model does without."""
    kinds = snapshot.profile["variables"]
    absent = [name for name in snapshot.profile["features"] if name not in users]
    empty = {"number": float("nan"), "category": None}
    return users.assign(**{name: empty[kinds[name]["kind"]] for name in absent})


def _reliability(candidates: pd.DataFrame) -> pd.DataFrame:
    """Predicted and true share in equally filled bins of the predicted one."""
    if candidates.empty:
        return pd.DataFrame(columns=["predicted", "picked", "candidates"])
    bins = (candidates["predicted"].rank(method="first") - 1) * BINS // len(candidates)
    means = candidates.groupby(bins)[["predicted", "picked"]].mean()
    return means.assign(candidates=candidates.groupby(bins).size()).reset_index(drop=True)


def _drift_chart(moved: list[Shift]) -> bytes:
    """Each variable's shift as a multiple of what it may be."""
    sizes = [float("nan") if row.size is None else min(row.size / row.limit, 10.0) for row in moved]
    labels = [f"{row.variable}{' *' if row.shifted else ''}" for row in moved]
    title = "Shift since the training, 1 is the limit (cut at 10; * is an alarm)"
    return bar_chart(title, labels, sizes, line=1.0, flat=True)


def _reliability_chart(reliability: pd.DataFrame) -> bytes:
    """True shares as bars, predicted ones as dots."""
    labels = [f"bin {number + 1}" for number in range(len(reliability))]
    marks = ("predicted", reliability["predicted"].tolist())
    return bar_chart("Share of picks, by what was predicted", labels, reliability["picked"].tolist(), marks=marks)
