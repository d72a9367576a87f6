"""The reward evaluation on a small planted marketplace: an oracle closes the gap, a blind scorer closes none of it."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks.pandas_reference import filter_users, split_records
from perfusion.config import ClipConfig, DataConfig, GatesConfig, RewardConfig
from perfusion.data import load_tables, read_dataset, write_table
from perfusion.errors import DataError
from perfusion.evaluation.controls import random_scores, wrong_users
from perfusion.evaluation.ranking import average_precision
from perfusion.evaluation.reward import (
    CONTESTANTS,
    RewardScorers,
    calibration,
    candidate_scores,
    evaluate_reward,
    feature_slices,
    group_rows,
    reward_metrics,
    score_groups,
)
from perfusion.governance import reward_gate
from perfusion.reward import PerFusionRM, twin
from perfusion.world import Truth, write_marketplace
from perfusion.world.references import reference_scores

GATES = GatesConfig(resamples=300, min_users=10)
OPTIONS = GATES.interval_options(seed=0)


@pytest.fixture(scope="module")
def market(tmp_path_factory):
    """(data, split, truth, tables) of 50 merchants."""
    folder = tmp_path_factory.mktemp("market")
    write_marketplace(folder / "data", users=50, seed=0)
    dataset = read_dataset(folder / "data")
    filtered = filter_users(dataset.groups, DataConfig().min_records)
    groups = split_records(filtered.kept, (6, 1, 3), cold_users=0.25)
    groups = pd.concat([groups, filtered.few.assign(split="few")], ignore_index=True)
    (folder / "split").mkdir()
    write_table(folder / "split" / "users.parquet", dataset.users)
    write_table(folder / "split" / "groups.parquet", groups)
    return folder / "data", folder / "split", Truth(50, 0, True), load_tables(folder / "data", folder / "split", 48)


class Oracle:
    """Knows the planted taste of the user whose features it is told (his row in the table of users)."""

    name = "perfusion_rm"

    def __init__(self, truth, table, knows_users=True):
        self.truth, self.table, self.knows_users = truth, table, knows_users
        codes = truth.codes(table.image_ids)
        self.codes = {picture.numpy().tobytes(): code for picture, code in zip(table.pixels, codes, strict=True)}

    def score(self, prompts, pixels, users=None, valid=None):
        count, size = pixels.shape[:2]
        codes = np.stack([self.codes[picture.numpy().tobytes()] for picture in pixels.flatten(0, 1)])
        if self.knows_users and users is not None:
            rows = [(self.table.users == user).all(1).nonzero()[0].item() for user in users]
        else:
            rows = [0] * count
        names = [self.table.user_ids[row] for row in rows for _ in range(size)]
        worth = self.truth.utility(names, [prompt for prompt in prompts for _ in range(size)], codes)
        total = worth.total if self.knows_users and users is not None else worth.prompt + worth.everybody
        return torch.from_numpy(total).float().view(count, size)


@pytest.fixture(scope="module")
def measured(market):
    """(tables, scores, rows, metrics) with an oracle in PerFusionRM's place."""
    _, _, truth, tables = market
    blind = Oracle(truth, tables["test"], knows_users=False)
    scorers = RewardScorers(Oracle(truth, tables["test"]), blind, blind)
    scores = {split: score_groups(tables[split], scorers, split, 0) for split in ("test", "cold", "few")}
    references = reference_scores(truth, tables)
    rows = group_rows(tables, scores, {"test": references})
    return tables, scores, rows, reward_metrics(tables, scores, rows, references, OPTIONS)


def test_without_a_gap_there_is_no_share_of_it(measured):
    tables, scores, rows, _ = measured
    level = rows.assign(auc_reachable=rows["auc_user_blind"])
    assert reward_metrics(tables, scores, level, {}, OPTIONS)["gap_closed"] is None


