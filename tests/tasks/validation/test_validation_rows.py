"""Every defect of a row, one by one: found, set aside under its rule with its value, nothing else touched."""

from __future__ import annotations

import io
import math
import re
import struct
import zlib
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

GROUPS = 24


def check_ledger(result: Any) -> None:
    report = result.report
    assert report["groups_in"] == report["quarantined"] + report["valid"]
    assert report["users_in"] == report["users_quarantined"] + report["users_valid"]
    assert len(result.valid()) == report["valid"]
    assert len(result.valid("users")) == report["users_valid"]


Defect = tuple[str, Callable[[Any], Any], str, str, str]


def becomes(value: Any) -> Callable[[Any], Any]:
    return lambda _: value


# column, new cell from the old one, record as quarantine names it, rule, part of the value shown
GROUP_DEFECTS: dict[str, Defect] = {
    "no record id": ("record_id", becomes(None), "row {row}", "record_id_present", "None"),
    "blank record id": ("record_id", becomes("  "), "row {row}", "record_id_present", "None"),
    "endless record id": ("record_id", becomes("r" * 900), "r" * 200, "record_id_length", "900 characters"),
    "record id with a line break": ("record_id", becomes("r\n5"), "r\\n5", "record_id_characters", "r\\n5"),
    "no user id": ("user_id", becomes(None), "r{row}", "user_id_present", "None"),
    "unknown user": ("user_id", becomes("u99"), "r{row}", "user_known", "u99"),
    "no date": ("created_at", becomes(None), "r{row}", "created_at_present", "NaT"),
    "far future": ("created_at", becomes(datetime(2999, 1, 1)), "r{row}", "created_at_range", "2999-01-01"),
    "before all": ("created_at", becomes(datetime(1970, 1, 1)), "r{row}", "created_at_range", "1970-01-01"),
    "no prompt": ("prompt", becomes(None), "r{row}", "prompt_present", "None"),
    "empty prompt": ("prompt", becomes(""), "r{row}", "prompt_words", ""),
    "prompt without words": ("prompt", becomes(" , ,_ !"), "r{row}", "prompt_words", " , ,_ !"),
    "huge prompt": ("prompt", becomes("dress, " * 100_000), "r{row}", "prompt_length", "700000 characters"),
    "no pictures": ("image_ids", becomes(None), "r{row}", "image_ids_present", "None"),
    "a null picture": ("image_ids", lambda ids: [ids[0], None, *ids[2:]], "r{row}", "image_id_present", "candidate 1"),
    "a picture twice": ("image_ids", lambda ids: [*ids[:3], ids[0]], "r{row}", "image_once", "candidate 3: i"),
    "an absent picture": ("image_ids", lambda ids: [*ids[:3], "gone"], "r{row}", "image_stored", "candidate 3: gone"),
    "no picks": ("picked", becomes(None), "r{row}", "picked_present", "None"),
    "a null pick": ("picked", becomes([True, None, False, False]), "r{row}", "picked_complete", "None"),
    "picks too long": ("picked", becomes([True] + [False] * 4), "r{row}", "picked_length", "picked 5, image_ids 4"),
    "picks too short": ("picked", becomes([True]), "r{row}", "picked_length", "picked 1, image_ids 4"),
}


def test_a_defect_of_one_group_costs_that_group(market: Any) -> None:
    assert len(GROUP_DEFECTS) < GROUPS
    for row, (column, value, _, _, _) in enumerate(GROUP_DEFECTS.values()):
        market.groups[column][row] = value(market.groups[column][row])
    result = market.run()
    entries = result.quarantine().set_index("row")
    assert list(entries.index) == list(range(len(GROUP_DEFECTS)))
    for row, (name, (_, _, record, rule, shown)) in enumerate(GROUP_DEFECTS.items()):
        entry = entries.loc[row]
        assert entry["rule"] == rule, name
        assert entry["record_id"].startswith(record.format(row=row)), name
        assert shown in entry["value"], name
        assert entry["file"] == "groups.parquet"
    assert result.report["quarantined"] == len(GROUP_DEFECTS)
    assert result.valid()["record_id"].tolist() == [f"r{row}" for row in range(len(GROUP_DEFECTS), GROUPS)]
    assert len(result.quarantine("users")) == len(result.quarantine("images")) == 0
    check_ledger(result)


