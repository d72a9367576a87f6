"""Filter, split, feature codes and tables."""

import numpy as np
import pandas as pd
import pytest
import torch

from perfusion.config import DataConfig
from perfusion.data import (
    SPLITS,
    FeatureEncoder,
    encode_png,
    filter_users,
    load_tables,
    phrases,
    read_groups,
    shuffle_phrases,
    split_dataset,
    split_records,
    table_one,
    write_dataset,
)
from perfusion.errors import DataError


def test_counts_add_up_and_each_record_has_one_fate(groups_of):
    groups = groups_of(40, users=3)  # 14, 13 and 13 records
    groups.at[0, "picked"] = [False, False]
    groups.at[3, "picked"] = [True, True]
    groups.at[6, "picked"] = [True, True]
    found = filter_users(groups, min_records=12)
    assert found.dropped == {"nothing picked": 1, "everything picked": 2}
    assert set(found.kept["user_id"]) == {"u1", "u2"}
    assert set(found.few["user_id"]) == {"u0"}
    assert len(found.kept) + len(found.few) + sum(found.dropped.values()) == 40
    assert set(found.kept["record_id"]).isdisjoint(found.few["record_id"])


def test_only_usable_records_count_towards_the_minimum(groups_of):
    groups = groups_of(10)
    assert len(filter_users(groups, 10).kept) == 10
    groups.at[4, "picked"] = [False, False]
    with pytest.raises(DataError, match=r"no user has 10 usable records .* the most is 9"):
        filter_users(groups, 10)


def test_nothing_to_filter_is_an_error(groups_of):
    with pytest.raises(DataError, match="no rows"):
        filter_users(groups_of(0), 10)


def test_appending_never_moves_an_old_record(groups_of):
    old = groups_of(3000, users=100)
    new = pd.concat([old.sample(frac=1, random_state=0), groups_of(5000, users=130).iloc[3000:]])
    before = split_records(old).set_index("record_id")["split"]
    after = split_records(new).set_index("record_id")["split"]
    assert after[before.index].equals(before)


def test_ratios_hold_and_cold_users_are_cold_entirely(groups_of):
    split = split_records(groups_of(40_000, users=1000), ratios=(8, 1, 1), cold_users=0.08)
    cold = split.groupby("user_id")["split"].agg(lambda values: (values == "cold").mean())
    assert set(cold.unique()) == {0.0, 1.0}
    assert cold.mean() == pytest.approx(0.08, abs=0.03)
    shares = split.loc[split["split"] != "cold", "split"].value_counts(normalize=True)
    assert shares["train"] == pytest.approx(0.8, abs=0.01)
    assert shares["valid"] == pytest.approx(0.1, abs=0.01)


def test_another_salt_is_another_split(groups_of):
    groups = groups_of(500, users=20)
    assert not split_records(groups, salt="a")["split"].equals(split_records(groups, salt="b")["split"])


def test_table_one_counts_group_records(groups_of):
    groups = groups_of(6, users=2)
    groups.at[0, "image_ids"], groups.at[0, "picked"] = ["i0", "i1", "i99"], [True, True, False]
    found = table_one(groups)
    assert (found["users"], found["prompts"], found["samples"]) == (2, 1, 6)
    assert found["group_size"] == {"2": 5, "3": 1}
    assert found["picked"] == {"1": 5, "2": 1}
    assert found["records_per_user"] == 3
    assert found["group_size_mean"] == pytest.approx(13 / 6)


USERS = pd.DataFrame(
    {
        "user_id": ["b", "a", "c"],
        "style": ["romantic", "classic", None],
        "verified": [True, False, True],
        "followers": [10.0, np.nan, 30.0],
    }
)


def test_unknown_values_are_zero_and_known_ones_are_not():
    encoder = FeatureEncoder.fit(USERS)
    assert encoder.names == ("followers", "style", "verified", "user_id")
    assert encoder.unknown().tolist() == [0, 0, 0, 0]
    codes = encoder.transform(USERS)
    assert codes.dtype == torch.int64
    assert (codes[:, 3] > 0).all()
    assert codes[2, 1] == 0
    assert codes[1, 0] == 0
    stranger = pd.DataFrame({"user_id": ["z"], "style": ["steampunk"], "verified": [None], "followers": [np.inf]})
    stranger["verified"] = stranger["verified"].astype(object)
    assert encoder.transform(stranger).tolist() == [[0, 0, 0, 0]]


def test_codes_stay_below_the_cardinalities():
    random = np.random.default_rng(0)
    users = pd.DataFrame({"user_id": [f"u{i}" for i in range(500)], "followers": random.normal(size=500)})
    encoder = FeatureEncoder.fit(users)
    codes = encoder.transform(users.assign(followers=np.linspace(-99, 99, 500)))
    assert (codes < torch.tensor(encoder.cardinalities)).all()
    counts = torch.bincount(encoder.transform(users)[:, 0])
    assert counts[0] == 0
    assert len(counts) == 9
    assert counts[1:].min() > 55  # octiles of 500


