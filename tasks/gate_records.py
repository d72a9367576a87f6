"""What the gates said, found again: of a run, of the last run, or of a registered version."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from perfusion.governance import Decision
from tasks.gates import Answer
from tasks.registry import open_registry
from tasks.reporting_record import ReportError
from tasks.reporting_sources import open_client, run_of, version_of
from tasks.reporting_words import GATES
from tasks.workspace import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["Found", "find_answers"]


@dataclass(frozen=True)
class Found:
    """What was found.

    Attributes:
        title: what was asked about, in words.
        answers: in the order of the graph.
    """

    title: str
    answers: tuple[Answer, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: `title`, and `gates`, name -> decision and the run in which it was asked."""
        return {"title": self.title, "gates": {answer.decision.gate: answer.to_dict() for answer in self.answers}}


def find_answers(workspace: Workspace, reference: str) -> Found:
    """Every gate's decision that `reference` leads to.

    Args:
        workspace: whose store and family of models are meant.
        reference: "last", an MLflow run id, or a version: "generator@3", "perfusion-reward@champion". Of a version,
            what the gates said last, which need not be in the run that made it.

    Raises:
        ReportError: there is no such run or version, or no gate was asked there.
    """
    client = open_client(workspace, reference)
    if (named := version_of(client, workspace, reference)) is not None:
        name, version = named
        evidence = open_registry(workspace.tracking_uri, workspace.mlruns).latest_evidence(name, version)
        if evidence is not None:
            answers = [Answer(decision, evidence.runs.get(decision.gate)) for decision in evidence.decisions]
            return _found(f"{name} version {version}", answers)
    run_id = run_of(client, workspace, reference)
    return _found(f"MLflow run {run_id}", _of_run(client, run_id))


def _found(title: str, answers: list[Answer]) -> Found:
    if not answers:
        raise ReportError(
            f"{title}: no gate was asked, or none of its answers was kept\n"
            "remedy: name a run of `perfusion retrain` (`perfusion gate explain last`), not of a benchmark or a stage"
        )
    order = list(GATES)
    return Found(title, tuple(sorted(answers, key=lambda answer: order.index(answer.decision.gate))))


def _of_run(client: MlflowClient, run_id: str) -> list[Answer]:
    """From gates/{gate}.json; runs of before there were any have all of them in metrics/gates.json."""
    with TemporaryDirectory(prefix="perfusion-gates-") as scratch:
        for folder, files in (("gates", "*.json"), ("metrics", "gates.json")):
            if client.list_artifacts(run_id, folder):
                kept = sorted(Path(client.download_artifacts(run_id, folder, scratch)).glob(files))
                records = [_read(file) for file in kept]
                if folder == "metrics":
                    records = [record for all_gates in records for record in all_gates.values()]
                if records:
                    return [_answer(record) for record in records]
    return []


def _read(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text()))
    except ValueError as error:
        raise ReportError(f"{file.name}: damaged ({error})\nremedy: run the gates again") from None


def _answer(record: Mapping[str, Any]) -> Answer:
    """A record of `Answer.to_dict`."""
    decision = {key: value for key, value in record.items() if key != "run_id"}
    return Answer(Decision.from_dict(decision), record.get("run_id"))
