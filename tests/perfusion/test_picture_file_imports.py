"""HPD and ImageReward: lists in the public schema beside picture files, with the dirt that such lists have."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from perfusion.config import DataConfig
from perfusion.data import ImageStore, read_dataset, split_dataset
from perfusion.data.hpd import import_hpd
from perfusion.data.imagereward import RULES, import_imagereward, ranks_to_picks
from perfusion.errors import DataError


def picture(seed: int, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return buffer.getvalue()


def save(folder: Path, path: str, data: bytes) -> None:
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_bytes(data)


def removed(report: dict[str, Any]) -> dict[str, int]:
    return {row["rule"]: row["removed"] for row in report["rules"] if row["removed"]}


def adds_up(report: dict[str, Any]) -> bool:
    left = [report["entries"], *(row["left"] for row in report["rules"])]
    steps = zip(left, left[1:], report["rules"], strict=False)
    return left[-1] == report["records"] and all(after == was - row["removed"] for was, after, row in steps)


# HPD v1


def choice(number: int, picked: int = 0, size: int = 4, **changes: Any) -> dict[str, Any]:
    """A sound entry of HPD: user h1 preferred one of the pictures."""
    return {
        "human_preference": picked, "prompt": "a red fox", "id": number,
        "file_path": [f"preference_images/{number}_{n}.jpg" for n in range(size)], "user_hash": "h1",
        "contain_name": False,
    } | changes  # fmt: skip


def hpd(folder: Path, train: list[Any], test: list[Any] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    for name, entries in (("train", train), ("test", test)):
        if entries is not None:
            (folder / f"preference_{name}.json").write_text(json.dumps(entries))
        for entry in entries or []:
            for place in range(4):
                number = entry["id"] if isinstance(entry, dict) and isinstance(entry.get("id"), int) else 0
                save(folder, f"preference_images/{number}_{place}.jpg", picture(10 * number + place))
    return folder


def test_entries_of_hpd_become_groups(tmp_path):
    folder = hpd(tmp_path / "hpd", [choice(1, 2), choice(2, 0, 2, user_hash="h2")], [choice(7, 1, 3)])
    report = import_hpd(folder, tmp_path / "data", split="user")
    found = read_dataset(tmp_path / "data")
    assert found.groups["record_id"].tolist() == ["preference_train-1", "preference_train-2", "preference_test-7"]
    assert found.groups["user_id"].tolist() == ["h1", "h2", "h1"]
    assert found.groups["picked"].tolist() == [[False, False, True, False], [True, False], [False, True, False]]
    assert found.images.encoded(found.groups["image_ids"][0]) == [picture(10 + n) for n in range(4)]
    assert found.groups["created_at"].dt.strftime("%Y-%m-%d").unique().tolist() == [report["published"]]
    assert (report["records"], report["users"], report["pictures"], report["split"]) == (3, 2, 9, "user")
    assert report["source"] == ["preference_train.json", "preference_test.json"]
    assert report == json.loads((tmp_path / "data" / "import.json").read_text())


HPD_DIRT = [
    ("fields", choice(10, human_preference="first")),
    ("fields", choice(11, human_preference=True)),
    ("fields", choice(12, human_preference=[0, 1, 0, 0])),
    ("fields", choice(13, user_hash="  ")),
    ("fields", choice(14, file_path="preference_images/14_0.jpg")),
    ("fields", {"id": 15}),
    ("fields", "not an entry"),
    ("prompt", choice(16, prompt=" ... ")),
    ("prompt", choice(17, prompt="")),
    ("paths", choice(18, file_path=["../x.jpg", "preference_images/18_1.jpg"])),
    ("paths", choice(19, file_path=["/etc/passwd", "preference_images/19_1.jpg"])),
    ("paths", choice(20, size=1)),
    ("paths", choice(21, file_path=["preference_images/21_0.jpg"] * 2)),
    ("choice", choice(22, 4)),
    ("choice", choice(23, -1)),
    ("contradictory", choice(24, 0)),
    ("contradictory", choice(24, 1)),
    ("repeated", choice(1)),
    ("absent", choice(25, file_path=["preference_images/25_0.jpg", "preference_images/25_9.jpg"])),
    ("picture", choice(26)),
    ("picture", choice(27)),
    ("same_bytes", choice(28)),
]


def test_each_defect_of_hpd_costs_its_own_entry_and_the_counts_add_up(tmp_path):
    folder = hpd(tmp_path / "hpd", [choice(1), *(entry for _, entry in HPD_DIRT), choice(2, prompt="x" * 10_240)])
    save(folder, "preference_images/26_3.jpg", picture(263)[:-30])
    save(folder, "preference_images/27_0.jpg", b"<html>404</html>")
    save(folder, "preference_images/28_1.jpg", picture(280))
    report = import_hpd(folder, tmp_path / "data")
    assert removed(report) == {name: sum(rule == name for rule, _ in HPD_DIRT) for name, _ in HPD_DIRT}
    assert report["records"] == 2
    assert adds_up(report)
    quarantine = pq.read_table(tmp_path / "data" / "quarantine.parquet").to_pylist()
    assert [(entry["row"], entry["rule"]) for entry in quarantine] == [
        (row, rule) for row, (rule, _) in enumerate(HPD_DIRT, 1) if rule not in ("repeated", "same_bytes")
    ]
    assert "not a picture" in next(e["value"] for e in quarantine if e["record_id"].endswith("-27"))
    assert len(ImageStore(tmp_path / "data" / "images").ids()) == 8
    assert len(read_dataset(tmp_path / "data").groups["prompt"][1]) == 10_240


def test_what_is_wrong_with_lists_is_told_and_nothing_is_written(tmp_path):
    folder = hpd(tmp_path / "hpd", [choice(1)])
    annotations = folder / "preference_train.json"

    def fails(text: str, words: str) -> None:
        annotations.write_text(text)
        with pytest.raises(DataError, match=words):
            import_hpd(folder, tmp_path / "data")
        assert [path.name for path in tmp_path.iterdir()] == ["hpd"]

    fails('[{"prompt": ', "not a readable JSON file")
    fails('{"prompt": "x"}', "holds one dict, want a list")
    fails(
        '[{"prompt": "x", "image_path": []}]', "no entry has human_preference, id, file_path, user_hash; entries hold"
    )
    fails(json.dumps([choice(1, prompt="")]), r"no entry of 1 is left to import; removed by rule: .*'prompt': 1")
    annotations.write_bytes(b"\xff\xfe[]")
    with pytest.raises(DataError, match="not a readable JSON file"):
        import_hpd(folder, tmp_path / "data")
    with pytest.raises(DataError, match="neither preference_train"):
        import_hpd(tmp_path, tmp_path / "data")
    annotations.write_text(json.dumps([choice(1)]))
    import_hpd(annotations, tmp_path / "data")
    with pytest.raises(DataError, match="holds files already"):
        import_hpd(folder, tmp_path / "data")


def test_a_picture_unzipped_elsewhere_is_found_by_its_name_if_that_is_one(tmp_path):
    folder = hpd(tmp_path / "hpd", [choice(1), choice(2)])
    (folder / "preference_images").rename(folder / "pictures")
    save(folder, "copies/2_0.jpg", picture(20))
    report = import_hpd(folder, tmp_path / "data")
    assert (report["records"], removed(report)) == (1, {"absent": 1})


def test_hpd_goes_on_to_the_split(tmp_path):
    folder = hpd(tmp_path / "hpd", [choice(n, n % 4, user_hash=f"h{n % 3}") for n in range(60)])
    report = import_hpd(folder, tmp_path / "data")
    assert report["records_of_active_users"] == 60
    counts = split_dataset(tmp_path / "data", DataConfig(cold_users=0.0), tmp_path / "split")
    assert sum(counts["splits"].values()) == 60


# ImageReward


@pytest.mark.parametrize(
    ("ranks", "top", "picked"),
    [
        ([1, 2, 5, 3], 1, "1000"),
        ([1, 2, 1, 4, 3, 4], 1, "101000"),
        ([4, 5, 3, 2, 1, 5], 2, "000110"),
        ([2, 3, 4, 2], 1, "1001"),
        ([1, 2, 2, 3], 2, "1110"),  # a tie at the border shares its fate
        ([1, 2, 2, 3], 3, "1110"),
        ([3, 3, 3], 1, "111"),
        ([1, 2, 3], 9, "111"),
    ],
)
def test_ranks_become_picks_by_how_many_are_better(ranks, top, picked):
    assert ranks_to_picks(ranks, top) == [mark == "1" for mark in picked]


def ranking(name: str, ranks: list[Any], **changes: Any) -> dict[str, Any]:
    return {
        "id": name, "prompt": "a cute cat", "ranking": ranks,
        "generations": [f"part-0/images/{name}/{n}.webp" for n in range(len(ranks))],
    } | changes  # fmt: skip


def generations(folder: Path, entries: list[dict[str, Any]], name: str = "test.json") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(entries))
    seeds = iter(range(10_000))
    for entry in entries:
        for path in entry["generations"]:
            if not path.startswith(("/", "..")):
                save(folder, path, picture(next(seeds), "WEBP"))
    return folder


def test_lists_of_groups_and_of_pictures_say_the_same(tmp_path):
    """The two public forms of one dataset give the same records, and parquet tables go before the lists beside them."""
    entries = [ranking("005695-0057", [1, 2, 1, 4]), ranking("005937-0170", [2, 3, 4]), ranking("a", [2, 2])]
    folder = generations(tmp_path / "groups", entries)
    report = import_imagereward(folder, tmp_path / "data")
    assert (report["records"], report["users"], report["tied_records"]) == (2, 1, 1)
    assert removed(report) == {"no_comparison": 1}
    assert adds_up(report)
    found = read_dataset(tmp_path / "data").groups
    assert found["picked"].tolist() == [[True, False, True, False], [True, False, False]]
    rows = [
        {"image_path": path, "prompt_id": entry["id"], "prompt": entry["prompt"], "classification": "Animals",
         "image_amount_in_total": 9, "rank": rank, "overall_rating": 4, "image_text_alignment_rating": 3,
         "fidelity_rating": 4}
        for entry in entries for path, rank in zip(entry["generations"], entry["ranking"], strict=True)
    ]  # fmt: skip
    (folder / "test.json").write_text(json.dumps(rows))
    import_imagereward(folder, tmp_path / "again")
    pd.testing.assert_frame_equal(read_dataset(tmp_path / "again").groups, found)
    pd.DataFrame(rows).to_parquet(folder / "metadata-test.parquet")
    tables = import_imagereward(folder, tmp_path / "third")
    assert tables["source"] == ["metadata-test.parquet"]
    assert read_dataset(tmp_path / "third").groups["image_ids"].tolist() == found["image_ids"].tolist()


IMAGEREWARD_DIRT = [
    ("fields", ranking("b1", [1, 2], id=None)),
    ("fields", ranking("b2", [1, 2], ranking="1, 2")),
    ("prompt", ranking("b3", [1, 2], prompt=None)),
    ("paths", ranking("b4", [1, 2], generations=["../a.webp", "b.webp"])),
    ("paths", ranking("b5", [1])),
    ("choice", ranking("b6", [1, 2], ranking=[1, 2, 3])),
    ("choice", ranking("b7", [0, 1])),
    ("choice", ranking("b8", [1, None])),
    ("choice", ranking("b9", [1, 2.5])),
    ("contradictory", ranking("c1", [1, 2])),
    ("contradictory", ranking("c1", [2, 1])),
    ("repeated", ranking("good", [1, 2])),
    ("no_comparison", ranking("c2", [3, 3, 3])),
    ("absent", ranking("c3", [1, 2])),
    ("picture", ranking("c4", [1, 2])),
    ("same_bytes", ranking("c5", [1, 2])),
]


def test_each_defect_of_imagereward_costs_its_own_group_and_the_counts_add_up(tmp_path):
    entries = [ranking("good", [1, 2]), *(entry for _, entry in IMAGEREWARD_DIRT)]
    folder = generations(tmp_path / "db", entries)
    (folder / "part-0/images/c3/1.webp").unlink()
    save(folder, "part-0/images/c4/0.webp", picture(1, "WEBP")[:200])
    save(folder, "part-0/images/c5/0.webp", picture(2, "WEBP"))
    save(folder, "part-0/images/c5/1.webp", picture(2, "WEBP"))
    report = import_imagereward(folder / "test.json", tmp_path / "data")
    assert removed(report) == {name: sum(rule == name for rule, _ in IMAGEREWARD_DIRT) for name, _ in IMAGEREWARD_DIRT}
    assert {rule.name for rule in RULES} == set(removed(report))
    assert report["records"] == 1
    assert adds_up(report)


def test_rows_of_one_prompt_id_with_several_prompts_are_set_aside(tmp_path):
    folder = generations(tmp_path / "db", [ranking("p", [1, 2]), ranking("q", [1, 2])])
    rows = [
        {"image_path": f"part-0/images/{name}/{n}.webp", "prompt_id": name, "prompt": prompt, "rank": n + 1}
        for name, n, prompt in (("p", 0, "a cat"), ("q", 0, "a dog"), ("p", 1, "a cat"), ("q", 1, "a wolf"))
    ]
    (folder / "test.json").write_text(json.dumps(rows))
    report = import_imagereward(folder, tmp_path / "data")
    assert (report["records"], removed(report)) == (1, {"contradictory": 1})
    with pytest.raises(DataError, match="top = 0"):
        import_imagereward(folder, tmp_path / "other", top=0)
