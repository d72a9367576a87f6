"""Promotion and rollback: who may become champion, what is refused, what the log tells afterwards."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from perfusion.errors import GateError
from perfusion.governance import Decision
from tasks.registry import JUDGED_BY, Evidence, Registry, open_registry

REWARD, GENERATOR = "shop-reward", "shop-generator"
PASSED = [Decision(gate, "pass", ("fine",)) for gate in ("reward", "load", "promotion")]


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables made once; every test copies it."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}", f"sqlite:///{path}").search_registered_models()
    return path


@pytest.fixture
def registry(empty_store: Path, tmp_path: Path) -> Registry:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return open_registry(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path, timeout=5)


def make_version(registry: Registry, folder: Path, name: str, judged_by: int | None = None) -> int:
    """A registered version whose artifact is one small file that names it."""
    if not _exists(registry, name):
        registry.client.create_registered_model(name)
    files = folder / f"{name}-{len(list(folder.glob(name + '-*')))}"
    files.mkdir()
    (files / "model.safetensors").write_text(files.name)
    tags = {} if judged_by is None else {JUDGED_BY: str(judged_by)}
    version = int(registry.client.create_model_version(name, str(files), tags=tags).version)
    registry.register(name, version)
    return version


def _exists(registry: Registry, name: str) -> bool:
    return any(model.name == name for model in registry.client.search_registered_models())


def make_pair(registry: Registry, folder: Path) -> dict[str, int]:
    reward = make_version(registry, folder, REWARD)
    return {REWARD: reward, GENERATOR: make_version(registry, folder, GENERATOR, judged_by=reward)}


def promote_pair(registry: Registry, folder: Path) -> dict[str, int]:
    versions = make_pair(registry, folder)
    registry.promote(versions, expected=registry.champions("shop"), decisions=PASSED)
    return versions


def test_a_pair_becomes_champion_together_and_the_log_says_why(registry: Registry, tmp_path: Path) -> None:
    versions = make_pair(registry, tmp_path)
    done = registry.promote(versions, expected={REWARD: None, GENERATOR: None}, decisions=PASSED, reason="first")
    assert registry.champions("shop") == versions == {REWARD: 1, GENERATOR: 1}
    (told,) = registry.history("shop")
    assert told.moves == {REWARD: (None, 1), GENERATOR: (None, 1)}
    assert (told.status, told.reason, told.forced) == ("committed", "first", False)
    assert [decision.gate for decision in told.decisions] == ["reward", "load", "promotion"]
    assert done.files[REWARD].keys() == {"model.safetensors"}
    assert registry.version(REWARD, "challenger") is None
    assert registry.verify() == []


@pytest.mark.parametrize("verdict", ["fail", "inconclusive"])
def test_only_a_passed_gate_promotes(registry: Registry, tmp_path: Path, verdict: str) -> None:
    versions = make_pair(registry, tmp_path)
    decisions = [*PASSED[:2], Decision("promotion", verdict, ("a tie: interval [-0.1, 0.1] holds 0",))]  # type: ignore[arg-type]
    with pytest.raises(GateError, match=rf"promotion gate, {verdict}:\n    a tie"):
        registry.promote(versions, expected=registry.champions("shop"), decisions=decisions)
    assert registry.champions("shop") == {REWARD: None, GENERATOR: None}
    assert registry.history() == []


def test_a_missing_gate_is_not_a_passed_one(registry: Registry, tmp_path: Path) -> None:
    versions = make_pair(registry, tmp_path)
    with pytest.raises(GateError, match=r"no decision of gate\(s\) promotion"):
        registry.promote(versions, expected=registry.champions("shop"), decisions=PASSED[:2])


def test_force_needs_a_reason_and_is_recorded(registry: Registry, tmp_path: Path) -> None:
    versions = make_pair(registry, tmp_path)
    with pytest.raises(GateError, match="needs a reason"):
        registry.promote(versions, expected=registry.champions("shop"), decisions=[], force=True)
    registry.promote(versions, expected=registry.champions("shop"), decisions=[], force=True, reason="for a demo")
    (told,) = registry.history("shop")
    assert told.forced
    assert told.reason == "for a demo"


def test_a_gate_against_a_champion_that_moved_since_is_stale(registry: Registry, tmp_path: Path) -> None:
    seen = registry.champions("shop")
    promote_pair(registry, tmp_path)
    later = make_pair(registry, tmp_path)
    with pytest.raises(GateError, match="compared with champion none, but the champion is 1 now"):
        registry.promote(later, expected=seen, decisions=PASSED)
    assert registry.champions("shop") == {REWARD: 1, GENERATOR: 1}


def test_the_champion_is_not_promoted_again(registry: Registry, tmp_path: Path) -> None:
    versions = promote_pair(registry, tmp_path)
    with pytest.raises(GateError, match="champion already"):
        registry.promote(versions, expected=registry.champions("shop"), decisions=PASSED)


def test_a_generator_is_not_promoted_without_the_reward_that_judged_it(registry: Registry, tmp_path: Path) -> None:
    promote_pair(registry, tmp_path)
    later = make_pair(registry, tmp_path)
    with pytest.raises(GateError, match=r"judged by shop-reward version 2, but the champion beside it would be 1"):
        registry.promote({GENERATOR: later[GENERATOR]}, expected=registry.champions("shop"), decisions=PASSED)


def test_a_new_generator_may_join_the_reward_that_serves_already(registry: Registry, tmp_path: Path) -> None:
    first = promote_pair(registry, tmp_path)
    second = {REWARD: first[REWARD], GENERATOR: make_version(registry, tmp_path, GENERATOR, judged_by=first[REWARD])}
    done = registry.promote(second, expected=registry.champions("shop"), decisions=PASSED)
    assert done.moves == {GENERATOR: (1, 2)}
    assert registry.champions("shop") == second
    registry.rollback("shop")
    assert registry.champions("shop") == first


def test_rollback_returns_the_exact_bytes_of_both(registry: Registry, tmp_path: Path) -> None:
    first = promote_pair(registry, tmp_path)
    recorded = {name: registry.files(name, version) for name, version in first.items()}
    promote_pair(registry, tmp_path)
    done = registry.rollback("shop", reason="returns rose")
    assert registry.champions("shop") == first
    assert done.files == recorded
    assert registry.history("shop")[-1].reason == "returns rose"


def test_rolling_back_twice_goes_two_champions_back(registry: Registry, tmp_path: Path) -> None:
    pairs = [promote_pair(registry, tmp_path) for _ in range(3)]
    registry.rollback(GENERATOR)
    assert registry.champions("shop") == pairs[1]
    registry.rollback(GENERATOR)
    assert registry.champions("shop") == pairs[0]
    with pytest.raises(GateError, match="no earlier champion"):
        registry.rollback(GENERATOR)
    registry.rollback("shop", to=3)
    assert registry.champions("shop") == pairs[2]


def test_rollback_only_goes_to_what_was_champion(registry: Registry, tmp_path: Path) -> None:
    promote_pair(registry, tmp_path)
    make_pair(registry, tmp_path)
    with pytest.raises(GateError, match=r"version 2 was never champion; versions that were: \[1\]"):
        registry.rollback(GENERATOR, to=2)


@pytest.mark.parametrize("harm", ["different", "missing", "extra"])
def test_changed_files_are_neither_promoted_nor_rolled_back_to(registry: Registry, tmp_path: Path, harm: str) -> None:
    promote_pair(registry, tmp_path)
    promote_pair(registry, tmp_path)
    file = tmp_path / f"{REWARD}-0" / "model.safetensors"
    if harm == "different":
        file.write_text("forged")
    elif harm == "missing":
        file.unlink()
    else:
        file.with_name("extra.bin").write_text("x")
    with pytest.raises(GateError, match=f"{harm}: "):
        registry.rollback("shop")
    assert registry.champions("shop") == {REWARD: 2, GENERATOR: 2}


def test_an_alias_moved_by_other_hands_is_noticed_and_can_be_adopted(registry: Registry, tmp_path: Path) -> None:
    promote_pair(registry, tmp_path)
    second, third = make_pair(registry, tmp_path), make_pair(registry, tmp_path)
    registry.client.set_registered_model_alias(REWARD, "champion", "2")
    assert any("moved outside" in problem for problem in registry.verify())
    with pytest.raises(GateError, match="moved outside"):
        registry.promote(third, expected=registry.champions("shop"), decisions=PASSED)
    registry.promote(third, expected=registry.champions("shop"), decisions=PASSED, force=True, reason="set by hand")
    assert [t.action for t in registry.history()] == ["promote", "adopt", "promote"]
    assert registry.champions("shop") == third != second
    assert registry.verify() == []


def test_evidence_is_kept_for_a_later_promotion(registry: Registry, tmp_path: Path) -> None:
    versions = make_pair(registry, tmp_path)
    assert registry.evidence_for(versions) is None
    evidence = Evidence(versions, {REWARD: None, GENERATOR: None}, tuple(PASSED))
    registry.record_evidence(evidence)
    assert registry.evidence_for(versions) == evidence
    tags = registry.client.get_model_version(GENERATOR, "1").tags
    assert tags["gate.promotion"] == "pass"


def test_a_version_that_this_pipeline_did_not_register_is_refused(registry: Registry, tmp_path: Path) -> None:
    registry.client.create_registered_model(REWARD)
    registry.client.create_model_version(REWARD, str(tmp_path))
    with pytest.raises(GateError, match="no manifest"):
        registry.promote({REWARD: 1}, expected={REWARD: None}, decisions=PASSED)
