"""The report for people, and the gate's verdict over it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from perfusion.config import DataConfig
from perfusion.errors import DataError
from perfusion.governance.data_gate import data_gate
from tasks.validation import accept
from tasks.validation_report import report_text

SMALL = DataConfig(min_groups=10)


def test_the_report_names_rule_example_and_remedy_and_obeys_no_markup(market: Any) -> None:
    market.groups["prompt"][3] = "[bold red]!!"
    market.groups["user_id"][4] = "[link=x]nobody\x1b[2J"
    market.groups["extra"] = [1] * 24
    market.users["style"][0] = "  "
    text = report_text(market.run(max_prompt_chars=11).report)
    assert "[bold red]!!" in text
    assert "[link=x]nobody\\x1b[2J" in text
    assert "prompt_length" in text
    assert "or raise data.max_prompt_chars" in text
    assert "Ignored: groups.parquet, column 'extra'" in text
    assert "Converted: users.parquet, column 'style': 1 blank texts read as empty" in text
    assert max(map(len, text.splitlines())) <= 140


def test_a_sound_report_says_so(market: Any) -> None:
    text = report_text(market.run().report)
    assert "rules hold for every row" in text
    assert "No data was accepted before" in text


def test_the_gate_opens_for_sound_data_and_says_that_nothing_was_compared(market: Any) -> None:
    decision = data_gate(market.run().report, SMALL)
    assert decision.passed
    assert any("nothing to compare with" in reason for reason in decision.reasons)


def test_the_gate_closes_when_too_much_is_bad_and_names_the_worst_rule(market: Any) -> None:
    for row in range(4):
        market.groups["user_id"][row] = "nobody"
    market.groups["prompt"][0] = ""
    result = market.run()
    decision = data_gate(result.report, SMALL)
    assert decision.verdict == "fail"
    assert "0.1667, may be at most 0.1; quarantine/groups.parquet" in decision.reasons[0]
    assert "rule user_known failed 4 of 24, e.g. r0: nobody; add the user" in decision.reasons[1]
    assert data_gate(result.report, DataConfig(min_groups=10, max_bad_share=0.2)).passed


@pytest.fixture
def accepted(market: Any, tmp_path: Path) -> Path:
    """The profile of the sound dataset."""
    profile = tmp_path / "accepted.json"
    accept(market.run(out="before").out / "valid", profile)
    return profile


def test_the_same_data_does_not_drift(market: Any, accepted: Path) -> None:
    report = market.run(accepted=accepted).report
    assert {row["psi"] for row in report["drift"]} == {0.0}
    assert {row["ks"] for row in report["drift"] if "ks" in row} == {0.0}
    assert report["unseen_categories"] == {}
    assert report["schema_changes"] == {"missing": [], "retyped": [], "new": []}
    assert data_gate(report, SMALL).passed


def test_a_feature_that_vanished_or_changed_its_type_closes_the_gate(market: Any, accepted: Path) -> None:
    market.users["followers"] = [f"{value} fans" for value in market.users["followers"]]
    del market.users["style"]
    market.users["region"] = ["north"] * 8
    report = market.run(accepted=accepted).report
    assert report["schema_changes"] == {"missing": ["style"], "retyped": ["followers"], "new": ["region"]}
    reasons = [reason for reason in data_gate(report, SMALL).reasons if reason.startswith("fail")]
    assert len(reasons) == 2
    assert "'style' of the accepted data is missing" in reasons[0]


def test_unseen_categories_are_counted_and_named(market: Any, accepted: Path) -> None:
    market.users["style"][2] = "steampunk"
    report = market.run(accepted=accepted).report
    assert report["unseen_categories"] == {"style": {"categories": 1, "share": 1 / 8, "examples": ["steampunk"]}}
    assert "Unseen categories of 'style': 1 (12.5% of users): steampunk" in report_text(report)


def test_an_absent_profile_is_a_first_run_and_a_broken_one_is_not(market: Any, tmp_path: Path) -> None:
    assert market.run(accepted=tmp_path / "none.json").report["accepted"] is None
    for text in ("{", "[]", '{"users": 1}', "7"):
        (tmp_path / "broken.json").write_text(text)
        with pytest.raises(DataError, match=r"broken\.json: not a profile of accepted data"):
            market.run(accepted=tmp_path / "broken.json")