def test_a_sound_dataset_passes_whole(market: Any) -> None:
    result = market.run()
    assert (
        result.report["quarantined"] == result.report["users_quarantined"] == result.report["images_quarantined"] == 0
    )
    assert all(row["failed"] == 0 for row in result.report["rules"])
    assert all(row["checked"] > 0 for row in result.report["rules"] if "readable" not in row["rule"])
    assert result.report["coverage"] == {"style": 1.0, "followers": 1.0}
    assert result.report["images_decoded"] == 96
    pd.testing.assert_frame_equal(
        result.valid()[["record_id", "prompt"]], pd.DataFrame(market.groups)[["record_id", "prompt"]].astype("str")
    )
    assert [list(ids) for ids in result.valid()["image_ids"]] == market.groups["image_ids"]
    assert list(result.valid()["created_at"]) == [pd.Timestamp(t) for t in market.groups["created_at"]]
    check_ledger(result)


def test_group_sizes_have_both_bounds(market: Any) -> None:
    market.groups["image_ids"][2], market.groups["picked"][2] = [], []
    result = market.run(max_group_size=3)
    assert set(result.quarantine()["rule"]) == {"candidates"}
    assert result.report["quarantined"] == GROUPS
    assert result.quarantine().set_index("record_id").at["r2", "value"] == "0"
    check_ledger(result)


def test_groups_without_a_comparison_stay_valid_and_are_counted(market: Any) -> None:
    market.groups["image_ids"][1], market.groups["picked"][1] = ["i4"], [True]
    market.groups["picked"][2] = [False] * 4
    market.groups["picked"][3] = [True] * 4
    result = market.run()
    assert result.report["valid"] == GROUPS
    assert result.report["no_comparison"] == {"one candidate": 1, "nothing picked": 1, "everything picked": 1}


def test_a_record_delivered_twice_is_set_aside_once(market: Any) -> None:
    for column in market.groups.values():
        column.append(column[7])
    result = market.run()
    entries = result.quarantine()
    assert list(zip(entries["record_id"], entries["rule"], entries["row"], strict=True)) == [
        ("r7", "record_repeated", 24)
    ]
    assert result.report["valid"] == GROUPS
    check_ledger(result)


def test_different_records_of_one_id_are_all_set_aside(market: Any) -> None:
    market.groups["record_id"][3] = "r9"
    result = market.run()
    entries = result.quarantine()
    assert set(entries["rule"]) == {"record_id_unique"}
    assert set(entries["row"]) == {3, 9}
    assert result.report["valid"] == GROUPS - 2


def test_a_record_that_breaks_several_rules_counts_once(market: Any) -> None:
    market.groups["prompt"][4] = ""
    market.groups["user_id"][4] = "nobody"
    market.groups["picked"][4] = [True]
    result = market.run()
    assert result.rules() == {"r4": {"prompt_words", "user_known", "picked_length"}}
    assert result.report["quarantined"] == 1
    assert list(result.quarantine()["rule"]) == ["user_known", "prompt_words", "picked_length"]
    check_ledger(result)


USER_DEFECTS = {
    "no id": ("user_id", None, "row 2", "user_id_present", "user_known"),
    "endless id": ("user_id", "u" * 300, "u" * 200, "user_id_length", "user_known"),
    "infinite number": ("followers", math.inf, "u2", "feature_finite", "user_valid"),
    "endless category": ("style", "x" * 500, "u2", "feature_length", "user_valid"),
}


