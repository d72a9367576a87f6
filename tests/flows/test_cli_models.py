"""The commands on a store: what serves, who is served, promotion and rollback from the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_models import PROMPTS, make_store, picture

from flows.cli import main
from perfusion.governance import Decision
from tasks.registry import Evidence, Registry, open_registry

PAIR = {"shop-reward": 1, "shop-generator": 1}
PASSED = tuple(Decision(gate, "pass", (f"pass: {gate}",)) for gate in ("reward", "load", "promotion"))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace folder whose store has two versions of both models and no champion."""
    root = tmp_path_factory.mktemp("shop")
    (root / "mlruns").mkdir()
    (root / "params.yaml").write_text("name: shop\n")
    (root / "dvc.yaml").write_text("stages: {}\n")
    make_store(root / "mlruns", versions=2)
    return root


@pytest.fixture
def shop(built: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """The store of a workspace in which the test stands, as it was built: aliases and log are put back afterwards."""
    monkeypatch.chdir(built)
    kept = [built / "mlruns" / name for name in ("mlflow.db", "promotions.jsonl")]
    for file in kept:
        shutil.copy(file, file.with_suffix(".kept"))
    yield open_registry(f"sqlite:///{built / 'mlruns' / 'mlflow.db'}", built / "mlruns")
    for file in kept:
        shutil.copy(file.with_suffix(".kept"), file)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    said = capsys.readouterr()
    return int(stopped.value.code or 0), said.out, said.err


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image)


def crown(registry: Registry, version: int) -> None:
    versions = dict.fromkeys(PAIR, version)
    registry.promote(versions, expected=registry.champions("shop"), decisions=PASSED)


def test_without_a_champion_nothing_is_served(
    shop: Registry, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, _, err = run(capsys, "generate", "--prompt", PROMPTS[0], "--out", str(tmp_path / "out"))
    assert code == 2
    assert "shop-generator: no champion yet" in err
    assert not (tmp_path / "out").exists()


def test_generate_draws_for_known_and_unknown_users(
    shop: Registry, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    crown(shop, 2)
    drawn = {}
    for user, blind in (("u1", False), ("nobody", True)):
        out = tmp_path / user
        code, said, _ = run(capsys, "generate", "-u", user, "--prompt", PROMPTS[0], "-n", "2", "--out", str(out))
        assert code == 0
        assert "shop-generator version 2" in said
        assert ("user-blind" in said) is blind
        assert sorted(file.name for file in out.iterdir()) == ["0.png", "1.png", "strip.png"]
        drawn[user] = pixels(out / "0.png")
    assert (drawn["u1"] != drawn["nobody"]).any()
    assert pixels(tmp_path / "u1" / "strip.png").shape == (16 + 2 * 4, 2 * 16 + 3 * 4, 3)


def test_generate_takes_features_of_a_new_user_and_refuses_unknown_ones(
    shop: Registry, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    crown(shop, 1)
    asked = ("generate", "--prompt", PROMPTS[0], "-n", "1", "--json", "--out", str(tmp_path))
    code, out, _ = run(capsys, *asked, "-f", "style=bold", "-f", "age=31")
    assert code == 0
    assert json.loads(out)["user_blind"] is False
    for pair, message in (("shoe=9", "NAME one of age, style"), ("age=old", "'old' is not a number")):
        code, _, err = run(capsys, *asked, "-f", pair)
        assert code == 2
        assert message in err


def test_altered_files_are_not_served(
    shop: Registry, capsys: pytest.CaptureFixture[str], tmp_path: Path, built: Path
) -> None:
    crown(shop, 1)
    code_of_version_1 = next(file for file in sorted(built.rglob("serve_generator.py")) if "/code/" not in str(file))
    code_of_version_1.write_text(code_of_version_1.read_text() + "\n# altered\n")
    versions = [run(capsys, "generate", "--prompt", "dress", "--version", v, "--out", str(tmp_path)) for v in "12"]
    code, _, err = next(result for result in versions if result[0] != 0)
    code_of_version_1.write_text(code_of_version_1.read_text().removesuffix("\n# altered\n"))
    assert code == 2
    assert "different: serve_generator.py" in err
    assert sum(result[0] == 0 for result in versions) == 1


def test_score_ranks_picture_files(shop: Registry, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    crown(shop, 1)
    files = []
    for value in (20, 120, 240):
        files.append(tmp_path / f"{value}.png")
        files[-1].write_bytes(picture(value))
    code, out, _ = run(capsys, "score", "--user", "u2", "--prompt", PROMPTS[1], *map(str, files), "--json")
    answer = json.loads(out)
    scores = [row["score"] for row in answer["pictures"]]
    assert code == 0
    assert scores == sorted(scores, reverse=True)
    assert sum(row["share"] for row in answer["pictures"]) == pytest.approx(1.0)
    assert answer["user_blind"] is False
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    for file, message in (("broken.png", "broken.png"), ("absent.png", "No such file")):
        code, _, err = run(capsys, "score", "--prompt", PROMPTS[1], str(tmp_path / file))
        assert code == 2
        assert message in err
        assert "Traceback" not in err


def test_promote_rests_on_recorded_evidence_and_rollback_prints_hashes(
    shop: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, "promote")
    assert code == 2
    assert "no decision of gate(s)" in err
    latest = dict.fromkeys(PAIR, 2)
    shop.record_evidence(Evidence(latest, dict.fromkeys(PAIR), PASSED))
    crown(shop, 1)
    code, _, err = run(capsys, "promote")
    assert code == 2
    assert "stale" in err
    shop.record_evidence(Evidence(latest, dict(PAIR), PASSED))
    code, out, _ = run(capsys, "promote", "--reason", "looked at it")
    assert code == 0
    assert "shop-generator 1 -> 2" in out
    assert shop.champions("shop") == latest

    code, out, _ = run(capsys, "rollback", "--reason", "returns rose", "--json")
    assert code == 0
    assert shop.champions("shop") == PAIR
    assert json.loads(out)["files"]["shop-reward"] == shop.files("shop-reward", 1)

    code, out, _ = run(capsys, "history", "--json")
    told = json.loads(out)
    assert code == 0
    assert [entry["action"] for entry in told["transitions"]] == ["promote", "promote", "rollback"]
    assert told["transitions"][-1]["reason"] == "returns rose"


def test_force_without_a_reason_is_refused(shop: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "promote", "1", "--force")
    assert code == 2
    assert "needs a reason" in err
    code, _, _ = run(capsys, "promote", "1", "--force", "--reason", "trying it out")
    assert code == 0


def test_history_and_doctor_notice_a_forged_log(shop: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    crown(shop, 1)
    log = shop.ledger.path
    log.write_text(log.read_text().replace('"promote"', '"PROMOTE"', 1))
    code, out, _ = run(capsys, "history")
    assert code == 2
    assert "does not give its hash" in out.replace("\n", " ")
    code, out, _ = run(capsys, "doctor", "--json")
    assert code == 2
    assert {f["name"]: f["state"] for f in json.loads(out)["findings"]}["promotion log"] == "wrong"