def test_a_constant_number_gets_one_code():
    encoder = FeatureEncoder.fit(pd.DataFrame({"user_id": ["a", "b"], "n": [3, 3]}))
    assert encoder.transform(pd.DataFrame({"user_id": ["a", "b"], "n": [3, 4]}))[:, 0].tolist() == [1, 1]


def test_encoder_round_trip(tmp_path):
    encoder = FeatureEncoder.fit(USERS)
    encoder.save(tmp_path / "features.json")
    assert FeatureEncoder.load(tmp_path / "features.json") == encoder
    (tmp_path / "features.json").write_text("{}")
    with pytest.raises(DataError, match="not a feature file"):
        FeatureEncoder.load(tmp_path / "features.json")


def test_changed_features_are_named():
    encoder = FeatureEncoder.fit(USERS)
    with pytest.raises(DataError, match="columns absent: style"):
        encoder.transform(USERS.drop(columns="style"))
    with pytest.raises(DataError, match="column followers holds str, the model was trained on numbers"):
        encoder.transform(USERS.assign(followers=["1", "2", "3"]))


def test_phrases_are_trimmed_and_shuffled_without_loss():
    assert phrases(" dress,, v-neck ,") == ["dress", "v-neck"]
    generator = torch.Generator().manual_seed(1)
    seen = {shuffle_phrases("a, b, c", generator) for _ in range(100)}
    assert len(seen) == 6
    assert all(sorted(phrases(prompt)) == ["a", "b", "c"] for prompt in seen)


@pytest.fixture
def workspace(tmp_path, groups_of, users_of):
    """A dataset of 60 usable records with ragged groups, split; returns (data, split, counts)."""
    groups = groups_of(60, users=3)
    groups.at[0, "image_ids"], groups.at[0, "picked"] = ["i0", "i1", "i9"], [False, True, False]
    extra = groups_of(64, users=3).iloc[60:].assign(user_id="u9")
    groups = pd.concat([groups, extra], ignore_index=True)
    users = pd.concat([users_of(3), pd.DataFrame({"user_id": ["u9"], "style": ["rare"]})], ignore_index=True)
    images = [(f"i{n}", encode_png(np.full((8, 8, 3), n, np.uint8))) for n in range(130)]
    data = tmp_path / "data"
    write_dataset(data, users, groups, images)
    counts = split_dataset(data, DataConfig(min_records=10, cold_users=0.0), tmp_path / "split")
    return data, tmp_path / "split", counts


def test_split_stage_accounts_for_every_record(workspace):
    _, split, counts = workspace
    assert counts["in"] == counts["used"] + counts["filtered"] + sum(counts["dropped"].values()) == 64
    assert counts["filtered"] == counts["splits"]["few"] == 4
    written = read_groups(split / "groups.parquet", extra=("split",))
    assert written["split"].value_counts().to_dict() == {k: v for k, v in counts["splits"].items() if v}
    assert 0 <= counts["images_seen"] <= 1


def test_tables_hold_what_the_records_say(workspace):
    data, split, counts = workspace
    tables = load_tables(data, split, image_size=8)
    assert {name: len(table) for name, table in tables.items()} == counts["splits"]
    records = read_groups(split / "groups.parquet", extra=("split",)).set_index("record_id")
    for table in tables.values():
        for row, record_id in enumerate(table.record_ids):
            record = records.loc[record_id]
            width = int(table.valid[row].sum())
            shown = table.candidates(torch.tensor([row]))[0, :width, 0, 0, 0].tolist()
            assert shown == [int(name[1:]) for name in record["image_ids"]]
            assert table.picked[row, :width].tolist() == record["picked"]
            assert not table.picked[row, width:].any()
            assert table.user_ids[table.user_index[row]] == record["user_id"]
            assert table.prompts[row] == record["prompt"]
    known = tables["train"].features(torch.tensor([0]))[0]
    assert known[-1] > 0
    few = tables["few"].features(torch.tensor([0]))[0]
    assert few.tolist() == [0, 0]  # neither the user nor its style was seen in training


def test_only_the_splits_asked_for_are_decoded(workspace):
    data, split, _ = workspace
    only = load_tables(data, split, 8, splits=("few",))
    assert list(only) == ["few"]
    assert len(only["few"].pixels) == 8
    everything = load_tables(data, split, 8)
    assert torch.equal(everything["few"].users, only["few"].users)
    with pytest.raises(DataError, match="splits \\['tset'\\] are unknown"):
        load_tables(data, split, 8, splits=("tset",))
    assert tuple(everything) == SPLITS


def test_a_group_of_an_unknown_user_is_named(workspace):
    data, split, _ = workspace
    users = pd.read_parquet(split / "users.parquet")
    users[users["user_id"] != "u1"].to_parquet(split / "users.parquet")
    with pytest.raises(DataError, match=r"user 'u1' and \d+ more are not in users\.parquet"):
        load_tables(data, split, 8)
