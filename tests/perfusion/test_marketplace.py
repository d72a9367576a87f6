"""The planted marketplace: deterministic, as dirty as asked for, with a known ceiling."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from perfusion.config import DataConfig
from perfusion.data import content_hash, load_tables, phrases, read_dataset, split_dataset
from perfusion.errors import DataError
from perfusion.evaluation import ranking
from perfusion.world import REFERENCES, Truth, load_truth, reference_scores, write_marketplace
from perfusion.world.garments import CODES
from perfusion.world.merchants import Merchants, Tastes
from perfusion.world.picking import WEIGHTS, stated_codes, violations

SEED_0_OF_12_MERCHANTS = "9fd1919f6f9e749cabf1e24743cd7c3c"


@pytest.fixture(scope="module")
def world() -> Truth:
    return Truth(users=600, seed=0, personal=True)


def test_the_sample_is_the_same_for_ever(sample):
    """A changed hash means that merchants' data changed: raise `marketplace.VERSION`, and the hash in data.dvc too."""
    assert sample[1] == SEED_0_OF_12_MERCHANTS


def test_writing_again_gives_the_same_content(sample, tmp_path):
    root, digest = sample
    assert write_marketplace(tmp_path / "again", users=12, seed=0) == digest == content_hash(root)
    assert write_marketplace(tmp_path / "other", users=12, seed=1) != digest


def test_a_larger_marketplace_holds_the_smaller_one(world):
    small = Truth(12, 0, True)
    groups = world.records.groups.iloc[: len(small.records.groups)]
    pd.testing.assert_frame_equal(groups, small.records.groups)
    assert np.array_equal(world.records.codes[: len(small.records.codes)], small.records.codes)


def test_stored_pictures_show_the_garments_of_the_truth(sample):
    root, _ = sample
    truth, images = load_truth(root), read_dataset(root).images
    ids = images.ids()[::29]
    reading = truth.read(images.pixels(ids, 48))
    assert np.array_equal(reading.codes, truth.codes(ids))
    with pytest.raises(DataError, match="'nothing'"):
        truth.codes(["nothing"])


def test_no_truth_is_stored_with_the_data(sample):
    root, _ = sample
    assert sorted(path.name for path in root.iterdir()) == ["groups.parquet", "images", "users.parquet", "world.json"]
    assert set(json.loads((root / "world.json").read_text())) == {"world", "version", "users", "seed", "personal"}


def test_truth_of_other_data_is_none_and_of_another_version_an_error(tmp_path):
    assert load_truth(tmp_path) is None
    (tmp_path / "world.json").write_text('{"world": "flat-lay", "version": 0, "users": 1, "seed": 0, "personal": true}')
    with pytest.raises(DataError, match="version 0"):
        load_truth(tmp_path)
    (tmp_path / "world.json").write_text("{}")
    with pytest.raises(DataError, match="not a description"):
        load_truth(tmp_path)


def test_a_marketplace_without_merchants_is_refused(tmp_path):
    with pytest.raises(DataError, match="users = 0"):
        write_marketplace(tmp_path / "none", users=0)


def test_records_look_like_a_platforms_log(world):
    groups = world.records.groups
    assert groups["record_id"].is_unique
    assert len(groups) == pytest.approx(600 * 20, rel=0.05)
    picked = groups["picked"].map(sum)
    sizes = groups["image_ids"].map(len)
    assert (picked == 0).mean() == pytest.approx(0.04, abs=0.008)
    assert 0 < (picked == sizes).mean() < 0.02
    assert 0.03 < ((picked == 2) & (sizes > 2)).mean() < 0.09
    assert set(sizes) == {3, 4, 5, 6}
    assert (sizes == 5).mean() > 0.8
    few = groups.groupby("user_id").size() < 10
    assert few.mean() == pytest.approx(0.1, abs=0.04)
    ordered = groups.groupby("user_id")["created_at"].apply(lambda times: times.is_monotonic_increasing)
    assert ordered.all()


