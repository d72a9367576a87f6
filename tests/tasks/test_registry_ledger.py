"""The promotion log: a chain that shows every alteration, and survives a crash in the middle of a line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from perfusion.errors import GateError
from tasks.registry import Ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = Ledger(tmp_path / "promotions.jsonl")
    for number in range(4):
        ledger.append("commit", {"id": f"transition {number}"})
    return ledger


def test_every_entry_holds_the_hash_of_the_one_before(ledger: Ledger) -> None:
    entries = ledger.entries()
    assert [entry.seq for entry in entries] == [1, 2, 3, 4]
    assert [entry.previous for entry in entries[1:]] == [entry.hash for entry in entries[:-1]]
    assert entries[0].previous == "0" * 64


def _edit(lines: list[str]) -> list[str]:
    return [lines[0], lines[1].replace("transition 1", "transition 9"), *lines[2:]]


def _edit_and_rehash(lines: list[str]) -> list[str]:
    import hashlib

    record = json.loads(lines[1]) | {"body": {"id": "forged"}}
    del record["hash"]
    text = json.dumps(record, sort_keys=True, separators=(",", ":"))
    record["hash"] = hashlib.sha256(text.encode()).hexdigest()
    return [lines[0], json.dumps(record), *lines[2:]]


ALTERATIONS = {
    "a changed value": (_edit, "line 2: its content does not give its hash"),
    "a changed value with its hash made to fit": (_edit_and_rehash, "line 3: entry 3 follows"),
    "a removed line": (lambda lines: [lines[0], *lines[2:]], "line 2: entry 3 follows"),
    "two lines exchanged": (lambda lines: [lines[0], lines[2], lines[1], lines[3]], "line 2: entry 3 follows"),
    "a line that is no entry": (lambda lines: [lines[0], "{}", *lines[2:]], "line 2 is not a log entry"),
}


@pytest.mark.parametrize("name", ALTERATIONS)
@pytest.mark.parametrize("fresh", [True, False], ids=["new reader", "reader that knew it whole"])
def test_an_alteration_is_found_at_its_line(ledger: Ledger, name: str, fresh: bool) -> None:
    alter, message = ALTERATIONS[name]
    lines = ledger.path.read_text().splitlines()
    ledger.entries()
    ledger.path.write_text("\n".join(alter(lines)) + "\n")
    reader = Ledger(ledger.path) if fresh else ledger
    with pytest.raises(GateError, match=message):
        reader.entries()
    with pytest.raises(GateError, match=message):
        reader.append("commit", {"id": "after"})


def test_a_line_torn_by_a_crash_is_dropped_and_that_is_logged(ledger: Ledger) -> None:
    whole = ledger.path.read_bytes()
    ledger.path.write_bytes(whole + b'{"body":{"id":"to')
    assert len(ledger.entries()) == 4
    ledger.append("commit", {"id": "next"})
    assert [(entry.event, entry.body) for entry in Ledger(ledger.path).entries()[4:]] == [
        ("repair", {"dropped": '{"body":{"id":"to'}),
        ("commit", {"id": "next"}),
    ]
    assert ledger.path.read_bytes().startswith(whole)
