"""Which model serves: every promotion and rollback goes through `Registry._transition`, under one lock.

A transition may move several models at once (a generator and the reward model that judged it). Its steps: lock, finish
or undo what a crash left, check (evidence, expected champion, bytes), write the intent, set the aliases, write the
commit. A crash before the first alias moved is undone, a crash after it is completed, by whoever comes next.
"""

from __future__ import annotations

import socket
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
from filelock import FileLock, Timeout
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from perfusion.errors import GateError
from perfusion.governance import Decision
from tasks.registry.artifacts import local_folder
from tasks.registry.ledger import Entry, Ledger
from tasks.registry.manifest import changed_files, file_hashes, manifest_digest
from tasks.registry.transitions import (
    ROLES,
    Evidence,
    Transition,
    family_of,
    final_champions,
    pending_intent,
    rollback_target,
    transition_of,
    transitions,
)

__all__ = ["CHALLENGER", "CHAMPION", "JUDGED_BY", "REQUIRED_GATES", "Registry", "open_registry"]

CHAMPION, CHALLENGER = "champion", "challenger"
JUDGED_BY = "judged_by_reward_version"  # tag of a generator's version
_HEAD = "promotion_log_head"  # tag of a registered model: seq:hash of the log's last entry about it
REQUIRED_GATES = {"reward": ("reward", "load"), "generator": ("promotion", "load")}

Versions = Mapping[str, int | None]


def open_registry(uri: str, folder: Path, timeout: float = 60.0) -> Registry:
    """The registry of one MLflow store.

    Args:
        uri: tracking and registry URI, e.g. "sqlite:////path/mlruns/mlflow.db".
        folder: holds promotions.jsonl (the log) and promotions.lock.
        timeout: seconds to wait for another transition to end.
    """
    return Registry(MlflowClient(tracking_uri=uri, registry_uri=uri), folder, timeout)