def test_an_oracle_closes_the_gap_and_passes_the_gate(measured):
    _, _, rows, metrics = measured
    assert metrics["perfusion_rm"]["gauc"] == pytest.approx(metrics["references"]["full_oracle"]["gauc"], abs=0.01)
    assert metrics["gap_closed"] > 1
    assert metrics["gap_closed_ci"][0] < metrics["gap_closed"] < metrics["gap_closed_ci"][1]
    assert metrics["user_blind_gauc"] < metrics["reachable_gauc"] < metrics["perfusion_rm"]["gauc"]
    assert metrics["right_minus_wrong_user"]["gauc"]["low"] > 0
    assert metrics["wrong_user"]["gauc"] < metrics["user_blind_gauc"]
    decision = reward_gate(rows, GATES)
    assert decision.verdict == "pass", decision.reasons


def test_a_model_that_ignores_users_closes_nothing_and_fails_the_gate(market):
    _, _, truth, tables = market
    blind = Oracle(truth, tables["test"], knows_users=False)
    scores = {
        split: score_groups(tables[split], RewardScorers(blind, blind, blind), split, 0) for split in ("test", "cold")
    }
    rows = group_rows(tables, scores, {})
    gap = rows["auc_perfusion_rm"] - rows["auc_user_blind"]
    assert (gap == 0).all()
    assert reward_gate(rows, GATES).verdict == "fail"


def test_metrics_have_the_shape_of_the_contract(measured):
    metrics = json.loads(json.dumps(measured[3], allow_nan=False))
    assert {"floor_map", "user_blind_gauc", "reachable_gauc", "perfusion_rm", "gap_closed"} <= set(metrics)
    assert {"map", "gauc", "gauc_ci"} <= set(metrics["perfusion_rm"])
    assert set(CONTESTANTS) <= set(metrics)
    assert 0.4 < metrics["floor_map"] < 0.6
    assert metrics["perfusion_rm"]["groups_used"] > 0
    assert set(metrics["cold"]) == set(CONTESTANTS)


def test_rows_hold_every_usable_group_once(measured):
    tables, _, rows, metrics = measured
    assert rows["record_id"].is_unique
    for split in ("test", "cold", "few"):
        report = metrics["perfusion_rm"] if split == "test" else metrics[split]["perfusion_rm"]
        used = report["groups_used"]
        assert (rows["split"] == split).sum() == used == len(tables[split]) - sum(report["groups_dropped"].values())
    assert rows[[name for name in rows if name.startswith("ap_") and name[3:] in CONTESTANTS]].notna().all(axis=None)


def test_reference_scores_need_no_pictures(market, measured):
    data, split, truth, tables = market
    bare = load_tables(data, split, 48, splits=("train", "valid"), pictures=False)
    assert bare["train"].pixels.shape == (0, 3, 48, 48)
    found = reference_scores(truth, {**bare, "test": tables["test"]})
    for name, expected in reference_scores(truth, tables).items():
        np.testing.assert_array_equal(found[name], expected)


def test_no_usable_test_group_is_an_error(measured):
    tables, scores, rows, _ = measured
    with pytest.raises(DataError, match="min_records"):
        reward_metrics(tables, scores, rows[rows["split"] == "cold"], {}, OPTIONS)


def test_slices_cover_every_group_once_per_feature(market, measured):
    rows = measured[2]
    users = pd.read_parquet(market[1] / "users.parquet")
    slices = feature_slices(rows, users, OPTIONS)
    assert set(slices["feature"]) == set(users.columns) - {"user_id"}
    assert (slices.groupby("feature")["groups"].sum() == (rows["split"] == "test").sum()).all()


def test_calibration_of_perfect_shares_is_perfect(market):
    table = market[3]["test"]
    shares = table.picked / table.picked.sum(1, keepdim=True)
    bins = calibration(table, torch.log(shares.clamp(min=1e-9)))
    np.testing.assert_allclose(bins["predicted"], bins["picked"], atol=1e-5)
    assert bins["candidates"].sum() == table.valid.sum()
    flat = calibration(table, torch.zeros(table.valid.shape))
    assert flat["predicted"].max() < 0.5


