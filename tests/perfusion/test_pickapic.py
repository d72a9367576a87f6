"""Importing Pick-a-Pic: synthetic shards in the public schema, with the dirt that the public ones have."""

from __future__ import annotations

import io
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from perfusion.config import DataConfig
from perfusion.data import ImageStore, content_hash, pickapic, read_dataset, split_dataset
from perfusion.data.layout import resumable_folder
from perfusion.data.leakage import leakage
from perfusion.data.pickapic import RULES, import_pickapic
from perfusion.data.pictures import stored_fault
from perfusion.errors import DataError

SCHEMA = pa.schema(
    [
        ("are_different", pa.bool_()), ("best_image_uid", pa.string()), ("caption", pa.string()),
        ("created_at", pa.timestamp("ns")), ("has_label", pa.bool_()), ("image_0_uid", pa.string()),
        ("image_0_url", pa.string()), ("image_1_uid", pa.string()), ("image_1_url", pa.string()),
        ("jpg_0", pa.binary()), ("jpg_1", pa.binary()), ("label_0", pa.float64()), ("label_1", pa.float64()),
        ("model_0", pa.string()), ("model_1", pa.string()), ("ranking_id", pa.int64()), ("user_id", pa.int64()),
        ("num_example_per_prompt", pa.int64()), ("__index_level_0__", pa.int64()),
    ]
)  # fmt: skip
NAME = "train-{:05d}-of-{:05d}-0a1b2c3d4e5f6789.parquet"


