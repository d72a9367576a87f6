"""Faults of a whole dataset stop with file, column, rule and remedy; what reads in one way only is converted."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from perfusion.data import ImageStore, content_hash
from perfusion.errors import DataError

GROUPS = 24


def fault(market: Any) -> str:
    """The text of the error that validation ends with; nothing may have been written."""
    with pytest.raises(DataError) as caught:
        market.run()
    assert not (market.root.parent / "work").exists()
    return str(caught.value)


GROUP_COLUMNS = ("record_id", "user_id", "created_at", "prompt", "image_ids", "picked")


@pytest.mark.parametrize("column", GROUP_COLUMNS)
def test_a_missing_column_is_named(market: Any, column: str) -> None:
    del market.groups[column]
    text = fault(market)
    assert f"groups.parquet: column '{column}': rule required: it is missing" in text


def test_every_missing_column_is_named_at_once(market: Any) -> None:
    market.groups = {"unrelated": [1, 2]}
    market.users = {"unrelated": [1, 2]}
    text = fault(market)
    assert all(f"groups.parquet: column '{column}'" in text for column in GROUP_COLUMNS)
    assert "users.parquet: column 'user_id': rule required" in text


def test_a_misspelt_column_is_suggested(market: Any) -> None:
    market.groups["Prompt"] = market.groups.pop("prompt")
    assert "rename 'Prompt'" in fault(market)


@pytest.mark.parametrize("file", ["users.parquet", "groups.parquet"])
def test_an_absent_table_is_named(market: Any, file: str) -> None:
    market.write()
    (market.root / file).unlink()
    market.write = lambda: market.root
    assert f"{file}: no such file" in fault(market)


def test_a_folder_without_pictures_is_named(market: Any) -> None:
    (market.write() / "images" / "part-00000.parquet").unlink()
    market.write = lambda: market.root
    assert "no part-*.parquet" in fault(market)


@pytest.mark.parametrize("file", ["users.parquet", "groups.parquet", "images/part-00000.parquet"])
@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
def test_an_unreadable_file_is_named(market: Any, file: str, damage: str) -> None:
    path = market.write() / file
    data = path.read_bytes()
    path.write_bytes({"cut": data[: len(data) // 2], "text": b"user_id,style\n", "empty": b""}[damage])
    market.write = lambda: market.root
    text = fault(market)
    assert path.name in text
    assert "rule readable" in text


def test_a_part_file_damaged_in_the_middle_is_named(market: Any) -> None:
    path = market.write() / "images" / "part-00000.parquet"
    data = bytearray(path.read_bytes())
    data[10:2000] = bytes(1990)
    path.write_bytes(bytes(data))
    market.write = lambda: market.root
    assert "images/part-00000.parquet: rule readable" in fault(market)


@pytest.mark.parametrize("table", ["users", "groups"])
def test_an_empty_table_is_refused(market: Any, table: str) -> None:
    kinds = {name: pa.array(values).type for name, values in getattr(market, table).items()}
    market.types |= {(table, name): kind for name, kind in kinds.items()}
    setattr(market, table, {name: [] for name in kinds})
    text = fault(market)
    assert f"{table}.parquet: rule not empty: 0 rows" in text


def test_no_stored_picture_costs_every_group(market: Any) -> None:
    market.images = {"image_id": [], "image": []}
    market.types["images", "image_id"] = pa.string()
    result = market.run()
    assert set(result.quarantine()["rule"]) == {"image_stored"}
    assert result.report["valid"] == 0


WRONG_TYPES: dict[str, tuple[str, str, Callable[[Any], Any], pa.DataType, str]] = {
    "picked as texts": ("groups", "picked", lambda v: [str(x) for x in v], pa.list_(pa.string()), "a list of booleans"),
    "picked as one boolean": ("groups", "picked", lambda v: True, pa.bool_(), "a list of booleans"),
    "picked as one text": ("groups", "picked", lambda v: "first", pa.string(), "a list of booleans"),
    "image_ids as one text": ("groups", "image_ids", lambda v: v[0], pa.string(), "a list of texts"),
    "image_ids as floats": ("groups", "image_ids", lambda v: [0.5], pa.list_(pa.float64()), "a list of texts"),
    "prompt as number": ("groups", "prompt", lambda v: 1, pa.int64(), "text"),
    "prompt as list": ("groups", "prompt", lambda v: [v], pa.list_(pa.string()), "text"),
    "created_at as number": ("groups", "created_at", lambda v: 1, pa.int64(), "no known unit"),
    "record_id as fraction": ("groups", "record_id", lambda v: 0.5, pa.float64(), "fractions"),
    "user_id as boolean": ("users", "user_id", lambda v: True, pa.bool_(), "text"),
    "image_id as bytes": ("images", "image_id", lambda v: v.encode(), pa.binary(), "text"),
    "image as text": ("images", "image", lambda v: "AAAA", pa.string(), "encoded bytes"),
    "image as nothing": ("images", "image", lambda v: None, pa.null(), "encoded bytes"),
    "image as list": ("images", "image", lambda v: [1], pa.list_(pa.int64()), "encoded bytes"),
}


@pytest.mark.parametrize("name", WRONG_TYPES)
def test_a_wrong_type_is_named_with_what_is_needed(market: Any, name: str) -> None:
    table, column, change, kind, needs = WRONG_TYPES[name]
    values = getattr(market, table)
    values[column] = [change(value) for value in values[column]]
    market.types[table, column] = kind
    text = fault(market)
    assert f"column '{column}': rule type: it is stored as {str(kind).replace('<item', '<element')}" in text
    assert needs in text


def test_a_column_that_is_there_twice_is_named(market: Any) -> None:
    path = market.write() / "users.parquet"
    table = pq.read_table(path)
    pq.write_table(table.append_column("style", table.column("style")), path)
    market.write = lambda: market.root
    assert "users.parquet: column 'style': rule once: it is there twice" in fault(market)


def numbered(market: Any) -> None:
    """Every id as a whole number."""
    market.users["user_id"] = [int(user[1:]) for user in market.users["user_id"]]
    market.groups["user_id"] = [int(user[1:]) for user in market.groups["user_id"]]
    market.groups["record_id"] = [int(record[1:]) for record in market.groups["record_id"]]
    market.groups["image_ids"] = [[int(image[1:]) for image in ids] for ids in market.groups["image_ids"]]
    market.images["image_id"] = [int(image[1:]) for image in market.images["image_id"]]
    market.types["groups", "image_ids"] = pa.list_(pa.int64())


def floats(market: Any) -> None:
    """User ids as pandas writes whole numbers beside an empty one."""
    market.users["user_id"] = [float(user[1:]) for user in market.users["user_id"]]
    market.groups["user_id"] = [float(user[1:]) for user in market.groups["user_id"]]


def typed(table: str, column: str, change: Callable[[Any], Any], kind: pa.DataType) -> Callable[[Any], None]:
    def apply(market: Any) -> None:
        values = getattr(market, table)
        values[column] = [change(value) for value in values[column]]
        market.types[table, column] = kind

    return apply


def aware(value: datetime) -> datetime:
    return value.replace(tzinfo=UTC)


COERCIONS: dict[str, tuple[Callable[[Any], None], set[str]]] = {
    "picked as 0 and 1": (typed("groups", "picked", lambda v: [int(x) for x in v], pa.list_(pa.int64())), {"picked"}),
    "picked as floats": (typed("groups", "picked", lambda v: list(map(float, v)), pa.list_(pa.float32())), {"picked"}),
    "picked as JSON": (typed("groups", "picked", json.dumps, pa.string()), {"picked"}),
    "image_ids as JSON": (typed("groups", "image_ids", json.dumps, pa.large_string()), {"image_ids"}),
    "large lists": (typed("groups", "image_ids", lambda v: v, pa.large_list(pa.large_string())), set()),
    "lists of one size": (typed("groups", "picked", lambda v: v, pa.list_(pa.bool_(), 4)), set()),
    "lists of dictionaries": (
        typed("groups", "image_ids", lambda v: v, pa.list_(pa.dictionary(pa.int32(), pa.string()))), set(),
    ),
    "ids as integers": (numbered, {"user_id", "record_id", "image_ids", "image_id"}),
    "ids as floats": (floats, {"user_id"}),
    "dates as ISO text": (typed("groups", "created_at", lambda v: v.isoformat(), pa.string()), {"created_at"}),
    "dates with a zone": (typed("groups", "created_at", aware, pa.timestamp("us", "Europe/Berlin")), {"created_at"}),
    "dates in nanoseconds": (typed("groups", "created_at", lambda v: v, pa.timestamp("ns")), set()),
    "categories": (typed("groups", "prompt", lambda v: v, pa.dictionary(pa.int32(), pa.string())), {"prompt"}),
    "pictures in a struct": (
        typed(
            "images", "image", lambda v: {"bytes": v, "path": None},
            pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        ),
        {"image"},
    ),
    "large binaries": (typed("images", "image", lambda v: v, pa.large_binary()), set()),
}  # fmt: skip


@pytest.mark.parametrize("name", COERCIONS)
def test_what_reads_in_one_way_only_is_converted_and_said(market: Any, name: str) -> None:
    change, columns = COERCIONS[name]
    expected = market.run(out="plain").valid()
    change(market)
    result = market.run()
    assert result.report["quarantined"] == 0
    assert {item["column"] for item in result.report["coercions"]} == columns
    valid = result.valid()
    if not name.startswith("ids"):
        pd.testing.assert_frame_equal(
            valid.drop(columns=["image_ids", "picked"]), expected.drop(columns=["image_ids", "picked"])
        )
        assert [list(ids) for ids in valid["image_ids"]] == [list(ids) for ids in expected["image_ids"]]
    assert [list(flags) for flags in valid["picked"]] == [list(flags) for flags in expected["picked"]]
    # what validation lets pass, the rest can read
    assert len(content_hash(market.root)) == 32
    stored = ImageStore(market.root / "images")
    assert stored.pixels(valid["image_ids"].iloc[3].tolist(), 8).shape == (4, 3, 8, 8)


UNREADABLE_CELLS: dict[str, tuple[str, list[Any], pa.DataType, str, str]] = {
    "a pick of 2": ("picked", [2, 0, 0, 0], pa.list_(pa.int64()), "picked_readable", "[2, 0, 0, 0]"),
    "a pick of nan": ("picked", [math.nan, 0, 0, 0], pa.list_(pa.float64()), "picked_readable", "nan"),
}


@pytest.mark.parametrize("name", UNREADABLE_CELLS)
def test_a_number_that_is_no_pick_costs_its_group(market: Any, name: str) -> None:
    column, value, kind, rule, shown = UNREADABLE_CELLS[name]
    market.groups[column] = [[int(x) for x in flags] for flags in market.groups[column]]
    market.groups[column][5] = value
    market.types["groups", column] = kind
    result = market.run()
    assert list(result.quarantine()["rule"]) == [rule]
    assert shown in result.quarantine().at[0, "value"]


@pytest.mark.parametrize(
    ("column", "texts"),
    [
        ("picked", ["[true, false", '["yes", "no", "no", "no"]', '{"0": true}', "null", "[NaN, 0, 0, 0]", "7"]),
        ("image_ids", ["i20;i21;i22;i23", '["i20", ["i21"], "i22", "i23"]', "[" * 100_000, "[0.5]"]),
    ],
)
def test_json_that_does_not_read_costs_its_group(market: Any, column: str, texts: list[str]) -> None:
    market.groups[column] = [json.dumps(value) for value in market.groups[column]]
    market.groups[column][: len(texts)] = texts
    market.types["groups", column] = pa.string()
    result = market.run()
    assert result.rules() == {f"r{row}": {f"{column}_readable"} for row in range(len(texts))}
    for shown, text in zip(result.quarantine()["value"], texts, strict=True):
        assert shown.replace("'", '"')[:4] == text[:4].replace("NaN", "nan")
    assert result.report["valid"] == GROUPS - len(texts)


def test_a_date_that_does_not_read_costs_its_group(market: Any) -> None:
    texts = ["yesterday", "2026-13-01", "01/02/2026", ""]
    market.groups["created_at"] = [value.isoformat() for value in market.groups["created_at"]]
    market.groups["created_at"][: len(texts)] = texts
    market.types["groups", "created_at"] = pa.string()
    result = market.run()
    assert result.rules() == {f"r{row}": {"created_at_readable"} for row in range(len(texts))}
    assert result.quarantine()["value"].tolist() == texts


def test_a_date_beyond_all_clocks_costs_its_group(market: Any) -> None:
    count = [int(value.replace(tzinfo=UTC).timestamp() * 1000) for value in market.groups["created_at"]]
    count[5], count[6] = 2**62, count[6] * 1000  # the second: microseconds taken for milliseconds, year 58,000
    path = market.write() / "groups.parquet"
    table = pq.read_table(path)
    at = table.schema.get_field_index("created_at")
    pq.write_table(table.set_column(at, "created_at", pa.array(count, pa.timestamp("ms"))), path)
    market.write = lambda: market.root
    result = market.run()
    assert result.rules() == {"r5": {"created_at_readable"}, "r6": {"created_at_readable"}}
    assert result.quarantine().at[0, "value"] == f"{2**62} x 1/1000 s"


def test_text_that_is_not_utf8_costs_its_group(market: Any) -> None:
    raw = [text.encode() for text in market.groups["prompt"]]
    raw[5] = b"dress \xff\xfe"
    path = market.write() / "groups.parquet"
    table = pq.read_table(path)
    lenient = pa.Array.from_buffers(pa.string(), GROUPS, pa.array(raw, pa.binary()).buffers())
    pq.write_table(table.set_column(table.schema.get_field_index("prompt"), "prompt", lenient), path)
    market.write = lambda: market.root
    result = market.run()
    assert list(result.quarantine()["rule"]) == ["prompt_readable"]
    assert "\\xff" in result.quarantine().at[0, "value"]


def test_extra_columns_of_groups_are_ignored_and_said(market: Any) -> None:
    market.groups["split"] = ["test"] * GROUPS
    market.groups["session"] = [{"a": 1}] * GROUPS
    result = market.run()
    assert set(result.report["ignored_columns"]["groups.parquet"]) == {"split", "session"}
    assert list(result.valid().columns) == list(GROUP_COLUMNS)


def test_features_of_every_kind(market: Any) -> None:
    market.users |= {
        "age": list(range(8)),
        "verified": [True, False, None, True, True, True, True, True],
        "rate": [Decimal("1.5")] * 8,
        "joined": [datetime(2020, 1, 1)] * 8,
        "tags": [["a"]] * 8,
        "nothing": [None] * 8,
        "__index_level_0__": list(range(8)),
        "repeats": list(range(8)),
        "prompt": [1.5] * 8,
        "picked": ["often"] * 8,
    }
    result = market.run()
    assert set(result.report["ignored_columns"]["users.parquet"]) == {"joined", "tags", "__index_level_0__"}
    users = result.valid("users")
    own = ["prompt", "picked"]  # named like columns of groups
    assert users[own].iloc[0].tolist() == [1.5, "often"]
    assert list(users.columns) == [
        "user_id",
        "style",
        "followers",
        "age",
        "verified",
        "rate",
        "nothing",
        "repeats",
        *own,
    ]
    assert users["verified"].tolist()[:2] == ["true", "false"]
    assert users["age"].tolist() == list(range(8))
    assert result.report["coverage"]["nothing"] == 0.0
    assert result.report["coverage"]["verified"] == 7 / 8


def test_part_files_may_differ_in_what_is_convertible_only(market: Any) -> None:
    market.write()
    part = market.root / "images" / "part-00000.parquet"
    table = pq.read_table(part)
    structs = pa.array([{"bytes": data} for data in table.column("image").to_pylist()[48:]])
    second = pa.table(
        {"image_id": table.column("image_id").combine_chunks()[48:], "image": structs, "note": ["x"] * 48}
    )
    pq.write_table(table[:48], part)
    pq.write_table(second, market.root / "images" / "part-00001.parquet")
    market.write = lambda: market.root
    result = market.run()
    assert result.report["quarantined"] == 0
    assert result.report["images_parts"] == 2
    assert [item["file"] for item in result.report["coercions"]] == ["images/part-00001.parquet"]
    assert len(ImageStore(market.root / "images")) == 96


def test_a_part_file_without_its_columns_is_named(market: Any) -> None:
    market.write()
    pq.write_table(pa.table({"id": ["a"], "image": [b"x"]}), market.root / "images" / "part-00001.parquet")
    market.write = lambda: market.root
    assert "images/part-00001.parquet: column 'image_id': rule required" in fault(market)


def test_nothing_is_left_behind_when_writing_fails(
    market: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tasks.validation.atomic_write", full)
    (tmp_path / "work").mkdir()
    with pytest.raises(DataError, match="No space left on device"):
        market.run()
    assert list((tmp_path / "work").iterdir()) == []
