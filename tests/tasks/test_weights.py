"""The table of models: what is here with its hash, what is a twin, and what to download for it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from perfusion.config import EvaluateConfig, Params, ScorerWeights
from tasks.weights import weights_table


def test_without_weights_every_model_is_a_twin_with_its_download_and_parameter() -> None:
    rows = weights_table(Params())
    assert {row.state for row in rows} == {"twin"}
    assert all(row.download and row.parameter and not row.sha256 for row in rows)
    found = {row.model: (row.download, row.parameter) for row in rows}
    assert found["HPS v2.1"] == ("HPS_v2.1_compressed.pt of xswu/HPSv2", "evaluate.weights.hpsv2.1")
    assert found["Stable Diffusion 1.5"] == ("stable-diffusion-v1-5/stable-diffusion-v1-5", "diffusion.path")
    assert found["reward backbone vilt"][0] == "dandelin/vilt-b32-finetuned-coco"


def test_what_is_here_has_its_hash_and_what_is_named_but_absent_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "hpc.pth").write_bytes(b"weights")
    weights = {"hpsv1": ScorerWeights(path=str(tmp_path)), "hpsv2": ScorerWeights(path="xswu/HPSv2")}
    rows = {row.model: row for row in weights_table(Params(evaluate=EvaluateConfig(weights=weights)))}
    assert (rows["HPS v1"].state, rows["HPS v1"].sha256) == ("present", (hashlib.sha256(b"weights").hexdigest(),))
    assert (rows["HPS v2"].state, rows["HPS v2"].where) == ("asked", "xswu/HPSv2")
    assert rows["HPS v2.1"].state == "twin"