def test_prompts_state_the_type_and_candidates_mostly_follow(world):
    groups, codes = world.records.groups, world.records.codes
    stated = np.repeat([stated_codes(prompt) for prompt in groups["prompt"]], groups["image_ids"].map(len), axis=0)
    assert (stated[:, 0] >= 0).all()
    assert (stated[:, 4:] == -1).all()
    for place in range(4):
        said = stated[:, place] >= 0
        assert (stated[said, place] == codes[said, place]).mean() == pytest.approx(0.9, abs=0.01)
        free = codes[~said, place] if place else codes[:, 4]
        assert np.bincount(free).min() / len(free) > 0.8 / CODES[place if place else 4]
    order = [phrases(prompt).index(phrases(prompt)[0]) for prompt in groups["prompt"]]
    assert set(order) == {0}
    kinds = {"dress", "top", "coat", "jumpsuit"}
    first = groups["prompt"].map(lambda prompt: phrases(prompt)[0] in kinds)
    assert 0.2 < first.mean() < 0.8  # phrases come in any order


def test_personal_taste_has_unit_variance_and_no_mean(world):
    random = np.random.default_rng(0)
    codes = np.stack([random.integers(count, size=60_000) for count in CODES], axis=1)
    explained, own = world.merchants.taste(random.integers(600, size=60_000), codes)
    assert np.var(explained + own) == pytest.approx(1.0, abs=0.08)
    assert np.var(own) == pytest.approx(0.10, abs=0.02)
    assert np.mean(explained + own) == pytest.approx(0.0, abs=0.05)


def test_crossed_taste_is_nothing_that_one_feature_explains():
    for (source, _), table in Tastes.draw(0).tables.items():
        if source == "style x season":
            cube = table.reshape(6, 4, -1)
            assert np.abs(cube.mean(0)).max() < 1e-12
            assert np.abs(cube.mean(1)).max() < 1e-12


def test_only_the_four_shaping_features_matter(world):
    """Merchants who differ only in region, shop age or followers have the same explained taste."""
    features = {name: np.zeros(2, np.int64) for name in world.merchants.features}
    features["region"] = features["shop_age"] = np.array([0, 3])
    from perfusion.world.merchants import _explained

    for table in _explained(features, Tastes.draw(0)).values():
        assert np.array_equal(table[0], table[1])
    for name in ("style", "price_level", "main_category", "season"):
        moved = {**features, name: np.array([0, 1])}
        assert any(not np.allclose(t[0], t[1]) for t in _explained(moved, Tastes.draw(0)).values()), name


def test_empty_fields_are_few_and_only_where_they_say_nothing():
    table = Merchants.draw(600, 0).table()
    empty = table.isna().mean()
    assert empty.drop(["region", "followers_log10"]).eq(0).all()
    assert 0.01 < empty["region"] < 0.06
    assert 0.01 < empty["followers_log10"] < 0.08


def test_utility_is_the_sum_of_its_parts(world):
    codes = world.records.codes[:50]
    prompts = ["dress, long sleeves"] * 50
    worth = world.utility(["m00003"] * 50, prompts, codes)
    lacks = violations(np.tile(stated_codes("dress, long sleeves"), (50, 1)), codes)
    assert np.allclose(worth.prompt, -WEIGHTS["prompt"] * lacks)
    assert np.allclose(worth.total, worth.prompt + worth.everybody + worth.personal)
    assert np.allclose(worth.personal, worth.features + worth.own)
    assert not np.allclose(worth.personal, world.utility(["m00004"] * 50, prompts, codes).personal)
    with pytest.raises(DataError, match="'m99999'"):
        world.utility(["m99999"], prompts[:1], codes[:1])
    with pytest.raises(DataError, match="knows no 'hoodie'"):
        world.utility(["m00003"], ["hoodie"], codes[:1])


def test_merchants_pick_what_is_worth_most_to_them(world):
    groups = world.records.groups
    rows = groups[groups["picked"].map(sum) == 1].head(2000)
    ids = [image for images in rows["image_ids"] for image in images]
    sizes = rows["image_ids"].map(len)
    worth = world.utility(rows["user_id"].repeat(sizes), rows["prompt"].repeat(sizes), world.codes(ids)).total
    best = [scores.argmax() for scores in np.split(worth, np.cumsum(sizes)[:-1])]
    assert np.mean([picks[place] for picks, place in zip(rows["picked"], best, strict=True)]) > 0.85


