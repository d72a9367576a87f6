"""Datasets whose paths lead elsewhere: nothing outside their folder is read, and what tried to is named."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from perfusion.config import DataConfig
from perfusion.data import ImageStore, encode_png, read_dataset, write_dataset
from perfusion.data.hpd import import_hpd
from perfusion.data.imagereward import import_imagereward
from perfusion.data.pickapic import import_pickapic
from perfusion.errors import DataError
from perfusion.paths import is_inside, stays_inside
from tasks.validation import validate


def png(value: int) -> bytes:
    """A whole picture."""
    return encode_png(np.full((8, 8, 3), value, np.uint8))


ESCAPES = ["../secret.png", "a/../../secret.png", "/etc/passwd", "..", "a\\..\\b", "x\0y", ""]


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A whole picture outside every dataset: were it read, it would be imported."""
    file = tmp_path / "secret.png"
    file.write_bytes(png(200))
    return file


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    users = pd.DataFrame({"user_id": ["u"], "style": ["plain"]})
    groups = pd.DataFrame(
        {"record_id": ["r"], "user_id": ["u"], "created_at": [datetime(2026, 1, 1)], "prompt": ["dress"],
         "image_ids": [["a", "b"]], "picked": [[True, False]]}
    )  # fmt: skip
    write_dataset(tmp_path / "set", users, groups, [("a", png(1)), ("b", png(2))])
    return tmp_path / "set"


@pytest.mark.parametrize("path", ESCAPES)
def test_paths_that_leave_are_told_by_their_text(path: str) -> None:
    assert not is_inside(path)
    assert is_inside("a/b.png")


def test_links_are_followed_before_they_are_judged(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "deep").mkdir(parents=True)
    (root / "own.png").write_bytes(b"x")
    (tmp_path / "other.png").write_bytes(b"x")
    (root / "deep" / "own").symlink_to(root / "own.png")
    (root / "deep" / "other").symlink_to(tmp_path / "other.png")
    (root / "up").symlink_to(tmp_path)
    assert stays_inside(root / "deep" / "own", root)
    assert not stays_inside(root / "deep" / "other", root)
    assert not stays_inside(root / "up" / "other.png", root)
    cached = tmp_path / "cache" / "files" / "md5" / "ab" / ("c" * 30)
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"x")
    (root / "cached").symlink_to(cached)
    assert stays_inside(root / "cached", root), "DVC links into its cache"


@pytest.mark.parametrize("file", ["users.parquet", "groups.parquet", "images/part-00000.parquet"])
def test_a_dataset_that_links_out_of_its_folder_is_refused(dataset: Path, tmp_path: Path, file: str) -> None:
    (dataset / file).rename(tmp_path / "moved.parquet")
    (dataset / file).symlink_to(tmp_path / "moved.parquet")
    with pytest.raises(DataError, match=r"a link to .*moved.parquet, outside the dataset's folder"):
        read_dataset(dataset)
    with pytest.raises(DataError, match="outside the dataset's folder"):
        validate(dataset, DataConfig(), None, tmp_path / "valid", tmp_path / "quarantine")


