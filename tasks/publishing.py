"""What a retraining does to the world: challengers, champions, the report, the evidence kept with the run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from perfusion.config import Params
from perfusion.governance import Decision
from tasks.registry import Evidence, Registry, open_registry
from tasks.reporting import write_report
from tasks.stage_run import stages_of
from tasks.tracking import FlowRecord
from tasks.validation import accept as accept_profile
from tasks.workspace import Workspace

__all__ = ["Registered", "accept", "forget_unreached", "promote", "register", "remember", "report"]

CONTENT = "content_md5"  # tag of a version: DVC's hash of the folder it was made from


@dataclass(frozen=True)
class Registered:
    """The registry's versions of this workspace's models.

    Attributes:
        versions: registered name -> version.
        champions: the champions at that moment (None: there is none), with which the gates compare.
        known: both versions were there before this run.
    """

    versions: dict[str, int]
    champions: dict[str, int | None]
    known: bool


def accept(workspace: Workspace) -> None:
    """Remember the data that passed the data gate as the baseline of the next run's drift."""
    accept_profile(workspace.valid, workspace.accepted)


def forget_unreached(workspace: Workspace, reached: Collection[str]) -> None:
    """Remove what an earlier run left of stages that this run did not come to.

    Nobody shall take it for this run's. DVC gives it back from its cache when a later run comes to it unchanged.
    """
    for stage, entry in stages_of(workspace.dvc_yaml).items():
        if stage not in reached:
            for path in [*entry["outs"], *entry["metrics"]]:
                _remove(workspace.root / path)
            workspace.log(stage).unlink(missing_ok=True)


def register(workspace: Workspace, params: Params, record: FlowRecord) -> Registered:
    """Find the versions of the registry made from exactly these models, or make them, as challengers."""
    registry = open_registry(workspace.tracking_uri, workspace.mlruns)
    made = _made_from(workspace)
    names = {role: f"{params.name}-{role}" for role in ("reward", "generator")}
    found = {name: _version_of(registry, name, made[role]) for role, name in names.items()}
    users = workspace.split / "users.parquet"
    known = None not in found.values()
    if not known or found != registry.champions(params.name):
        _keep_origin(workspace, record)
    reward = found[names["reward"]]
    if not known:
        from tasks.models.artifact import log_generator, log_reward  # here: it imports torch and diffusers
    if reward is None:
        run_id = record.model_run("reward", "reward")
        reward = log_reward(registry, run_id, params.name, workspace.reward, users)
        _tag(registry, names["reward"], reward, made["reward"])
    generator = found[names["generator"]]
    if generator is None:
        run_id = record.model_run("generator", "generator")
        generator = log_generator(registry, run_id, params.name, workspace.generator, users, judged_by=reward)
        _tag(registry, names["generator"], generator, made["generator"])
    versions = {names["reward"]: reward, names["generator"]: generator}
    record.tags({f"version.{name}": str(version) for name, version in versions.items()})
    return Registered(versions, registry.champions(params.name), known)


def promote(workspace: Workspace, registered: Registered, decisions: Sequence[Decision]) -> None:
    """Move the champion aliases, if the champions are still those that the gates compared with."""
    registry = open_registry(workspace.tracking_uri, workspace.mlruns)
    expected = registered.champions
    reason = f"retraining in {workspace.root.name}"
    registry.promote(registered.versions, expected=expected, decisions=decisions, reason=reason)


def remember(
    workspace: Workspace, registered: Registered, decisions: Sequence[Decision], runs: Mapping[str, str]
) -> None:  # fmt: skip
    """Keep what the gates said, and in which MLflow runs, with the versions they judged, to tell and act on later."""
    registry = open_registry(workspace.tracking_uri, workspace.mlruns)
    registry.record_evidence(Evidence(registered.versions, registered.champions, tuple(decisions), dict(runs)))


def report(workspace: Workspace, record: FlowRecord) -> Path:
    """Write the page of this run and keep it, with all evidence, in the run's artifacts."""
    page = write_report(workspace)
    record.evidence()
    return page


def _keep_origin(workspace: Workspace, record: FlowRecord) -> None:
    """Keep what it takes to restore a version before there is one: whatever becomes a champion can be restored."""
    from tasks.dvc_cache import keep_data  # here: DVC is slow to import

    data = next(dep["md5"] for dep in _locked_stages(workspace)["validate"]["deps"] if dep["path"] == "data")
    keep_data(workspace, str(data))
    record.origin(str(json.loads(workspace.verified_data.read_text())["content_hash"]))


def _locked_stages(workspace: Workspace) -> dict[str, Any]:
    """The stages of dvc.lock."""
    return dict(yaml.safe_load(workspace.dvc_lock.read_text())["stages"])


def _made_from(workspace: Workspace) -> dict[str, str]:
    """DVC's hashes of the folders that become registered models."""
    stages = _locked_stages(workspace)
    return {role: str(stages[role]["outs"][0]["md5"]) for role in ("reward", "generator")}


def _version_of(registry: Registry, name: str, content: str) -> int | None:
    """The newest version of `name` made from this content."""
    versions = registry.client.search_model_versions(f"name = '{name}'")
    same = [int(version.version) for version in versions if version.tags.get(CONTENT) == content]
    return max(same, default=None)


def _tag(registry: Registry, name: str, version: int, content: str) -> None:
    registry.client.set_model_version_tag(name, str(version), CONTENT, content)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
