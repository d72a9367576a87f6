"""The gates' questions put to a workspace: read the evidence, call the pure decision, return it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perfusion.config import Params
from perfusion.errors import GateError
from perfusion.governance import Decision, load_gate, promotion_gate, reward_gate
from perfusion.governance.data_gate import data_gate
from tasks.publishing import Registered
from tasks.registry import open_registry
from tasks.workspace import Workspace

if TYPE_CHECKING:
    from perfusion.evaluation.champion import ChampionEvidence

__all__ = ["Answer", "Question", "data", "load", "promotion", "remembered", "reward", "said_of_champions"]

Question = Callable[[Workspace, Params, Registered | None], Decision]
COST_PICTURES = 4  # of each prompt, to measure costs


@dataclass(frozen=True)
class Answer:
    """A gate's decision and where it was made.

    Attributes:
        decision: of the gate.
        run_id: the MLflow run in which the gate was asked; None where that was not recorded.
    """

    decision: Decision
    run_id: str | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: the decision's, and the run."""
        return {**self.decision.to_dict(), "run_id": self.run_id}


def data(workspace: Workspace, params: Params, registered: Registered | None) -> Decision:
    """Is this dataset fit to train on?"""
    report = workspace.metrics("validate")
    return data_gate(json.loads(report.read_text()), params.data).judging(
        content=_content(workspace), report_sha256=_digest(report)
    )


def reward(workspace: Workspace, params: Params, registered: Registered | None) -> Decision:
    """Does personal information help?"""
    import pandas as pd

    file = workspace.reward_evaluation / "groups.parquet"
    decision = reward_gate(pd.read_parquet(file), params.gates, params.seed)
    return decision.judging(content=_content(workspace), groups_sha256=_digest(file))


def remembered(workspace: Workspace, params: Params, registered: Registered | None, gate: str) -> Answer | None:
    """What the gate said of these very versions, if thresholds, champions and every byte are still the same."""
    if registered is None or not registered.known:
        return None
    registry = open_registry(workspace.tracking_uri, workspace.mlruns)
    evidence = registry.evidence_for(registered.versions)
    if evidence is None or evidence.expected != registered.champions:
        return None
    now = Decision(gate, "inconclusive", thresholds=params.gates.model_dump()).thresholds
    said = [decision for decision in evidence.decisions if decision.gate == gate and decision.thresholds == now]
    if said:
        for name, version in registered.versions.items():
            registry.files(name, version)
    return Answer(said[0], evidence.runs.get(gate)) if said else None


def said_of_champions(workspace: Workspace, registered: Registered) -> dict[str, Answer]:
    """What the gates said, by name, when the versions that serve now were judged; {} where nothing was recorded."""
    evidence = open_registry(workspace.tracking_uri, workspace.mlruns).evidence_for(registered.versions)
    decisions = evidence.decisions if evidence is not None else ()
    return {said.gate: Answer(said, evidence.runs.get(said.gate)) for said in decisions if evidence is not None}


def load(workspace: Workspace, params: Params, registered: Registered | None) -> Decision:
    """Does each registered artifact load in a clean process and give the numbers that the evaluation measured?"""
    from tasks.evaluated import measured_pictures, measured_scores, numbers_of
    from tasks.models.clean_process import load_in_clean_process

    assert registered is not None
    measured = {"reward": measured_scores(workspace), "generator": measured_pictures(workspace, params)}
    evaluated = {role: asked.numbers for role, asked in measured.items()}
    reloaded = {}
    for role, asked in measured.items():
        name = f"{params.name}-{role}"
        uri = f"models:/{name}/{registered.versions[name]}"
        try:
            answer = load_in_clean_process(uri, asked.request, workspace.tracking_uri, asked.params)
        except GateError as error:
            decision = load_gate(evaluated, None, params.gates, str(error))
            return decision.judging(versions=registered.versions)
        reloaded[role] = numbers_of(answer)
    return load_gate(evaluated, reloaded, params.gates).judging(versions=registered.versions)


def promotion(workspace: Workspace, params: Params, registered: Registered | None) -> Decision:
    """Is the challenger better than the champion now? Without a champion the floors alone are asked."""
    import pandas as pd

    assert registered is not None
    costs = _costs(workspace, params, registered)
    pictures = workspace.generator_evaluation / "pictures.parquet"
    inputs = {
        "challenger": registered.versions, "champion": registered.champions, "content": _content(workspace),
        "pictures_sha256": _digest(pictures),
        "groups_sha256": _digest(workspace.reward_evaluation / "groups.parquet"),
    }  # fmt: skip
    if None in registered.champions.values():
        found = promotion_gate(
            pd.read_parquet(pictures), None, params.gates, costs=costs["challenger"], seed=params.seed
        )
        return found.judging(**inputs)
    evidence = _against_champion(workspace, params, registered)
    return promotion_gate(
        evidence.challenger, evidence.champion, params.gates, challenger_cold=evidence.challenger_cold,
        champion_cold=evidence.champion_cold, challenger_reward=evidence.challenger_reward,
        champion_reward=evidence.champion_reward, costs=costs["challenger"], champion_costs=costs["champion"],
        seed=params.seed,
    ).judging(**inputs)  # fmt: skip


def _against_champion(workspace: Workspace, params: Params, registered: Registered) -> ChampionEvidence:
    """Today's champion, drawn and judged on the challenger's items; its artifacts are read from the registry."""
    from perfusion.evaluation.champion import champion_evidence
    from tasks.registry.artifacts import local_folder
    from tasks.tracking import open_store

    client = open_store(workspace)
    champion = {}
    for role in ("reward", "generator"):
        version = registered.champions[f"{params.name}-{role}"]
        assert version is not None
        champion[role] = local_folder(client, f"{params.name}-{role}", version) / "artifacts" / role
    return champion_evidence(
        workspace.data, workspace.split, workspace.clip, workspace.pickscore, workspace.reward,
        workspace.reward_evaluation, workspace.generator, workspace.generator_evaluation, champion["reward"],
        champion["generator"], image_size=params.data.image_size, twin=params.clip.path is None, config=params.evaluate,
        seed=params.seed,
    )  # fmt: skip


def _costs(workspace: Workspace, params: Params, registered: Registered) -> dict[str, dict[str, float]]:
    """What challenger and champion cost, measured side by side.

    Without a champion and without a budget nothing is asked of costs: then they are what the evaluation saw, whose
    memory is that of all its models together.
    """
    from tasks.evaluated import measured_pictures
    from tasks.models.costs import serving_costs

    name = f"{params.name}-generator"
    versions = {"challenger": registered.versions[name], "champion": registered.champions[name]}
    models = {who: f"models:/{name}/{version}" for who, version in versions.items() if version is not None}
    budgets = (params.gates.max_seconds_per_picture, params.gates.max_memory_mib)
    if len(models) == 1 and budgets == (None, None):
        return {"challenger": json.loads(workspace.metrics("evaluate-generator").read_text())["costs"]}
    request = measured_pictures(workspace, params).request.assign(n=COST_PICTURES)
    return serving_costs(models, request, workspace.tracking_uri)


def _content(workspace: Workspace) -> str | None:
    """The dataset's content hash, as the flow has checked it; None where no flow ran."""
    if not workspace.verified_data.exists():
        return None
    return str(json.loads(workspace.verified_data.read_text())["content_hash"])


def _digest(file: Path) -> str:
    """SHA-256 of a file that a gate read."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