@pytest.mark.parametrize("name", USER_DEFECTS)
def test_a_defect_of_a_user_costs_the_user_and_the_groups(market: Any, name: str) -> None:
    column, value, record, rule, groups_rule = USER_DEFECTS[name]
    market.users[column][2] = value
    result = market.run()
    users = result.quarantine("users")
    assert list(users["rule"]) == [rule]
    assert record in users.at[0, "record_id"]
    assert result.rules() == {name: {groups_rule} for name in ("r2", "r10", "r18")}
    check_ledger(result)


def test_users_of_one_id_that_differ_are_set_aside_and_copies_are_not(market: Any) -> None:
    for column, new in zip(market.users.values(), ("u3", "elegant", 3.0), strict=True):
        column.append(new)
    for column in market.users.values():
        column.append(column[4])
    result = market.run()
    users = result.quarantine("users")
    found = sorted(zip(users["record_id"], users["rule"], users["row"], strict=True))
    assert found == [("u3", "user_id_unique", 3), ("u3", "user_id_unique", 8), ("u4", "user_repeated", 9)]
    assert set(result.rules()) == {"r3", "r11", "r19"}
    check_ledger(result)


def test_missing_features_are_coverage_and_no_defect(market: Any) -> None:
    market.users["style"][:3] = [None, "", "  "]
    market.users["followers"][0] = math.nan
    result = market.run()
    assert result.report["users_quarantined"] == 0
    assert result.report["coverage"] == {"style": 5 / 8, "followers": 7 / 8}
    assert [c["says"] for c in result.report["coercions"]] == ["2 blank texts read as empty"]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb() -> bytes:
    """A PNG of a few bytes whose header promises 60,000 x 60,000 pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def wrong_sum(data: bytes) -> bytes:
    """One bit of the pixels' check sum turned: the pixels still decode, which is what a damaged copy may look like."""
    damaged = bytearray(data)
    damaged[data.index(b"IEND") - 5] ^= 1
    return bytes(damaged)


