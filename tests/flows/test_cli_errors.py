"""The command line as a person meets it: help that teaches, errors on one screen, a workspace found or missed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from flows.cli import app, main
from flows.cli_headline import print_headline

REPOSITORY = Path(__file__).resolve().parents[2]
COMMANDS = [
    "retrain", "stage", "schedule", "report", "compare", "score", "generate", "promote", "rollback", "history",
    "restore", "evaluate", "serve", "monitor", "doctor", "ui", "benchmark", "evaluate-experts", "evaluate-outcomes",
    "data sample", "data import-pickapic", "data import-hpd", "data import-imagereward", "data validate",
    "data describe",
]  # fmt: skip


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    said = capsys.readouterr()
    return int(stopped.value.code or 0), said.out, said.err


def test_help_lists_every_command_and_imports_nothing_heavy() -> None:
    script = "import sys; from flows.cli import app; app(['--help'], standalone_mode=False); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    heavy = {"torch", "mlflow", "prefect", "pandas", "numpy", "transformers", "diffusers", "pydantic"}
    assert not heavy & set(done.stdout.split())
    assert all(command.split()[0] in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_teaches_by_example(capsys: pytest.CaptureFixture[str], command: str) -> None:
    code, out, _ = run(capsys, *command.split(), "--help")
    assert code == 0
    assert "Examples:" in out
    assert f"perfusion {command}" in out


def test_without_a_workspace_the_error_says_how_to_name_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, "history")
    assert (code, out) == (2, "")
    assert str(tmp_path) in err
    assert "--workspace" in err
    assert "Traceback" not in err


def test_a_workspace_is_found_from_below(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / "work" / "report"
    deep.mkdir(parents=True)
    (tmp_path / "mlruns").mkdir()
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).write_bytes((REPOSITORY / name).read_bytes())
    monkeypatch.chdir(deep)
    code, _, err = run(capsys, "history")
    assert code == 2
    assert f"{tmp_path / 'mlruns'}: no model was ever registered here" in err


def test_a_defect_gives_a_short_message_and_debug_the_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("flows.cli_registry.find_workspace", broken)
    code, _, err = run(capsys, "history")
    assert code == 1
    assert "unexpected ZeroDivisionError: division by zero" in err
    assert "Traceback" not in err
    code, _, err = run(capsys, "history", "--debug")
    assert code == 1
    assert "Traceback" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("stage", "rewrad", "--workspace", str(REPOSITORY)), "did you mean 'reward'?"),
        (("generate", "--prompt", "dress", "-n", "0", "--out", "pictures"), "between 1 and 64"),
        (("data", "describe", "/nowhere/at/all"), "/nowhere/at/all"),
        (("data", "validate", "/nowhere/at/all"), "/nowhere/at/all"),
        (("data", "sample", "--users", "0", "--out", "/nowhere/at/all"), "users = 0"),
        (("retrain", "--params", "/nowhere/params.yaml"), "/nowhere/params.yaml: no such parameter file"),
    ],
)
def test_a_mistake_is_told_in_words_with_exit_code_2(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in err


def test_doctor_speaks_json_and_knows_the_twins(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "doctor", "--workspace", str(REPOSITORY), "--json")
    findings = {finding["name"]: finding for finding in json.loads(out)["findings"]}
    assert findings["python"]["state"] == "ok"
    assert findings["torchvision"]["state"] in ("ok", "note")
    assert "clip.path" in findings["twins"]["detail"]


def test_every_command_is_registered_once() -> None:
    names = [command.name for command in app.registered_commands]
    assert len(names) == len(set(names))
    assert set(names) == {command for command in COMMANDS if " " not in command}


def test_data_is_made_described_and_judged(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = str(tmp_path / "sample")
    code, out, _ = run(capsys, "data", "sample", "--users", "6", "--dirt", "--out", folder)
    assert code == 0
    content = out.split()[-1]
    code, _, err = run(capsys, "data", "sample", "--users", "6", "--out", folder)
    assert code == 2
    assert "is there already" in err
    code, out, _ = run(capsys, "data", "describe", folder, "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["content_hash"] == content
    assert facts["incomplete"] > 0
    assert facts["user_features"]["style"]["kind"] == "str"
    code, out, _ = run(capsys, "data", "validate", folder, "--json")
    judged = json.loads(out)
    assert code == (0 if judged["decision"]["verdict"] == "pass" else 2)
    assert judged["report"]["quarantined"] > 0
    code, out, _ = run(capsys, "data", "validate", folder, "--columns", "--json")
    counted = json.loads(out)
    assert code == 0
    assert 0 < counted["faulty"] <= judged["report"]["quarantined"]
    code, out, _ = run(capsys, "data", "describe", folder, "--json", "--no-hash")
    assert {**json.loads(out), "content_hash": content} == facts


def test_pickapic_is_imported_and_its_ledger_shown(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from benchmarks.dataplane import write_shards

    write_shards(tmp_path / "shards", 4)
    code, out, _ = run(capsys, "data", "import-pickapic", str(tmp_path / "shards"), str(tmp_path / "data"))
    assert code == 0
    assert "import-pickapic" not in out
    assert all(word in out for word in ("same_picture", "4 rows", "seen in training", "record (chosen)"))
    code, out, _ = run(capsys, "data", "describe", str(tmp_path / "data"), "--json")
    assert (json.loads(out)["samples"], json.loads(out)["images"]) == (4, 5)
    code, _, err = run(capsys, "data", "import-pickapic", str(tmp_path / "none"), str(tmp_path / "other"))
    assert code == 2
    assert "no parquet shard here" in err


def test_a_description_is_one_page_with_charts(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder, out = str(tmp_path / "sample"), tmp_path / "described"
    run(capsys, "data", "sample", "--users", "6", "--dirt", "--out", folder)
    code, said, err = run(capsys, "data", "describe", folder, "--no-hash", "--json", "--out", str(out))
    assert code == 0
    assert f"page: {out / 'index.html'}" in err
    kept = json.loads((out / "describe.json").read_text())
    assert kept.items() >= json.loads(said).items()
    assert len(list(out.glob("*.png"))) == 7


def test_ratings_are_asked_for_and_evaluated(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    items, sheet, out = tmp_path / "items.csv", tmp_path / "sheet.csv", tmp_path / "out"
    items.write_text("item,arm\n" + "".join(f"i{n},{arm}\n" for n in range(25) for arm in ("ai", "human")))
    asked = ("--template", str(sheet), "--items", str(items), "--rater", "anna", "--rater", "ben")
    code, said, _ = run(capsys, "evaluate-experts", *asked)
    assert (code, said) == (0, f"{sheet}: 700 ratings to give\n")
    lines = sheet.read_text().splitlines()
    given = [line + ("1" if ",ai," in line or number % 2 else "2") for number, line in enumerate(lines[1:-1])]
    sheet.write_text("\n".join([lines[0], *given, lines[-1]]))
    code, said, _ = run(capsys, "evaluate-experts", str(sheet), "--out", str(out))
    assert code == 0
    assert all(word in said for word in ("craft design", "82.28%", "700 rows, 699 used", "blank", "rating of its own"))
    assert json.loads((out / "experts.json").read_text())["set_aside"]["blank"] == 1
    assert (out / "experts.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "quarantine.csv").read_text().splitlines()[1].startswith("700,blank,")
    code, _, err = run(capsys, "evaluate-experts")
    assert code == 2
    assert "no ratings given" in err
    code, _, err = run(capsys, "evaluate-experts", str(sheet), "--baseline", "robot")
    assert code == 2
    assert "needs the baseline 'robot'" in err


def test_outcomes_are_evaluated(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from perfusion.evaluation.outcomes import COUNTS

    rows = [f"s{n},{arm},10000,{100 + n + up},9000,{90 + up},{20 + n},5" for n in range(25)
            for arm, up in (("ai", 20), ("human", 0))]  # fmt: skip
    rows += ["tiny,ai,5,1,5,1,1,0", "tiny,human,5,1,5,1,1,0", "odd,robot,1,1,1,1,1,1"]
    events, out = tmp_path / "events.csv", tmp_path / "out"
    events.write_text("\n".join([",".join(("store", "arm", *COUNTS)), *rows]))
    code, said, _ = run(capsys, "evaluate-outcomes", str(events), "--out", str(out))
    assert code == 0
    assert all(word in said for word in ("search_ctr", "+17.81%", "than the limit", "of 26 stores", "53 rows, 52 used"))
    report = json.loads((out / "outcomes.json").read_text())
    code, said, _ = run(capsys, "evaluate-outcomes", str(events), "--json")
    assert json.loads(said) == report
    assert "tiny,,few_impressions" in (out / "stores.csv").read_text()
    assert (out / "outcomes.png").read_bytes().startswith(b"\x89PNG")


def test_the_headline_shows_what_exists_and_says_what_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    arm = {"true_utility": 1.25, "ci": [1.0, 1.5], "perfusion_rm": None}
    print_headline(
        {
            "outcome": {"status": "refused", "reasons": ["fail: a tie", "pass: no matter"], "run_id": "now"},
            "data": {"groups_in": 10, "used": 7, "quarantined": 1, "filtered": 2, "dropped": 0},
            "reward": None,
            "generator": {"perfusion": arm, "sft": None, "user_swap_win_rate": None},
            "gates": {"data": "pass", "load": "fail"},
            "gate_runs": {"data": "now", "load": "0123456789"},
            "champion": {"reward": 2, "generator": None},
            "seconds": {},
            "missing": {"reward": "the stage has not run"},
        }
    )
    out = capsys.readouterr().out
    for line in (
        "outcome: refused", "fail: a tie", "10 group records: 7 used, 1 quarantined", "reward 2, generator -",
        "gates: data pass, load fail (in run 01234567)", "1.25 [1, 1.5]", "no reward: the stage has not run",
    ):  # fmt: skip
        assert line in out
    assert "no matter" not in out
    assert "perfusion rm" not in out


def test_the_version_is_told_without_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--version")
    assert (code, out.split()[0]) == (0, "perfusion")
