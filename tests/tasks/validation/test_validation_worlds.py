"""Whole datasets: every planted defect of the sample world is found and nothing else; the photographs pass clean."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from perfusion.config import DataConfig
from perfusion.data import read_dataset
from perfusion.governance.data_gate import data_gate
from perfusion.world import write_marketplace
from tasks.validation import accept, validate


def test_every_planted_defect_of_the_sample_world_is_found(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_marketplace(data, users=12, seed=3, dirt=True)
    config = DataConfig()
    report = validate(data, config, None, tmp_path / "valid", tmp_path / "quarantine")
    planted = pd.DataFrame(json.loads((data / "dirt.json").read_text()))
    planted["rule"] = planted["rule"].str.split().str[0]
    for table in ("groups", "users"):
        expected = planted[(planted["table"] == table) & (planted["rule"] != "unseen")]
        entries = pd.read_parquet(tmp_path / "quarantine" / f"{table}.parquet")
        named = expected[~expected["rule"].str.endswith("_id_present")]
        found = set(zip(entries["record_id"], entries["rule"], strict=True))
        assert set(zip(named["id"], named["rule"], strict=True)) <= found
        assert set(entries["rule"]) == set(expected["rule"])
    images = pd.read_parquet(tmp_path / "quarantine" / "images.parquet")
    assert set(images["record_id"]) == set(planted.loc[planted["table"] == "images", "id"])
    extra = 1  # two different records of one id: both are set aside
    assert report["quarantined"] == (planted["table"] == "groups").sum() + extra
    assert report["groups_in"] == report["quarantined"] + report["valid"]
    gate = data_gate(report, config)
    assert gate.verdict == "fail"
    assert any(reason.startswith("fail: rule image_readable failed 4 of") for reason in gate.reasons)


def test_the_photographs_pass_clean_and_do_not_drift_from_themselves(shared: Path, tmp_path: Path) -> None:
    data = shared / "data" / "marketplace"
    out, accepted = (tmp_path / "valid", tmp_path / "quarantine"), tmp_path / "accepted.json"
    first = validate(data, DataConfig(), None, *out)
    assert first["valid"] == first["groups_in"] == len(read_dataset(data).groups)
    assert first["coercions"] == []
    accept(out[0], accepted)
    second = validate(data, DataConfig(), accepted, *out)
    assert {row["psi"] for row in second["drift"]} == {0.0}
    assert data_gate(second, DataConfig()).passed