def test_wrong_users_pair_everybody_with_exactly_one_other():
    users = torch.tensor([4, 4, 9, 2, 2, 7])
    wrong = wrong_users(users, seed=0)
    assert (wrong != users).all()
    assert set(wrong.tolist()) == {2, 4, 7, 9}
    assert wrong[0] == wrong[1]
    assert torch.equal(wrong, wrong_users(users, seed=0))
    with pytest.raises(ValueError, match="at least two"):
        wrong_users(torch.tensor([3, 3]), seed=0)
    assert torch.equal(random_scores((2, 3), 1), random_scores((2, 3), 1))
    assert not torch.equal(random_scores((2, 3), 1), random_scores((2, 3), 2))


def test_untrained_models_from_folders_gain_nothing(market, tmp_path):
    data, split, _, tables = market
    torch.manual_seed(0)
    clip = ClipConfig(width=32, layers=1, heads=2, patch=16, projection=32)
    backbone = twin(tables["train"].prompts, 48, clip)
    backbone.save(tmp_path / "clip")
    encoder = tables["train"].encoder
    PerFusionRM.from_backbone(backbone, encoder.cardinalities, RewardConfig(), encoder).save_pretrained(
        tmp_path / "reward"
    )
    metrics = evaluate_reward(
        data, split, tmp_path / "clip", tmp_path / "clip", tmp_path / "reward", tmp_path / "out",
        image_size=48, twin=True, gates=GATES, seed=0,
    )  # fmt: skip
    rows = pd.read_parquet(tmp_path / "out" / "groups.parquet")
    assert metrics["gap_closed"] == pytest.approx(0, abs=1e-6)  # zero-initialised plug-ins: the backbone itself
    assert not reward_gate(rows, GATES).passed
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == metrics
    assert len(pd.read_csv(tmp_path / "out" / "calibration.csv")) == 10
    assert not pd.read_parquet(tmp_path / "out" / "slices.parquet").empty
    kept = pd.read_parquet(tmp_path / "out" / "scores.parquet")
    assert len(kept) == sum(int(tables[split].valid.sum()) for split in ("test", "cold", "few"))


def test_every_candidates_score_is_kept_by_its_name(measured):
    tables, scores, rows, _ = measured
    kept = candidate_scores(tables, scores, "perfusion_rm").set_index(["record_id", "image_id"])["score"]
    table = tables["test"]
    group = int(table.valid.sum(1).argmax())
    ids = [table.image_ids[row] for row in table.image_index[group][table.valid[group]].tolist()]
    mine = [kept[table.record_ids[group], image] for image in ids]
    assert mine == scores["test"]["perfusion_rm"][group][table.valid[group]].tolist()
    row = rows[rows["record_id"] == table.record_ids[group]].iloc[0]
    assert average_precision(mine, table.picked[group][table.valid[group]].numpy()) == pytest.approx(
        row["ap_perfusion_rm"]
    )


def test_a_dataset_without_cold_start_users_is_measured_and_stays_inconclusive(market):
    _, _, truth, tables = market
    test = tables["test"]
    rows = {"image_index": test.image_index[:0], "valid": test.valid[:0], "picked": test.picked[:0]}
    empty = replace(test, **rows, user_index=test.user_index[:0], prompts=[], record_ids=[])
    few = {"test": test, "cold": empty, "few": empty}
    blind = Oracle(truth, test, knows_users=False)
    scores = {
        split: score_groups(few[split], RewardScorers(Oracle(truth, test), blind, blind), split, 0) for split in few
    }
    groups = group_rows(few, scores, {})
    metrics = reward_metrics(few, scores, groups, {}, OPTIONS)
    assert metrics["cold_gain_over_user_blind"] is None
    assert metrics["cold"]["perfusion_rm"]["map"] is None
    assert metrics["gap_closed"] is None
    assert reward_gate(groups, GATES).verdict == "inconclusive"