def jpeg(side: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((side, 200, 3), np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


PICTURE_DEFECTS: dict[str, tuple[Callable[[bytes], bytes | None], str, str]] = {
    "null": (lambda data: None, "image_bytes", "0"),
    "0 bytes": (lambda data: b"", "image_bytes", "0"),
    "text": (lambda data: b"<html>404</html>", "image_decodes", "are not a picture"),
    "cut": (lambda data: data[:-30], "image_decodes", "truncated"),
    "cut in the header": (lambda data: data[:20], "image_decodes", "bytes"),
    "one bit turned": (wrong_sum, "image_decodes", "check sum"),
    "bomb": (lambda data: bomb(), "image_decodes", "far more pixels, the limit is"),
    "larger than allowed": (lambda data: jpeg(300), "image_decodes", "60,000 pixels, the limit is 50,000"),
    "jpeg cut": (lambda data: jpeg(200)[:-200], "image_decodes", "truncated"),
}


def test_a_broken_picture_costs_its_groups(market: Any) -> None:
    for row, (damage, _, _) in enumerate(PICTURE_DEFECTS.values()):
        market.images["image"][4 * row + 1] = damage(market.images["image"][4 * row + 1])
    result = market.run(max_image_pixels=50_000)
    images, groups = result.quarantine("images").set_index("row"), result.quarantine().set_index("row")
    assert len(images) == len(groups) == len(PICTURE_DEFECTS)
    for row, (name, (_, rule, shown)) in enumerate(PICTURE_DEFECTS.items()):
        image = images.loc[4 * row + 1]
        assert (image["record_id"], image["rule"]) == (f"i{4 * row + 1}", rule), name
        assert shown in image["value"], name
        assert image["file"] == "images/part-00000.parquet"
        assert (groups.loc[row, "record_id"], groups.loc[row, "rule"]) == (f"r{row}", "image_readable")
        assert f"candidate 1: i{4 * row + 1} ({rule}" in groups.loc[row, "value"]
    assert len(result.valid()) == GROUPS - len(PICTURE_DEFECTS)
    check_ledger(result)


def test_the_text_of_a_broken_picture_is_the_same_in_every_run(market: Any) -> None:
    market.images["image"][21] = b"no picture"
    texts = {market.run(out=name).quarantine("images").at[0, "value"] for name in ("one", "two")}
    assert len(texts) == 1
    assert "0x" not in texts.pop()


def test_pictures_that_no_group_uses_are_not_decoded(market: Any) -> None:
    market.images["image_id"].append("unused")
    market.images["image"].append(b"no picture")
    result = market.run()
    assert (result.report["images_in"], result.report["images_decoded"]) == (97, 96)
    assert result.report["quarantined"] == 0


def test_one_id_for_two_pictures_is_ambiguous_and_a_copy_is_not(
    market: Any, make_picture: Callable[..., bytes]
) -> None:
    market.images["image_id"] += ["i8", "i12"]
    market.images["image"] += [make_picture(1000), market.images["image"][12]]
    result = market.run()
    found = {(row.record_id, row.rule) for row in result.quarantine("images").itertuples()}
    assert found == {("i8", "image_id_unique"), ("i12", "image_repeated")}
    assert result.rules() == {"r2": {"image_unambiguous"}}


def test_a_picture_whose_id_cannot_be_a_file_name_is_set_aside(market: Any) -> None:
    unsafe = ["../../etc/passwd", "a/b", "..", "\x00", "a b"]
    for row, image_id in enumerate(unsafe):
        market.images["image_id"][4 * row] = market.groups["image_ids"][row][0] = image_id
    result = market.run()
    assert result.report["images_quarantined"] == len(unsafe)
    assert set(result.quarantine("images")["rule"]) == {"image_id_safe", "image_id_characters"}
    assert result.rules() == {f"r{row}": {"image_readable"} for row in range(len(unsafe))}


def test_many_bad_candidates_of_one_group_are_one_entry_of_bounded_length(market: Any) -> None:
    market.groups["image_ids"][5] = [f"absent-{number}-{'x' * 100}" for number in range(4)]
    result = market.run()
    entries = result.quarantine()
    assert list(entries["rule"]) == ["image_stored"]
    assert len(entries.at[0, "value"]) < 260


def test_everything_bad_leaves_empty_tables_of_the_right_types(market: Any) -> None:
    market.groups["prompt"] = [""] * GROUPS
    result = market.run()
    assert (result.report["valid"], result.report["quarantined"]) == (0, GROUPS)
    from perfusion.data import read_groups

    assert len(read_groups(result.out / "valid" / "groups.parquet")) == 0
    check_ledger(result)


def test_outputs_replace_older_ones_and_are_the_same_every_time(market: Any) -> None:
    market.groups["prompt"][3] = ""
    market.run()
    first = market.run()
    names = ("valid/groups.parquet", "valid/users.parquet", "valid/profile.json", "quarantine/groups.parquet")
    before = [(first.out / name).read_bytes() for name in names]
    (first.out / "valid" / "stale.parquet").write_bytes(b"old")
    second = market.run()
    assert [(second.out / name).read_bytes() for name in names] == before
    assert not (second.out / "valid" / "stale.parquet").exists()
    assert sorted(path.name for path in second.out.iterdir()) == ["quarantine", "valid"]


def test_every_rule_stands_in_the_runbook(market: Any) -> None:
    text = (Path(__file__).resolve().parents[3] / "docs" / "operations.md").read_text()
    named = set(re.findall(r"`([a-z_]+)`", text))
    rules = {row["rule"] for row in market.run().report["rules"]}
    assert rules <= named
    listed = set(re.findall(r"`([a-z_]+)`", text[text.index("| ids of records") : text.index("A row delivered twice")]))
    assert listed == rules
