"""Counting faults by column gives what validation finds row by row."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from perfusion.config import DataConfig
from perfusion.data import encode_png, write_dataset
from perfusion.data.layout import GROUP_SCHEMA
from perfusion.data.quality import count_faults
from perfusion.errors import DataError
from perfusion.world import write_marketplace
from tasks.validation import validate

NOW = datetime(2026, 6, 1)
CONFIG = DataConfig(max_group_size=6, max_prompt_chars=40)


def assert_equal_to_validation(root: Path, config: DataConfig, out: Path) -> dict[str, int]:
    """Rules, and records that break any of them; returns the counts."""
    found = count_faults(root, config, NOW)
    report = validate(root, config, None, out / "valid", out / "quarantine", now=NOW)
    judged = {row["rule"]: row["failed"] for row in report["rules"] if row["table"] == "groups"}
    assert found["rules"] == {name: judged[name] for name in found["rules"]}
    entries = pd.read_parquet(out / "quarantine" / "groups.parquet")
    assert found["faulty"] == entries.loc[entries["rule"].isin(list(found["rules"])), "row"].nunique()
    assert found["groups_in"] == report["groups_in"]
    return found["rules"]


def test_on_the_dirty_marketplace(tmp_path: Path) -> None:
    write_marketplace(tmp_path / "data", users=12, seed=0, dirt=True)
    counts = assert_equal_to_validation(tmp_path / "data", DataConfig(), tmp_path)
    assert sum(count > 0 for count in counts.values()) >= 10


@pytest.mark.parametrize("seed", range(2))
def test_on_tables_that_break_every_rule_at_random(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    images = [(f"i{n}", encode_png(np.full((2, 2, 3), n, np.uint8))) for n in range(12)]
    users = pd.DataFrame({"user_id": [f"u{n}" for n in range(9)], "style": "plain"})
    rows = [_row(rng) for _ in range(600)]
    rows += [rows[n] for n in rng.integers(0, 600, 30)]
    sound = pa.Table.from_pylist([_sound(0)], GROUP_SCHEMA)
    write_dataset(tmp_path / "data", users, sound.to_pandas(), images)
    pq.write_table(pa.Table.from_pylist(rows, GROUP_SCHEMA), tmp_path / "data" / "groups.parquet")
    counts = assert_equal_to_validation(tmp_path / "data", CONFIG, tmp_path)
    assert all(counts.values()), counts


def _sound(number: int) -> dict[str, object]:
    return {
        "record_id": f"r{number}", "user_id": f"u{number % 9}", "created_at": datetime(2026, 1, 1, number % 24),
        "prompt": "dress, v-neck", "image_ids": ["i0", "i1", "i2"], "picked": [True, False, False],
    }  # fmt: skip


def _row(rng: np.random.Generator) -> dict[str, object]:
    """A record with a fault in one column in five."""
    faults: dict[str, list[object]] = {
        "record_id": [None, "", " \u3000\x85", "r7", "x" * 201, "a\nb", "r\x7f", "\u2028", "é" * 200, "\x0b"],
        "user_id": [None, "\t", "u9", "u1 ", "ü" * 201, "u\x00", "\xa0"],
        "created_at": [None, datetime(1999, 12, 31, 23, 59, 59, 999000), datetime(2000, 1, 1), datetime(2027, 6, 2),
                       datetime(2027, 6, 2, 0, 0, 0, 1000), datetime(2030, 1, 1)],
        "prompt": [None, "", " , ", "_", "²", "½", "Ⅷ", "裙", "x" * 41, "é" * 40, "👗", "\u0301"],
        "image_ids": [None, [], ["i0", None], ["i0", "", " "], ["i0", "i0"], ["\u2003", "\u2003", "i1"], ["i1"] * 7,
                      ["i/1", "i0"], ["/", "i2"], ["i1", "i2", None, "i1"]],
        "picked": [None, [], [True, None, False], [True], [False] * 3, [None] * 7],
    }  # fmt: skip
    row = _sound(int(rng.integers(0, 5000)))
    for name, values in faults.items():
        if rng.random() < 0.2:
            row[name] = values[rng.integers(0, len(values))]
    return row


def test_columns_of_other_types_are_refused_by_name(tmp_path: Path) -> None:
    write_marketplace(tmp_path / "data", users=2, seed=0)
    groups = pq.read_table(tmp_path / "data" / "groups.parquet")
    place = groups.column_names.index("prompt")
    numbers = groups.set_column(place, "prompt", pa.array(range(len(groups))))
    pq.write_table(numbers, tmp_path / "data" / "groups.parquet")
    with pytest.raises(DataError, match="column prompt is int64, want string"):
        count_faults(tmp_path / "data", DataConfig())
