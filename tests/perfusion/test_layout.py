"""The dataset layout: round trip, canonical hash, and one clear error for each way to break it."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from perfusion.data import ImageStore, content_hash, encode_png, read_dataset, write_dataset, write_table
from perfusion.data.layout import read_groups
from perfusion.errors import DataError


def picture(value: int) -> bytes:
    return encode_png(np.full((4, 4, 3), value, np.uint8))


@pytest.fixture
def dataset(tmp_path, users_of, groups_of) -> Path:
    root = tmp_path / "set"
    users = users_of(3).assign(followers=[1.5, np.nan, 3.0], verified=[True, False, True], shops=[1, 2, 3])
    write_dataset(root, users, groups_of(6, users=3), [(f"i{n}", picture(n)) for n in range(12)])
    return root


def rewrite(path: Path, change) -> None:
    pq.write_table(change(pq.read_table(path)), path)


def test_what_is_written_is_read(dataset, users_of, groups_of):
    found = read_dataset(dataset)
    same = ["record_id", "user_id", "prompt", "image_ids", "picked"]
    pd.testing.assert_frame_equal(found.groups[same], groups_of(6, 3)[same])
    assert found.groups["created_at"].tolist() == groups_of(6, 3)["created_at"].tolist()
    assert found.users["user_id"].tolist() == ["u0", "u1", "u2"]
    assert found.users["followers"].isna().tolist() == [False, True, False]
    assert found.images.encoded(["i7"]) == [picture(7)]


def test_nulls_of_single_records_pass_to_the_validator(tmp_path, users_of, groups_of):
    groups = groups_of(2)
    groups.at[0, "prompt"] = None
    groups.at[1, "image_ids"] = None
    write_dataset(tmp_path / "set", users_of(), groups, [("i0", picture(0))])
    found = read_dataset(tmp_path / "set").groups
    assert pd.isna(found["prompt"][0])
    assert found["image_ids"][1] is None


def test_hash_survives_rewriting_by_another_writer(dataset, tmp_path):
    before = content_hash(dataset)
    rewrite(dataset / "groups.parquet", lambda table: table.take(pa.array([3, 1, 5, 0, 2, 4])))
    rewrite(dataset / "users.parquet", lambda table: table.select(table.column_names[::-1]))
    users = pq.read_table(dataset / "users.parquet")
    index = users.column_names.index("shops")
    pq.write_table(users.set_column(index, "shops", users["shops"].cast(pa.int8())), dataset / "users.parquet")
    part = dataset / "images" / "part-00000.parquet"
    recoded = {}
    for image_id in (store := ImageStore(dataset / "images")).ids():
        target = tmp_path / "x.png"
        Image.fromarray(store.pixels([image_id], 4)[0].permute(1, 2, 0).numpy()).save(target, compress_level=9)
        recoded[image_id] = target.read_bytes()
    assert recoded["i3"] != picture(3) or recoded["i11"] != picture(11) or len(set(recoded.values())) == 12
    table = pa.table({"image_id": list(recoded)[::-1], "image": pa.array(list(recoded.values())[::-1], pa.binary())})
    pq.write_table(table, part, compression="zstd", row_group_size=2)
    pq.write_table(table.slice(6), dataset / "images" / "part-00001.parquet")
    pq.write_table(table.slice(0, 6), part)
    assert content_hash(dataset) == before


@pytest.mark.parametrize("what", ["pick", "prompt", "feature", "pixel", "name"])
def test_hash_changes_with_the_content(dataset, what):
    before = content_hash(dataset)
    users, groups = read_dataset(dataset).users, read_dataset(dataset).groups
    images = {f"i{n}": picture(n) for n in range(12)}
    if what == "pick":
        groups.at[2, "picked"] = [False, True]
    elif what == "prompt":
        groups.at[2, "prompt"] = "dress"
    elif what == "feature":
        users.loc[0, "followers"] = 1.5000001
    elif what == "pixel":
        pixels = np.full((4, 4, 3), 5, np.uint8)
        pixels[2, 2, 1] += 1
        images["i5"] = encode_png(pixels)
    else:
        users = users.rename(columns={"shops": "stores"})
    write_dataset(dataset, users, groups, images.items(), replace=True)
    assert content_hash(dataset) != before


def test_a_dataset_is_not_written_over_files(dataset, users_of, groups_of):
    before = content_hash(dataset)
    with pytest.raises(DataError, match="holds files already"):
        write_dataset(dataset, users_of(), groups_of(), [("a", picture(0))])
    assert content_hash(dataset) == before


def test_an_interrupted_write_leaves_nothing(tmp_path, users_of, groups_of):
    def images():
        yield "a", picture(0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path / "set", users_of(), groups_of(), images())
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_replacement_leaves_the_old_one(dataset, users_of, groups_of):
    before = content_hash(dataset)
    with pytest.raises(DataError):
        write_dataset(dataset, users_of(), groups_of(), [("../a", b"x")], replace=True)
    assert content_hash(dataset) == before
    assert [path.name for path in dataset.parent.iterdir()] == ["set"]


def test_a_full_disk_is_one_clear_error(tmp_path, users_of, groups_of, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("perfusion.data.layout.pq.ParquetWriter", full)
    with pytest.raises(DataError, match="nothing was written: No space left on device; free some disk space"):
        write_dataset(tmp_path / "set", users_of(), groups_of(), [("a", picture(0))])
    with pytest.raises(DataError, match="free some disk space"):
        write_table(tmp_path / "groups.parquet", groups_of())
    assert list(tmp_path.iterdir()) == []


def drop(name):
    return lambda table: table.drop_columns([name])


def recast(name, values):
    return lambda table: table.set_column(table.column_names.index(name), name, values)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("groups", drop("picked"), r"groups\.parquet: columns absent: picked"),
        ("groups", lambda t: t.append_column("note", [["x"] * 6]), r"columns unknown to the layout: note"),
        ("groups", recast("created_at", pa.array(["soon"] * 6)), r"column created_at is string, want timestamp"),
        ("groups", recast("picked", pa.array([[1.0, 0.0]] * 6)), r"column picked is list<.*double>, want list of bool"),
        ("groups", recast("record_id", pa.array(range(6))), r"column record_id is int64, want string"),
        ("groups", lambda t: t.slice(0, 0), r"groups\.parquet: no rows"),
        ("users", drop("user_id"), r"users\.parquet: column user_id is absent"),
        ("users", recast("user_id", pa.array([1, 2, 3])), r"column user_id is int64, want string"),
        ("users", recast("style", pa.array([["a"], ["b"], []])), r"column style is list<.*>; a feature is"),
        ("users", lambda t: t.slice(0, 0), r"users\.parquet: no rows"),
        ("images/part-00000", drop("image"), r"part-00000\.parquet: columns \['image_id'\], want one image_id"),
        ("images/part-00000", recast("image", pa.array(["x"] * 12)), r"column image is string, want binary"),
        ("images/part-00000", recast("image_id", pa.array([0.5] * 12)), r"column image_id is double, want string"),
    ],
)  # fmt: skip
def test_a_broken_schema_names_file_column_and_rule(dataset, file, change, message):
    rewrite(dataset / f"{file}.parquet", change)
    with pytest.raises(DataError, match=message):
        read_dataset(dataset)


@pytest.mark.parametrize("file", ["groups.parquet", "users.parquet", "images/part-00000.parquet"])
def test_absent_and_damaged_files_are_named(dataset, file):
    (dataset / file).write_bytes(b"PAR1 but not really")
    with pytest.raises(DataError, match=rf"{Path(file).name}: not a readable parquet file"):
        read_dataset(dataset)
    (dataset / file).unlink()
    with pytest.raises(DataError, match=r"no such file|no part-"):
        read_dataset(dataset)


def test_an_absent_dataset_is_named(tmp_path):
    with pytest.raises(DataError, match=r"users\.parquet: no such file"):
        read_dataset(tmp_path / "nowhere")


def test_extra_columns_are_read_when_asked_for(dataset):
    groups = read_dataset(dataset).groups.assign(split="train")
    write_table(dataset / "split.parquet", groups)
    assert read_groups(dataset / "split.parquet", extra=("split",))["split"].eq("train").all()
    with pytest.raises(DataError, match="columns absent: split"):
        read_groups(dataset / "groups.parquet", extra=("split",))


def test_the_real_photographs_are_a_dataset(shared):
    found = read_dataset(shared / "data" / "marketplace")
    assert (len(found.users), len(found.groups), len(found.images)) == (420, 8254, 3755)
    assert found.images.problems == {}


def test_hash_does_not_depend_on_the_place(dataset, tmp_path):
    shutil.copytree(dataset, tmp_path / "copy")
    assert content_hash(tmp_path / "copy") == content_hash(dataset)