def test_a_dataset_may_be_a_link_itself(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(dataset)
    assert len(read_dataset(tmp_path / "data").groups) == 1


@pytest.mark.parametrize("image_id", ["../secret.png", "/etc/passwd", "..", "a/b"])
def test_an_image_id_that_is_a_path_opens_nothing(dataset: Path, secret: Path, tmp_path: Path, image_id: str) -> None:
    """In the group and in the store alike."""
    part = dataset / "images" / "part-00000.parquet"
    table = pa.table({"image_id": ["a", image_id], "image": pa.array([png(1), png(2)], pa.binary())})
    pq.write_table(table, part)
    groups = pd.read_parquet(dataset / "groups.parquet")
    groups["image_ids"] = [["a", image_id]]
    groups.to_parquet(dataset / "groups.parquet")
    assert image_id not in ImageStore(dataset / "images")
    report = validate(dataset, DataConfig(), None, tmp_path / "valid", tmp_path / "quarantine")
    assert (report["valid"], report["quarantined"]) == (0, 1)
    entries = pd.read_parquet(tmp_path / "quarantine" / "groups.parquet")
    assert any(image_id in value for value in entries["value"])


def test_columns_of_paths_in_a_picture_struct_are_not_opened(dataset: Path, secret: Path, tmp_path: Path) -> None:
    part = dataset / "images" / "part-00000.parquet"
    rows = [{"bytes": None, "path": str(secret)}, {"bytes": png(2), "path": "../secret.png"}]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image_id": ["a", "b"], "image": pa.array(rows, kind)}), part)
    report = validate(dataset, DataConfig(), None, tmp_path / "valid", tmp_path / "quarantine")
    assert (report["valid"], report["images_quarantined"]) == (0, 1)


SHARD_ROW = {
    "are_different": True, "best_image_uid": "p0", "caption": "dress", "created_at": datetime(2023, 1, 1),
    "has_label": True, "image_0_uid": "p0", "image_1_uid": "p1", "label_0": 1.0, "label_1": 0.0, "ranking_id": 1,
    "user_id": 7,
}  # fmt: skip


@pytest.mark.parametrize("struct", [False, True])
@pytest.mark.parametrize("path", ["../../secret.png", "{secret}", "link.png", "up/secret.png"])
def test_a_shards_paths_stay_in_its_folder(tmp_path: Path, secret: Path, path: str, struct: bool) -> None:
    folder = tmp_path / "in" / "shards"
    folder.mkdir(parents=True)
    (folder / "good.png").write_bytes(png(3))
    (folder / "link.png").symlink_to(secret)
    (folder / "up").symlink_to(tmp_path)
    paths = {"jpg_0": "good.png", "jpg_1": path.format(secret=secret)}
    cells = {name: {"bytes": None, "path": value} if struct else value for name, value in paths.items()}
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())]) if struct else pa.string()
    columns = {name: pa.array([cell], kind) for name, cell in cells.items()}
    columns |= {name: pa.array([value]) for name, value in SHARD_ROW.items()}
    pq.write_table(pa.table(columns), folder / "train.parquet")
    with pytest.raises(DataError, match=r"no row of 1 is left.*'picture': 1"):
        import_pickapic(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_shard_that_is_a_link_out_of_its_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    pq.write_table(pa.table({"x": [1]}), tmp_path / "other.parquet")
    (folder / "train.parquet").symlink_to(tmp_path / "other.parquet")
    with pytest.raises(DataError, match="outside the dataset's folder"):
        import_pickapic(folder, tmp_path / "out")


def lists(folder: Path, second: str) -> Path:
    """One group of HPD and one of ImageReward, each of good.png and a second picture."""
    folder.mkdir()
    for number, name in enumerate(("good.png", "other.png")):
        (folder / name).write_bytes(png(3 + number))
    paths = ["good.png", second]
    hpd = {"human_preference": 0, "prompt": "dress", "id": 1, "file_path": paths, "user_hash": "h1"}
    (folder / "preference_train.json").write_text(json.dumps([hpd]))
    reward = {"id": "1", "prompt": "dress", "generations": paths, "ranking": [1, 2]}
    (folder / "reward.json").write_text(json.dumps([reward]))
    return folder


@pytest.mark.parametrize("path", ["../secret.png", "/etc/passwd", "link.png", "deep/link.png"])
def test_json_lists_name_pictures_of_their_folder(tmp_path: Path, secret: Path, path: str) -> None:
    """HPD and ImageReward; a link by the right name, or by that name anywhere below, is not the picture."""
    folder = lists(tmp_path / "lists", path)
    (folder / "link.png").symlink_to(secret)
    with pytest.raises(DataError, match="is left to import"):
        import_hpd(folder / "preference_train.json", tmp_path / "out")
    with pytest.raises(DataError, match="is left to import"):
        import_imagereward(folder / "reward.json", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_whole_lists_import(tmp_path: Path) -> None:
    """Those above fail for their paths alone."""
    folder = lists(tmp_path / "lists", "other.png")
    assert import_hpd(folder / "preference_train.json", tmp_path / "out")["records"] == 1
    assert import_imagereward(folder / "reward.json", tmp_path / "other")["records"] == 1
