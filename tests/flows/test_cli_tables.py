"""Tables of the command line: whole in a pipe, readable in a narrow terminal."""

from __future__ import annotations

import pytest

from flows.cli_common import print_table

COLUMNS = ["", "GAUC", "paper: PickaPic / Industrial"]
ROWS = [["PerFusionRM", "0.9187 [0.9078, 0.9292] ±0.0021", "0.7 / 0.9"], ["[twin] CLIP-H", "0.7060", "-"]]


def test_a_pipe_gets_a_line_for_each_row_however_wide(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("Table 2", [*COLUMNS, "note"], [[*row, "x" * 200] for row in ROWS], stack=True)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(ROWS)
    assert all("x" * 200 in line for line in lines[2:])


def test_a_narrow_terminal_gets_a_line_for_each_cell(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "64")
    print_table("Table 2", COLUMNS, ROWS, stack=True)
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert all(len(line) <= 80 for line in lines)
    assert len(lines) == 1 + len(ROWS) * len(COLUMNS)
    assert any("GAUC" in line and line.endswith("0.9187 [0.9078, 0.9292] ±0.0021") for line in lines)
    assert any("[twin] CLIP-H" in line for line in lines)


def test_a_wide_terminal_gets_the_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    print_table("Table 2", COLUMNS, ROWS, stack=True)
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(ROWS)
