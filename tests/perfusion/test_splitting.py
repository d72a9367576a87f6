"""Filter, split, feature codes and tables."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from benchmarks import pandas_reference
from perfusion.config import DataConfig
from perfusion.data import (
    SPLITS,
    FeatureEncoder,
    cold_users,
    encode_png,
    filter_users,
    load_tables,
    phrases,
    read_groups,
    read_users,
    shuffle_phrases,
    split_dataset,
    split_records,
    table_one,
    write_dataset,
    write_table,
)
from perfusion.errors import DataError


@pytest.fixture
def filed(tmp_path):
    """Groups as the file that stages read."""

    def write(groups: pd.DataFrame) -> Path:
        write_table(tmp_path / "groups.parquet", groups)
        return tmp_path / "groups.parquet"

    return write


def test_counts_add_up_and_each_record_has_one_fate(groups_of, filed):
    groups = groups_of(40, users=3)  # 14, 13 and 13 records
    groups.at[0, "picked"] = [False, False]
    groups.at[3, "picked"] = [True, True]
    groups.at[6, "picked"] = [True, True]
    found = filter_users(filed(groups), min_records=12)
    assert found.dropped == {"nothing picked": 1, "everything picked": 2}
    assert found.kept == {"u1": 13, "u2": 13}
    assert found.few == {"u0": 11}
    assert found.records == 40 == 26 + 11 + 3


def test_only_usable_records_count_towards_the_minimum(groups_of, filed):
    groups = groups_of(10)
    assert filter_users(filed(groups), 10).kept == {"u0": 10}
    groups.at[4, "picked"] = [False, False]
    with pytest.raises(DataError, match=r"no user has 10 usable records .* the most is 9"):
        filter_users(filed(groups), 10)


def test_nothing_to_filter_is_an_error(groups_of, filed):
    with pytest.raises(DataError, match="no rows"):
        filter_users(filed(groups_of(1).iloc[:0]), 10)
    groups = groups_of(10)
    groups.at[4, "picked"] = None
    with pytest.raises(DataError, match="1 of 10 records have no picks"):
        filter_users(filed(groups), 5)


def test_appending_never_moves_an_old_record():
    old, new = [f"r{n}" for n in range(3000)], [f"r{n}" for n in range(8000)][::-1]
    after = dict(zip(new, split_records(new), strict=True))
    assert [after[name] for name in old] == split_records(old).tolist()
    users = [f"u{n}" for n in range(130)]
    assert cold_users(users, 0.2) & set(users[:100]) == cold_users(users[:100], 0.2)


def test_the_split_of_a_name_is_the_same_for_ever():
    """Changing one of these moves records of every existing dataset between training and test."""
    assert split_records([*(f"r{n}" for n in range(20)), "é", ""], salt="perfusion/0").tolist() == [
        0,
        0,
        0,
        0,
        0,
        0,
        2,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        2,
        0,
        0,
        0,
    ]
    assert cold_users([f"m{n:05d}" for n in range(40)], 0.08, "perfusion/0") == {"m00013", "m00030"}


def test_ratios_hold_and_cold_users_are_cold_entirely(groups_of, users_of, tmp_path):
    write_table(tmp_path / "groups.parquet", groups_of(40_000, users=1000))
    write_table(tmp_path / "users.parquet", users_of(1000))
    split_dataset(tmp_path, DataConfig(ratios=(8, 1, 1), cold_users=0.08), tmp_path / "split")
    split = read_groups(tmp_path / "split" / "groups.parquet", extra=("split",))
    cold = split.groupby("user_id")["split"].agg(lambda values: (values == "cold").mean())
    assert set(cold.unique()) == {0.0, 1.0}
    assert cold.mean() == pytest.approx(0.08, abs=0.03)
    shares = split.loc[split["split"] != "cold", "split"].value_counts(normalize=True)
    assert shares["train"] == pytest.approx(0.8, abs=0.01)
    assert shares["valid"] == pytest.approx(0.1, abs=0.01)


def test_another_salt_is_another_split():
    names = [f"r{n}" for n in range(500)]
    assert not np.array_equal(split_records(names, salt="a"), split_records(names, salt="b"))


def test_table_one_counts_group_records(groups_of, filed):
    groups = groups_of(6, users=2)
    groups.at[0, "image_ids"], groups.at[0, "picked"] = ["i0", "i1", "i99"], [True, True, False]
    found = table_one(filed(groups))
    assert (found["users"], found["prompts"], found["samples"]) == (2, 1, 6)
    assert found["group_size"] == {"2": 5, "3": 1}
    assert found["picked"] == {"1": 5, "2": 1}
    assert found["records_per_user"] == 3
    assert found["group_size_mean"] == pytest.approx(13 / 6)
    assert found["images"] == 13


@pytest.mark.parametrize("seed", range(4))
def test_files_of_any_length_are_split_as_pandas_split_them(tmp_path, seed):
    """Same counts, same statistics, same split of every record, same rows; on groups as ragged as they come."""
    users, groups = random_tables(np.random.default_rng(seed))
    write_table(tmp_path / "users.parquet", users)
    write_table(tmp_path / "groups.parquet", groups)
    config = DataConfig(min_records=5, cold_users=0.3, ratios=(5, 2, 3))
    found = split_dataset(tmp_path, config, tmp_path / "fast", seed)
    assert found == pandas_reference.split_dataset(tmp_path, config, tmp_path / "plain", seed)
    assert found["in"] == found["used"] + found["filtered"] + sum(found["dropped"].values()) == len(groups)
    fast, plain = (read_groups(tmp_path / name / "groups.parquet", extra=("split",)) for name in ("fast", "plain"))
    names = groups["record_id"].tolist()
    assert fast["record_id"].tolist() == [name for name in names if name in set(fast["record_id"])]
    for split in SPLITS:  # pandas put the records of users with few at the end
        of = [table[table["split"] == split].reset_index(drop=True) for table in (fast, plain)]
        pd.testing.assert_frame_equal(*of)
    pd.testing.assert_frame_equal(*(read_users(tmp_path / name / "users.parquet") for name in ("fast", "plain")))


def random_tables(rng: np.random.Generator) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Users of very unequal activity, groups of 1 to 6 candidates with 0 to all picked, shared pictures and prompts."""
    count = 900
    user = (rng.random(count) ** 2 * 90).astype(int)
    sizes = rng.integers(1, 7, count)
    groups = pd.DataFrame(
        {
            "record_id": [f"réc {n}" for n in rng.permutation(count)],
            "user_id": [f"ü{n}" for n in user],
            "created_at": pd.Timestamp("2026-01-01") + pd.to_timedelta(rng.integers(0, 10**9, count), unit="ms"),
            "prompt": [f"dress, {n}" for n in rng.integers(0, 60, count)],
            "image_ids": [[f"i{n}" for n in rng.choice(700, size, replace=False)] for size in sizes],
            "picked": [(rng.random(size) < rng.choice([0, 0.4, 1], p=[0.1, 0.8, 0.1])).tolist() for size in sizes],
        }
    )
    names = [f"ü{n}" for n in rng.permutation(90)]
    return pd.DataFrame({"user_id": names, "style": "plain", "followers": rng.normal(size=90)}), groups


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


def test_damage_inside_a_table_is_told_and_nothing_is_written(workspace, tmp_path):
    data, _, _ = workspace
    place = pq.read_metadata(data / "groups.parquet").row_group(0).column(5)  # picked
    content = bytearray((data / "groups.parquet").read_bytes())
    content[place.data_page_offset : place.data_page_offset + 30] = b"\xff" * 30
    (data / "groups.parquet").write_bytes(content)
    with pytest.raises(DataError, match="a table could not be read"):
        split_dataset(data, DataConfig(), tmp_path / "again")
    assert not (tmp_path / "again").exists()


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