def jpeg(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def uid(picture: int) -> str:
    return f"{picture:08x}-0000-4000-8000-{picture:012x}"


def pair(number: int, first: int, second: int, label: float | None = 1.0, **changes: Any) -> dict[str, Any]:
    """A sound row: user 7 was shown two pictures and preferred the first."""
    return {
        "are_different": True, "best_image_uid": uid(first if label == 1.0 else second), "caption": "a red fox",
        "created_at": datetime(2023, 1, 27, 19, 41, 4), "has_label": True, "image_0_uid": uid(first),
        "image_0_url": "https://x/0", "image_1_uid": uid(second), "image_1_url": "https://x/1", "jpg_0": jpeg(first),
        "jpg_1": jpeg(second), "label_0": label, "label_1": None if label is None else 1 - label, "model_0": "sd",
        "model_1": "sdxl", "ranking_id": number, "user_id": 7, "num_example_per_prompt": 3, "__index_level_0__": number,
    } | changes  # fmt: skip


def write(folder: Path, *shards: list[dict[str, Any]], group_rows: int = 3) -> Path:
    folder.mkdir(exist_ok=True)
    for index, rows in enumerate(shards):
        table = pa.Table.from_pylist(rows, schema=SCHEMA)
        pq.write_table(table, folder / NAME.format(index, len(shards)), row_group_size=group_rows)
    return folder


def removed(report: dict[str, Any]) -> dict[str, int]:
    return {row["rule"]: row["removed"] for row in report["rules"] if row["removed"]}


def test_pairs_become_groups_and_pictures_are_stored_once(tmp_path):
    first = [pair(1, 10, 11), pair(2, 11, 12, 0.0), pair(3, 12, 13, caption="A Red  Fox")]
    second = [pair(4, 13, 10, 0.0, user_id=8), pair(5, 20, 21)]
    report = import_pickapic(write(tmp_path / "shards", first, second), tmp_path / "data")
    found = read_dataset(tmp_path / "data")
    assert found.groups["record_id"].tolist() == [f"{n}-{a:08x}-{b:08x}" for n, a, b in
        [(1, 10, 11), (2, 11, 12), (3, 12, 13), (4, 13, 10), (5, 20, 21)]]  # fmt: skip
    assert found.groups["user_id"].tolist() == ["7", "7", "7", "8", "7"]
    assert found.groups["picked"].tolist() == [
        [True, False],
        [False, True],
        [True, False],
        [False, True],
        [True, False],
    ]
    assert found.groups["image_ids"][1] == [uid(11), uid(12)]
    assert found.groups["prompt"][2] == "A Red  Fox"
    assert found.groups["created_at"][0] == datetime(2023, 1, 27, 19, 41, 4)
    assert found.users["user_id"].tolist() == ["7", "8"]
    assert sorted(found.images.ids()) == [uid(n) for n in (10, 11, 12, 13, 20, 21)]
    assert found.images.encoded([uid(12), uid(20)]) == [jpeg(12), jpeg(20)]
    assert report["pictures"] == 6
    assert report["bytes"] == sum(len(jpeg(n)) for n in (10, 11, 12, 13, 20, 21))
    assert report == json.loads((tmp_path / "data" / "import.json").read_text())


DIRT = [
    ("user_id", pair(10, 30, 31, user_id=None)),
    ("created_at", pair(11, 30, 31, created_at=None)),
    ("caption", pair(12, 30, 31, caption=None)),
    ("caption", pair(13, 30, 31, caption=" ... ")),
    ("picture_id", pair(14, 30, 31, image_0_uid="../../etc/passwd")),
    ("picture_id", pair(15, 30, 31, image_1_uid=None)),
    ("picture_id", pair(16, 30, 31, image_1_uid="a..b")),
    ("unlabelled", pair(17, 30, 31, None, has_label=False)),
    ("unlabelled", pair(18, 30, 31, has_label=None)),
    ("label", pair(19, 30, 31, None)),
    ("label", pair(20, 30, 31, label_0=0.7, label_1=0.3)),
    ("label", pair(21, 30, 31, label_1=1.0)),
    ("same_picture", pair(22, 30, 30)),
    ("same_picture", pair(23, 30, 31, are_different=False)),
    ("tie", pair(24, 30, 31, 0.5)),
    ("picture", pair(25, 30, 40, jpg_1=None)),
    ("picture", pair(26, 41, 31, jpg_0=b"")),
    ("picture", pair(27, 30, 42, jpg_1=jpeg(42)[:-40])),
    ("picture", pair(28, 43, 31, jpg_0=b"<html>404</html>")),
    ("same_bytes", pair(29, 30, 44, jpg_1=jpeg(30))),
    ("ranking_id", pair(30, 30, 31, ranking_id=None)),
]


def test_each_defect_costs_its_own_row_and_the_counts_add_up(tmp_path):
    """A row is counted under one rule only, quarantined rows are listed with shard, row, record and value."""
    sound = [pair(1, 30, 31), pair(2, 31, 32, 0.0)]
    copies = [pair(3, 30, 32), pair(3, 30, 32), pair(4, 30, 32), pair(4, 30, 32, 0.0)]
    rows = [sound[0], *(row for _, row in DIRT), *copies, sound[1]]
    folder = write(tmp_path / "shards", rows[:9], rows[9:20], rows[20:])
    report = import_pickapic(folder, tmp_path / "data")
    want = {"contradictory": 2, "repeated": 1}
    for rule, _ in DIRT:
        want[rule] = want.get(rule, 0) + 1
    assert removed(report) == want
    assert report["rows"] == len(rows) == report["records"] + sum(want.values())
    left = [report["rows"], *(row["left"] for row in report["rules"])]
    assert all(b == a - row["removed"] for a, b, row in zip(left, left[1:], report["rules"], strict=False))
    assert left[-1] == report["records"] == 3
    quarantine = pq.read_table(tmp_path / "data" / "quarantine.parquet").to_pylist()
    faulty = {rule.name for rule in RULES if rule.quarantined}
    assert {entry["rule"] for entry in quarantine} == faulty
    assert len(quarantine) == sum(count for rule, count in want.items() if rule in faulty)
    page = next(entry for entry in quarantine if "not a picture" in entry["value"])
    place = rows.index(next(row for _, row in DIRT if row["ranking_id"] == 28)) - 9
    assert (page["file"], page["row"], page["record_id"].split("-")[0]) == (NAME.format(1, 3), place, "28")
    stored = ImageStore(tmp_path / "data" / "images")
    assert set(stored.ids()) == {uid(30), uid(31), uid(32)}


def test_a_picture_broken_in_one_row_and_whole_in_another_is_whole(tmp_path):
    rows = [pair(1, 10, 11, jpg_0=None), pair(2, 10, 12, jpg_0=jpeg(10)[:-9]), pair(3, 12, 10), pair(4, 13, 14)]
    for group_rows in (1, 4):
        folder = write(tmp_path / f"shards{group_rows}", rows, group_rows=group_rows)
        report = import_pickapic(folder, tmp_path / f"data{group_rows}")
        assert report["records"] == 4
        assert ImageStore(tmp_path / f"data{group_rows}" / "images").encoded([uid(10)]) == [jpeg(10)]


def test_the_label_decides_and_never_the_best_uid(tmp_path):
    rows = [pair(1, 10, 11, best_image_uid=uid(11)), pair(2, 10, 12, best_image_uid="none"), pair(3, 12, 11)]
    report = import_pickapic(write(tmp_path / "shards", rows), tmp_path / "data")
    assert report["best_image_uid_disagrees"] == 2
    assert read_dataset(tmp_path / "data").groups["picked"].tolist() == [[True, False]] * 3


def test_ties_can_be_kept_and_are_dropped_before_users_are_counted(tmp_path):
    rows = [pair(n, n, n + 1, 0.5 if n < 3 else 1.0) for n in range(12)]
    folder = write(tmp_path / "shards", rows)
    report = import_pickapic(folder, tmp_path / "kept", ties="keep")
    assert (report["records"], removed(report)) == (12, {})
    assert read_dataset(tmp_path / "kept").groups["picked"][0] == [True, True]
    with pytest.raises(DataError, match="the most is 9"):
        split_dataset(tmp_path / "kept", DataConfig(), tmp_path / "split")
    assert import_pickapic(folder, tmp_path / "dropped")["records_of_active_users"] == 0


def test_pictures_of_other_tools_are_structs(tmp_path):
    folder = write(tmp_path / "shards", [pair(1, 10, 11), pair(2, 11, 12)])
    shard = folder / NAME.format(0, 1)
    table = pq.read_table(shard)
    for name in ("jpg_0", "jpg_1"):
        data = [{"bytes": value, "path": None} for value in table[name].to_pylist()]
        table = table.drop_columns([name]).append_column(name, pa.array(data))
    pq.write_table(table.drop_columns(["__index_level_0__"]), shard)  # columns moved, one gone that is not needed
    import_pickapic(shard, tmp_path / "data")
    assert ImageStore(tmp_path / "data" / "images").encoded([uid(12)]) == [jpeg(12)]


def test_pictures_may_be_files_beside_their_shard(tmp_path):
    """As text, or as the path of a struct whose bytes were left out; a path never leads out of the folder."""
    folder = write(tmp_path / "shards", [pair(1, 10, 11), pair(2, 11, 12), pair(3, 13, 14)])
    shard = folder / NAME.format(0, 1)
    table = pq.read_table(shard)
    for n in (10, 11, 12, 13):
        (folder / f"{n}.jpg").write_bytes(jpeg(n))
    (tmp_path / "14.jpg").write_bytes(jpeg(14))
    structs = pa.array([{"bytes": None, "path": path} for path in ("11.jpg", "12.jpg", "../14.jpg")],
                       pa.struct([("bytes", pa.binary()), ("path", pa.string())]))  # fmt: skip
    table = table.drop_columns(["jpg_0", "jpg_1"]).append_column("jpg_1", structs)
    pq.write_table(table.append_column("jpg_0", pa.array(["10.jpg", "11.jpg", "13.jpg"])), shard)
    report = import_pickapic(folder, tmp_path / "data")
    assert (report["records"], removed(report)) == (2, {"picture": 1})
    assert ImageStore(tmp_path / "data" / "images").encoded([uid(10), uid(12)]) == [jpeg(10), jpeg(12)]


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "JPEG"])
def test_truncated_pictures_of_any_format_are_found(kind):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    Image.fromarray(noise).save(buffer, kind)
    whole = buffer.getvalue()
    assert stored_fault(pa.py_buffer(whole)) is None
    for left in (len(whole) - 60, len(whole) // 2, 9):
        assert stored_fault(pa.py_buffer(whole[:left]))
    assert "pixels, the limit is 100" in str(stored_fault(pa.py_buffer(whole), max_pixels=100))


def test_what_is_wrong_with_shards_is_told_and_nothing_is_written(tmp_path):
    folder = write(tmp_path / "shards", *([pair(n, n, n + 1)] for n in range(4)))
    out = tmp_path / "data"

    def fails(words: str, **options: Any) -> None:
        with pytest.raises(DataError, match=words):
            import_pickapic(folder, out, **options)
        assert [path.name for path in tmp_path.iterdir()] == ["shards"]

    last = folder / NAME.format(3, 4)
    whole = last.read_bytes()
    last.write_bytes(whole[:-100])
    fails(r"train-00003-of-00004.* not a whole parquet file")
    pq.write_table(pq.read_table(folder / NAME.format(0, 4)).drop_columns(["jpg_1", "label_0"]), last)
    fails("columns absent: jpg_1, label_0; Pick-a-Pic with pictures has them")
    numbers = SCHEMA.set(SCHEMA.get_field_index("caption"), pa.field("caption", pa.int64()))
    pq.write_table(pa.Table.from_pylist([pair(1, 1, 2, caption=3)], numbers), last)
    fails("column caption is int64, want text")
    last.unlink()
    fails("1 shards are missing: train-00003-of-00004; fetch them, or import what is there with --partial")
    report = import_pickapic(folder, out, partial=True)
    assert (report["records"], report["shards"]) == (3, 3)
    with pytest.raises(DataError, match="holds files already"):
        import_pickapic(folder, out, partial=True)
    import_pickapic(str(folder / "train-0000[01]*"), out, partial=True, replace=True)
    assert len(read_dataset(out).groups) == 2
    with pytest.raises(DataError, match="no parquet shard here"):
        import_pickapic(tmp_path / "nowhere", tmp_path / "other")


def test_damage_inside_a_shard_is_told_and_nothing_is_written(tmp_path):
    """The footer is whole, so that only reading the pictures finds it."""
    folder = write(tmp_path / "shards", [pair(n, 2 * n, 2 * n + 1) for n in range(6)])
    shard = folder / NAME.format(0, 1)
    place = pq.read_metadata(shard).row_group(1).column(SCHEMA.names.index("jpg_0"))
    start = place.dictionary_page_offset or place.data_page_offset
    data = bytearray(shard.read_bytes())
    data[start : start + 40] = b"\xff" * 40
    shard.write_bytes(data)
    with pytest.raises(DataError, match="broken while it was read"):
        import_pickapic(folder, tmp_path / "data")
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]