def test_the_control_differs_in_its_picks_only():
    with_taste, without = Truth(30, 0, True), Truth(30, 0, False)
    assert np.array_equal(with_taste.records.codes, without.records.codes)
    same = ["record_id", "user_id", "created_at", "prompt", "image_ids"]
    pd.testing.assert_frame_equal(with_taste.records.groups[same], without.records.groups[same])
    assert not with_taste.records.groups["picked"].equals(without.records.groups["picked"])
    worth = without.utility(["m00001"] * 9, ["top"] * 9, without.records.codes[:9])
    assert np.all(worth.personal == 0)


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """A marketplace of 80 merchants, split; returns (data, tables)."""
    root = tmp_path_factory.mktemp("market")
    write_marketplace(root / "data", users=80, seed=0)
    split_dataset(root / "data", DataConfig(), root / "split")
    return root / "data", load_tables(root / "data", root / "split", image_size=1)


def measure(scores: np.ndarray, table) -> tuple[float, float]:
    picked, valid = table.picked.numpy(), table.valid.numpy()
    precision = ranking.group_average_precision(scores, picked, valid)
    return float(np.nanmean(precision)), float(np.nanmean(ranking.group_aucs(scores, picked, valid)))


def test_references_stand_in_order(tables):
    data, splits = tables
    scores = reference_scores(load_truth(data), splits)
    assert list(scores) == list(REFERENCES)
    found = {name: measure(values, splits["test"]) for name, values in scores.items()}
    floors = [ranking.random_average_precision(*pair) for pair in _sizes(splits["test"])]
    assert found["random"] == (pytest.approx(np.mean(floors)), pytest.approx(0.5))
    gauc = [found[name][1] for name in ("random", "text_consistency", "user_blind_oracle", "reachable", "full_oracle")]
    assert gauc == sorted(gauc)
    assert 0.68 < found["user_blind_oracle"][1] < 0.80
    assert found["reachable"][1] > found["user_blind_oracle"][1] + 0.08
    assert found["full_oracle"][1] > 0.93


def _sizes(table) -> list[tuple[int, int]]:
    return list(zip(table.valid.sum(1).tolist(), table.picked.sum(1).tolist(), strict=True))


def test_nothing_personal_is_reachable_in_the_control(tables, tmp_path):
    """With b = 0 the learned tastes gain nothing over the user-blind oracle."""
    write_marketplace(tmp_path / "data", users=80, seed=0, personal=False)
    split_dataset(tmp_path / "data", DataConfig(), tmp_path / "split")
    splits = load_tables(tmp_path / "data", tmp_path / "split", image_size=1)
    scores = reference_scores(load_truth(tmp_path / "data"), splits)
    blind, reachable = (measure(scores[name], splits["test"])[1] for name in ("user_blind_oracle", "reachable"))
    assert reachable < blind + 0.01
    assert np.array_equal(scores["full_oracle"], scores["user_blind_oracle"])


def test_padding_does_not_touch_the_references(tables):
    data, splits = tables
    wide = {}
    for name, table in splits.items():
        pad = torch.zeros(len(table), 3, dtype=torch.int64)
        wide[name] = type(table)(
            **{
                **vars(table),
                "image_index": torch.cat([table.image_index, pad], 1),
                "valid": torch.cat([table.valid, pad.bool()], 1),
                "picked": torch.cat([table.picked, pad.bool()], 1),
            }
        )
    narrow, padded = (reference_scores(load_truth(data), part)["reachable"] for part in (splits, wide))
    assert np.allclose(narrow, padded[:, : narrow.shape[1]], atol=2e-3)


def test_references_need_the_training_history(tables):
    data, splits = tables
    with pytest.raises(DataError, match="absent: train"):
        reference_scores(load_truth(data), {name: splits[name] for name in ("valid", "test")})
