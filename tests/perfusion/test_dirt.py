"""Dirt: one of every defect, each in a record of its own, everything else untouched."""

import json

import pandas as pd
import pytest

from perfusion.data import content_hash, decode_image, read_dataset
from perfusion.errors import DataError
from perfusion.world import Truth, write_marketplace
from perfusion.world.dirt import GROUP_DEFECTS


@pytest.fixture(scope="module")
def dirty(tmp_path_factory):
    """A dirty marketplace as read, and the list of what was planted."""
    root = tmp_path_factory.mktemp("dirt") / "data"
    write_marketplace(root, users=12, seed=0, dirt=True)
    return read_dataset(root), json.loads((root / "dirt.json").read_text())


def test_clean_records_are_untouched(dirty):
    dataset, planted = dirty
    spoiled = {entry["id"] for entry in planted if entry["table"] == "groups"}
    clean = Truth(12, 0, True).records.groups
    clean = clean[~clean["record_id"].isin(spoiled)].set_index("record_id")
    found = dataset.groups.dropna(subset=["record_id"])
    found = found[~found["record_id"].isin(spoiled)].set_index("record_id")
    assert len(found) == len(clean)
    for column in ("user_id", "prompt", "image_ids", "picked"):
        assert found[column].tolist() == clean[column].tolist()


def test_every_defect_has_a_record_of_its_own(dirty):
    _, planted = dirty
    groups = [entry for entry in planted if entry["table"] == "groups"]
    assert len({entry["id"] for entry in groups}) == len(groups)
    assert set(GROUP_DEFECTS) <= {entry["rule"] for entry in groups}


def test_defects_are_what_their_names_say(dirty):
    dataset, planted = dirty
    where = {entry["rule"]: entry["id"] for entry in planted if entry["table"] == "groups"}
    groups = dataset.groups.drop_duplicates("record_id").set_index("record_id")
    row = {rule: groups.loc[record] for rule, record in where.items() if record in groups.index}
    assert "record_id_present" not in row
    assert dataset.groups["record_id"].isna().sum() == 1
    assert row["user_known"]["user_id"] not in set(dataset.users["user_id"])
    assert pd.isna(row["user_id_present"]["user_id"])
    assert pd.isna(row["prompt_present"]["prompt"])
    assert row["candidates none"]["image_ids"] == []
    assert len(row["candidates many"]["image_ids"]) == 40
    assert len(row["picked_length"]["picked"]) == len(row["picked_length"]["image_ids"]) + 1
    assert len(row["picked_length short"]["picked"]) == len(row["picked_length short"]["image_ids"]) - 1
    assert row["picked_complete"]["picked"][0] is None
    once = row["image_once"]["image_ids"]
    assert len(set(once)) == len(once) - 1
    assert "never-stored" not in dataset.images
    assert "../../etc/passwd" in row["image_stored traversal"]["image_ids"]
    assert row["created_at_range"]["created_at"].year == 1970
    assert pd.isna(row["created_at_present"]["created_at"])
    repeats = dataset.groups["record_id"].value_counts()
    assert set(repeats[repeats == 2].index) == {where["record_repeated"], where["record_id_unique"]}


def test_spoiled_pictures_cannot_be_served(dirty):
    dataset, planted = dirty
    pictures = {entry["rule"]: entry["id"] for entry in planted if entry["table"] == "images"}
    for rule in ("image_undecodable", "image_truncated", "image_empty", "image_bomb"):
        with pytest.raises(DataError, match=pictures[rule]):
            decode_image(dataset.images.encoded([pictures[rule]])[0], pictures[rule])
    assert list(dataset.images.problems) == [pictures["image_ambiguous"]]


def test_spoiled_users_belong_to_no_clean_group(dirty):
    dataset, planted = dirty
    new = {entry["id"] for entry in planted if entry["table"] == "users"} - {"None"}
    assert new <= set(dataset.users["user_id"])
    assert new.isdisjoint(dataset.groups["user_id"])
    assert "steampunk" in set(dataset.users["style"])


def test_dirt_is_deterministic_and_needs_room(tmp_path, dirty):
    dataset, _ = dirty
    assert write_marketplace(tmp_path / "again", users=12, seed=0, dirt=True) == content_hash(dataset.root)
    with pytest.raises(DataError, match="dirt needs"):
        write_marketplace(tmp_path / "small", users=2, dirt=True)
    assert not (tmp_path / "small").exists()