class Registry:
    """Promotion, rollback and history over one MLflow store."""

    def __init__(self, client: MlflowClient, folder: Path, timeout: float = 60.0) -> None:
        self.client = client
        self.ledger = Ledger(folder / "promotions.jsonl")
        self._lock = FileLock(folder / "promotions.lock", timeout=timeout)
        self._timeout = timeout

    # -- reading -------------------------------------------------------------------------------------------------

    def version(self, name: str, alias: str = CHAMPION) -> int | None:
        """The version that `alias` of model `name` points to; None when the model or the alias does not exist."""
        return self._aliases(name).get(alias)

    def champions(self, family: str) -> dict[str, int | None]:
        """The champion of each of a family's models, by registered name."""
        return {name: self.version(name) for name in (f"{family}-{role}" for role in ROLES)}

    def history(self, name: str | None = None) -> list[Transition]:
        """Every transition of a model, a family, or (None) of the whole store, oldest first."""
        told = transitions(self.ledger.entries())
        return [t for t in told if name is None or any(name in (model, family_of(model)) for model in t.moves)]

    def files(self, name: str, version: int) -> dict[str, str]:
        """A version's files with their SHA-256, after checking each against the manifest of its registration.

        Raises:
            GateError: the version has no manifest, its folder is gone, or a file is missing, extra or different.
        """
        recorded = self._manifest(name, version)
        try:
            found = file_hashes(local_folder(self.client, name, version))
        except FileNotFoundError as error:
            raise GateError(f"{name} version {version}: {error}; restore the artifact store from a backup") from None
        if problems := changed_files(recorded, found):
            shown = "\n  ".join(problems[:10] + ([f"and {len(problems) - 10} more"] if len(problems) > 10 else []))
            raise GateError(
                f"{name} version {version}: its files are not those that were registered:\n  {shown}\n"
                "restore them from a backup of the artifact store, or choose another version"
            )
        return found

    def verify(self) -> list[str]:
        """What is wrong with log and aliases, one line each; empty when all is well. Raises nothing about contents."""
        try:
            models = self.client.search_registered_models()
            anchors = {model.name: model.tags[_HEAD] for model in models if _HEAD in model.tags}
            entries = self.ledger.entries()
        except GateError as error:
            return [str(error)]
        known = {f"{entry.seq}:{entry.hash}" for entry in entries}
        problems = [
            f"{self.ledger.path}: entry {anchor.split(':')[0]}, which {name} was last moved by, is not in the log: "
            "lines were cut off its end; restore the file from a backup"
            for name, anchor in anchors.items()
            if anchor not in known
        ]
        if (pending := pending_intent(entries)) is not None:
            action = pending.body["action"]
            problems.append(f"entry {pending.seq}: this {action} was interrupted; the next transition resolves it")
            return problems
        for name, logged in final_champions(entries).items():
            if (found := self.version(name)) != logged:
                problems.append(_drift(name, found, logged))
        return problems

    def evidence_for(self, versions: Mapping[str, int]) -> Evidence | None:
        """The latest evidence recorded for exactly these versions."""
        for entry in reversed(self.ledger.entries()):
            if entry.event == "evidence" and entry.body["versions"] == dict(versions):
                decisions = tuple(Decision.from_dict(record) for record in entry.body["decisions"])
                return Evidence(dict(versions), entry.body["expected"], decisions, entry.body.get("runs", {}))
        return None

    # -- writing -------------------------------------------------------------------------------------------------

    def register(self, name: str, version: int) -> dict[str, str]:
        """Take a version into the registry as challenger: its manifest goes into the log. Returns file -> SHA-256."""
        hashes = file_hashes(local_folder(self.client, name, version))
        if not hashes:
            raise GateError(f"{name} version {version}: its folder holds no file; log the model again")
        with self._locked():
            body = {"name": name, "version": version, "files": hashes, "by": _who()}
            entry = self.ledger.append("register", body)
            self.client.set_model_version_tag(name, str(version), "manifest_sha256", manifest_digest(hashes))
            self.client.set_registered_model_alias(name, CHALLENGER, str(version))
            self._anchor([name], entry)
        return hashes

    def record_evidence(self, evidence: Evidence) -> None:
        """Keep what the gates said, so that `promote` can be called later and elsewhere on the strength of it."""
        with self._locked():
            self.ledger.append(
                "evidence",
                {
                    "versions": evidence.versions,
                    "expected": evidence.expected,
                    "decisions": [decision.to_dict() for decision in evidence.decisions],
                    "runs": evidence.runs,
                },
            )
            for name, version in evidence.versions.items():
                for decision in evidence.decisions:
                    self.client.set_model_version_tag(name, str(version), f"gate.{decision.gate}", decision.verdict)

    def promote(
        self, versions: Mapping[str, int], *, expected: Versions, decisions: Sequence[Decision], reason: str = "",
        force: bool = False,
    ) -> Transition:  # fmt: skip
        """Make these versions the champions, all or none.

        Args:
            versions: registered name -> version, e.g. {"perfusion-reward": 3, "perfusion-generator": 3}. One that is
                the champion already stays; there must be one that is not.
            expected: registered name -> champion that the gates compared against; a champion moved since is refused.
            decisions: the gates' decisions; each must have passed, and a reward needs "reward" and "load", a generator
                "promotion" and "load".
            reason: kept in the log; required with `force`.
            force: promote without passed decisions, and adopt an alias that was moved outside this function.

        Raises:
            GateError: a gate did not pass or is missing, the champion moved, a file changed, a partner does not match.
        """
        if force and not reason.strip():
            raise GateError("a forced promotion needs a reason: it is kept in the log for whoever asks later")
        if not versions:
            raise GateError("nothing to promote: name at least one registered model and version")
        if not force:
            _require_passed(versions, decisions)
        with self._locked():
            return self._transition("promote", versions, expected, decisions, reason, force)

    def rollback(
        self, name: str, to: int | None = None, reason: str = "", expected: Versions | None = None
    ) -> Transition:
        """Return to an earlier champion, with its partner, after verifying every byte of it.

        Args:
            name: a registered model, or a family ("perfusion"): then all its models go back one transition.
            to: version of `name` (of the generator, for a family) that was champion once; None: the one before.
            reason: kept in the log.
            expected: refuse when the champions are not these; None takes them as they are.

        Raises:
            GateError: there is no such earlier champion, or its bytes changed.
        """
        with self._locked():
            family = family_of(name)
            target = rollback_target(self.history(family), name, to)
            current = self.champions(family)
            moves = {model: version for model, version in target.items() if current.get(model) != version}
            return self._transition("rollback", moves, current if expected is None else expected, (), reason, False)

    def recover(self) -> Transition | None:
        """Finish or undo the transition that a crash interrupted; None when there was none."""
        with self._locked(recover=False):
            return self._recover()

    # -- one transition ------------------------------------------------------------------------------------------

    def _transition(
        self, action: str, versions: Versions, expected: Versions, decisions: Sequence[Decision], reason: str,
        forced: bool,
    ) -> Transition:  # fmt: skip
        """The only place that moves a champion alias; the caller holds the lock."""
        self._check_champions(versions, expected, forced)
        versions = {name: version for name, version in versions.items() if version != expected[name]}
        if not versions:
            raise GateError(f"{_named(expected)}: champion already; nothing new to {action}")
        self._check_partners(versions, action)
        files = {name: self.files(name, version) for name, version in versions.items() if version is not None}
        body = {
            "id": uuid.uuid4().hex,
            "action": action,
            "moves": {name: [expected[name], version] for name, version in sorted(versions.items())},
            "decisions": [decision.to_dict() for decision in decisions],
            "reason": reason,
            "forced": forced,
            "by": _who(),
        }
        intent = self.ledger.append("intent", body)
        try:
            self._finish(intent)
        except MlflowException as error:
            raise GateError(
                f"{action} of {_named(versions)} was interrupted: MLflow's store failed ({error.message}); "
                "nothing is lost: the next transition completes or undoes it"
            ) from error
        return transition_of(intent, "committed", files)

    def _finish(self, intent: Entry) -> None:
        """Set every alias of an intent and write its commit. Repeating it changes nothing more."""
        stood = {name: self._aliases(name) for name in intent.body["moves"]}
        for name, (_, after) in intent.body["moves"].items():
            if stood[name].get(CHAMPION) == after:
                continue
            if after is None:
                self.client.delete_registered_model_alias(name, CHAMPION)
            else:
                self.client.set_registered_model_alias(name, CHAMPION, str(after))
        commit = self.ledger.append("commit", {"id": intent.body["id"]})
        self._anchor(intent.body["moves"], commit)
        for name, (_, after) in intent.body["moves"].items():
            if after is not None and stood[name].get(CHALLENGER) == after:
                self.client.delete_registered_model_alias(name, CHALLENGER)

    def _recover(self) -> Transition | None:
        intent = pending_intent(self.ledger.entries())
        if intent is None:
            return None
        found = {name: self.version(name) for name in intent.body["moves"]}
        foreign = {n: v for n, v in found.items() if v not in intent.body["moves"][n]}
        begun = any(found[name] == after for name, (_, after) in intent.body["moves"].items())
        if begun and not foreign:
            self._finish(intent)
            return transition_of(intent, "committed")
        note = f"aliases moved elsewhere meanwhile: {foreign}" if foreign else "interrupted before any alias moved"
        self.ledger.append("abort", {"id": intent.body["id"], "note": note})
        return transition_of(intent, "aborted")

    @contextmanager
    def _locked(self, recover: bool = True) -> Iterator[None]:
        Path(self._lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._lock:
                if recover:
                    self._recover()
                yield
        except Timeout:
            raise GateError(
                f"{self._lock.lock_file}: held by another promotion or rollback for {self._timeout:g} s; "
                "wait until it ends and try again (the lock goes with its process, deleting the file frees nothing)"
            ) from None

    def _check_champions(self, versions: Versions, expected: Versions, forced: bool) -> None:
        """Compare-and-swap: aliases must be what the caller saw, and what this log last made them."""
        logged = final_champions(self.ledger.entries())
        for name in versions:
            found = self.version(name)
            if name not in expected:
                raise GateError(f"{name}: no expected champion was given; pass the one that the gate compared with")
            if found != expected[name]:
                raise GateError(
                    f"{name}: stale: the gate compared with champion {_shown(expected[name])}, but the champion is "
                    f"{_shown(found)} now; run the gate again against it"
                )
            if found != logged.get(name):
                if not forced:
                    raise GateError(_drift(name, found, logged.get(name)))
                moves = {name: [logged.get(name), found]}
                body = {"id": uuid.uuid4().hex, "action": "adopt", "moves": moves, "decisions": [], "forced": True}
                self.ledger.append("adopt", {**body, "reason": "alias was moved outside this log", "by": _who()})

    def _check_partners(self, versions: Versions, action: str) -> None:
        """A generator serves beside the reward model that judged it."""
        for name, version in versions.items():
            if version is None or not name.endswith("-generator") or action == "rollback":
                continue
            judged = self.client.get_model_version(name, str(version)).tags.get(JUDGED_BY)
            reward = f"{family_of(name)}-reward"
            champion = versions.get(reward) or self.version(reward)
            if judged is not None and int(judged) != champion:
                raise GateError(
                    f"{name} version {version} was judged by {reward} version {judged}, but the champion beside it "
                    f"would be {_shown(champion)}; promote {reward} version {judged} together with it"
                )

    def _aliases(self, name: str) -> dict[str, int]:
        """Alias -> version of a model; {} when there is no such model."""
        try:
            aliases = self.client.get_registered_model(name).aliases
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return {}
            raise
        return {alias: int(version) for alias, version in aliases.items()}

    def _manifest(self, name: str, version: int) -> dict[str, str]:
        for entry in reversed(self.ledger.entries()):
            if entry.event == "register" and (entry.body["name"], entry.body["version"]) == (name, version):
                return dict(entry.body["files"])
        raise GateError(
            f"{name} version {version} has no manifest in {self.ledger.path}: it was not registered by this pipeline; "
            "register it with a retraining run"
        )

    def _anchor(self, names: Iterable[str], entry: Entry) -> None:
        for name in names:
            self.client.set_registered_model_tag(name, _HEAD, f"{entry.seq}:{entry.hash}")


def _require_passed(versions: Mapping[str, int], decisions: Sequence[Decision]) -> None:
    closed = [decision for decision in decisions if not decision.passed]
    if closed:
        told = [f"  {gate.gate} gate, {_against(gate)}" for gate in closed]
        raise GateError("\n".join([f"not promoted: {len(closed)} gate(s) did not pass", *told]))
    given = {decision.gate for decision in decisions}
    roles = [name.rpartition("-")[2] for name in versions]
    missing = sorted({gate for role in roles for gate in REQUIRED_GATES.get(role, ("promotion", "load"))} - given)
    if missing:
        raise GateError(
            f"not promoted: no decision of gate(s) {', '.join(missing)} for {_named(versions)}; "
            "a retraining run makes them, or force the promotion with a reason"
        )


def _against(decision: Decision) -> str:
    """A verdict with the reasons that speak against a pass, one a line."""
    reasons = [reason for reason in decision.reasons if not reason.startswith("pass")]
    return "\n    ".join([f"{decision.verdict}:", *(reasons or ["no reason given"])])


def _drift(name: str, found: int | None, logged: int | None) -> str:
    return (
        f"{name}: its champion alias is at {_shown(found)}, but the log last made it {_shown(logged)}: it was moved "
        "outside `perfusion promote` and `rollback`; set it back, or adopt it by a forced promotion with a reason"
    )


def _named(versions: Versions) -> str:
    return ", ".join(f"{name} version {_shown(version)}" for name, version in versions.items())


def _shown(version: int | None) -> str:
    return "none" if version is None else str(version)


def _who() -> str:
    process = psutil.Process()
    return f"{process.username()}@{socket.gethostname()} pid {process.pid}"
