"""Every defect of a row, one by one: found, set aside under its rule with its value, nothing else touched."""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Callable
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

GROUPS = 24


def put(column: str, value: Any, row: int = 5) -> Callable[[Any], None]:
    def change(market: Any) -> None:
        market.groups[column][row] = value

    return change


def check_ledger(result: Any) -> None:
    report = result.report
    assert report["groups_in"] == report["quarantined"] + report["valid"]
    assert report["users_in"] == report["users_quarantined"] + report["users_valid"]
    assert len(result.valid()) == report["valid"]
    assert len(result.valid("users")) == report["users_valid"]


GROUP_DEFECTS = {
    "no record id": (put("record_id", None), "row 5", "record_id_present", "None"),
    "blank record id": (put("record_id", "  "), "row 5", "record_id_present", "None"),
    "endless record id": (put("record_id", "r" * 900), "r" * 200, "record_id_length", "900 characters"),
    "record id with a line break": (put("record_id", "r\n5"), "r\\n5", "record_id_characters", "r\\n5"),
    "no user id": (put("user_id", None), "r5", "user_id_present", "None"),
    "unknown user": (put("user_id", "u99"), "r5", "user_known", "u99"),
    "no date": (put("created_at", None), "r5", "created_at_present", "NaT"),
    "date in the far future": (put("created_at", datetime(2999, 1, 1)), "r5", "created_at_range", "2999-01-01"),
    "date before all": (put("created_at", datetime(1970, 1, 1)), "r5", "created_at_range", "1970-01-01"),
    "no prompt": (put("prompt", None), "r5", "prompt_present", "None"),
    "empty prompt": (put("prompt", ""), "r5", "prompt_words", ""),
    "prompt without words": (put("prompt", " , ,_ !"), "r5", "prompt_words", " , ,_ !"),
    "huge prompt": (put("prompt", "dress, " * 100_000), "r5", "prompt_length", "700000 characters"),
    "no pictures": (put("image_ids", None), "r5", "image_ids_present", "None"),
    "a null among pictures": (put("image_ids", ["i20", None, "i22", "i23"]), "r5", "image_id_present", "candidate 1"),
    "a picture twice": (put("image_ids", ["i20", "i21", "i20", "i23"]), "r5", "image_once", "i20"),
    "an absent picture": (put("image_ids", ["i20", "i21", "gone", "i23"]), "r5", "image_stored", "candidate 2: gone"),
    "no picks": (put("picked", None), "r5", "picked_present", "None"),
    "a null among picks": (put("picked", [True, None, False, False]), "r5", "picked_complete", "None"),
    "picks too long": (put("picked", [True] + [False] * 4), "r5", "picked_length", "picked 5, image_ids 4"),
    "picks too short": (put("picked", [True]), "r5", "picked_length", "picked 1, image_ids 4"),
}


@pytest.mark.parametrize("name", GROUP_DEFECTS)
def test_a_defect_of_one_group_costs_that_group(market: Any, name: str) -> None:
    change, record, rule, value = GROUP_DEFECTS[name]
    change(market)
    result = market.run()
    entries = result.quarantine()
    assert list(entries["rule"]) == [rule]
    entry = entries.iloc[0]
    assert record in entry["record_id"]
    assert value in entry["value"]
    assert (entry["file"], entry["row"]) == ("groups.parquet", 5)
    assert result.report["quarantined"] == 1
    assert set(result.valid()["record_id"]) == {f"r{row}" for row in range(GROUPS) if row != 5}
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


def large_jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((300, 200, 3), np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


PICTURE_DEFECTS: dict[str, tuple[Callable[[bytes], bytes | None], str, str]] = {
    "null": (lambda data: None, "image_bytes", "0"),
    "0 bytes": (lambda data: b"", "image_bytes", "0"),
    "text": (lambda data: b"<html>404</html>", "image_decodes", "no decoder accepts"),
    "cut": (lambda data: data[:-30], "image_decodes", "truncated"),
    "cut in the header": (lambda data: data[:20], "image_decodes", "no decoder accepts"),
    "one bit turned": (wrong_sum, "image_decodes", "check sum"),
    "bomb": (lambda data: bomb(), "image_decodes", "far more pixels, the limit is"),
    "larger than allowed": (lambda data: large_jpeg(), "image_decodes", "60,000 pixels, the limit is 50,000"),
    "jpeg cut": (lambda data: large_jpeg()[:-200], "image_decodes", "truncated"),
}


@pytest.mark.parametrize("name", PICTURE_DEFECTS)
def test_a_broken_picture_costs_its_groups(market: Any, name: str) -> None:
    damage, rule, value = PICTURE_DEFECTS[name]
    market.images["image"][21] = damage(market.images["image"][21])
    result = market.run(max_image_pixels=50_000 if "cut" not in name else 60_000)
    images = result.quarantine("images")
    assert list(zip(images["record_id"], images["rule"], images["row"], strict=True)) == [("i21", rule, 21)]
    assert value in images.at[0, "value"]
    assert images.at[0, "file"] == "images/part-00000.parquet"
    assert result.rules() == {"r5": {"image_readable"}}
    assert "candidate 1: i21" in result.quarantine().at[0, "value"]
    assert len(result.valid()) == GROUPS - 1
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


@pytest.mark.parametrize("image_id", ["../../etc/passwd", "a/b", "..", "\x00", "a b"])
def test_a_picture_whose_id_cannot_be_a_file_name_is_set_aside(market: Any, image_id: str) -> None:
    market.images["image_id"][21] = image_id
    market.groups["image_ids"][5][1] = image_id
    result = market.run()
    assert "image_id_safe" in set(result.quarantine("images")["rule"])
    assert result.rules() == {"r5": {"image_readable"}}


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