def test_an_interrupted_import_goes_on_after_its_last_shard(tmp_path, monkeypatch):
    """And gives what an uninterrupted one gives; broken and repeated pictures of earlier shards are remembered."""
    shards = [
        [pair(1, 10, 11), pair(2, 11, 12, jpg_1=b"")],
        [pair(3, 12, 13), pair(4, 13, 14)],
        [pair(5, 14, 15, jpg_1=jpeg(10)), pair(6, 11, 16), pair(7, 17, 18, jpg_0=jpeg(17)[:-40])],
        [pair(8, 17, 10)],
    ]
    folder = write(tmp_path / "shards", *shards)
    whole = import_pickapic(folder, tmp_path / "whole")
    read, plain = [], pickapic._picture_batches

    def stopped(shard: Path, *rest: Any) -> Any:
        read.append(shard.name)
        for number, batch in enumerate(plain(shard, *rest)):
            yield batch
            if shard.name == NAME.format(2, 4) and len(read) == 3 and number == 0:
                raise KeyboardInterrupt

    monkeypatch.setattr(pickapic, "_picture_batches", stopped)
    with pytest.raises(KeyboardInterrupt):
        import_pickapic(folder, tmp_path / "data")
    assert not (tmp_path / "data").exists()
    again = import_pickapic(folder, tmp_path / "data")
    assert read == [NAME.format(n, 4) for n in (0, 1, 2, 2, 3)]
    timing = ("seconds", "mb_per_s")
    assert {k: v for k, v in again.items() if k not in timing} == {k: v for k, v in whole.items() if k not in timing}
    assert content_hash(tmp_path / "data") == content_hash(tmp_path / "whole")
    names = [{str(p.relative_to(tmp_path / r)) for p in (tmp_path / r).rglob("*")} for r in ("data", "whole")]
    assert names[0] == names[1]
    assert {path.name for path in tmp_path.iterdir()} == {"shards", "whole", "data"}


