"""Cells as texts: bounded, on one line, without what a terminal would obey."""

from __future__ import annotations

import pytest

from tasks.validation_columns import as_text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "None"),
        ("a\nb", "a\\nb"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\ud800", "\\ud800"),
        ("\u202eevil", "\\u202eevil"),
        ("kleid, größe", "kleid, größe"),
        ([1, None], "[1, None]"),
    ],
)
def test_values_are_shown_on_one_line(value: object, text: str) -> None:
    assert as_text(value) == text


def test_values_are_cut_and_the_cut_is_said() -> None:
    assert as_text("x" * 201) == "x" * 200 + "... (201 characters)"
    assert as_text("x" * 200) == "x" * 200