def test_what_was_interrupted_is_not_gone_on_with_if_the_shards_changed(tmp_path, monkeypatch):
    folder = write(tmp_path / "shards", [pair(1, 10, 11)], [pair(2, 12, 13)])
    with monkeypatch.context() as patched:
        patched.setattr(pickapic, "_judge_pictures", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            import_pickapic(folder, tmp_path / "data")
    write(folder, [pair(1, 20, 21)], [pair(2, 22, 23)])
    import_pickapic(folder, tmp_path / "data")
    assert sorted(ImageStore(tmp_path / "data" / "images").ids()) == [uid(n) for n in (20, 21, 22, 23)]


def test_one_folder_is_built_by_one_process_at_a_time(tmp_path):
    folder = write(tmp_path / "shards", [pair(1, 10, 11)])
    with (
        resumable_folder(tmp_path / "data", "another"),
        pytest.raises(DataError, match="another process is building it"),
    ):
        import_pickapic(folder, tmp_path / "data")


def test_only_rows_that_cannot_be_used_leave_nothing(tmp_path):
    folder = write(tmp_path / "shards", [pair(1, 10, 11, 0.5)])
    with pytest.raises(DataError, match="no row of 1 is left"):
        import_pickapic(folder, tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("by", ["record", "prompt", "user"])
def test_what_a_split_keeps_together_does_not_leak(tmp_path, by):
    """The clicked picture stays for the next pair of the same prompt and user: a chain of pictures a prompt."""
    rows = []
    for chain in range(60):
        for step in range(4):
            number = 5 * chain + step
            caption = f"a fox number {chain}" if step % 2 else f"A Fox  Number {chain}"
            rows.append(pair(number, number, number + 1, 0.0, caption=caption, user_id=chain // 3))
    report = import_pickapic(write(tmp_path / "shards", rows, group_rows=100), tmp_path / "data", split=by)
    shares = report["leakage"]
    assert report["split"] == by
    assert shares["record"]["pictures"] > 0.3
    assert shares["prompt"]["pictures"] == shares["prompt"]["prompts"] == 0
    assert shares["prompt"]["users"] > 0.3
    assert shares["user"] == {"pictures": 0, "prompts": 0, "users": 0}
    config = DataConfig(split_by=by, cold_users=0.0)
    counts = split_dataset(tmp_path / "data", config, tmp_path / "split")
    assert counts["images_seen"] == pytest.approx(shares[by]["pictures"])
    assert counts["splits"]["few"] == 0


def test_leakage_by_hand():
    groups = pa.table(
        {"record_id": [f"r{n}" for n in range(20)], "user_id": ["u"] * 20, "prompt": ["p"] * 20,
         "image_ids": [["a", f"b{n}"] for n in range(20)]}
    )  # fmt: skip
    shares = leakage(groups)["record"]  # r6 and r18 are the test records
    assert shares == {"pictures": 0.5, "prompts": 1.0, "users": 1.0}
