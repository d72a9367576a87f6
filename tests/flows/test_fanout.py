"""Encoding, drawing and judging give the same bytes in this process, on one Dask worker and on two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.untrained import make_stages
from perfusion.config import EncodeConfig, EvaluateConfig, GatesConfig
from perfusion.data import load_tables
from perfusion.errors import ConfigError, DataError
from perfusion.evaluation.generator import evaluate_generator
from perfusion.fanout import FanOut, in_turn, stamp
from perfusion.generation import encode
from tasks.fanout import _spread, on_workers

Made = dict[str, Path]
TIMED = ("costs",)  # the only figures of an evaluation that hang on the machine
MODELS = ("clip", "clip", "reward", "diffusion", "sft", "dpo", "generator")  # tuned on nothing: clip is pickscore too


def _compute(root: Path, out: Path, fan_out: FanOut) -> None:
    """Both stages' work, in shards of a few pictures and of four items."""
    tables = load_tables(root / "data", root / "split", 48, splits=("train", "valid"))
    encode(tables, root / "diffusion", EncodeConfig(batch_images=64, orders=2), out / "encode", fan_out=fan_out)
    evaluate_generator(
        root / "data", root / "split", *(root / name for name in MODELS), out / "evaluation", image_size=48, twin=True,
        config=EvaluateConfig(pairs=10, batch_pictures=4, sheet_users=2), gates=GatesConfig(resamples=50, min_users=2),
        seed=0, fan_out=fan_out,
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, prefect_server: None) -> Made:
    """Where each way of computing left its files."""
    root = make_stages(tmp_path_factory.mktemp("stages"))
    outs = {name: tmp_path_factory.mktemp(name) for name in ("here", "one", "two")}
    _compute(root, outs["here"], in_turn)
    for name, workers in (("one", 1), ("two", 2)):
        on_workers(workers, torch.get_num_threads(), lambda fan_out, out=outs[name]: _compute(root, out, fan_out))
    return outs


def _content(folder: Path) -> dict[str, Any]:
    """Every file below a folder by its name: its bytes, or of the evaluation's metrics what is no matter of time."""
    found: dict[str, Any] = {}
    for file in sorted(folder.rglob("*")):
        if file.name == "metrics.json":
            metrics = json.loads(file.read_text())
            found[file.name] = {name: value for name, value in metrics.items() if name not in TIMED}
        elif file.is_file():
            found[str(file.relative_to(folder))] = file.read_bytes()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["one", "two"])
def test_workers_give_the_bytes_of_this_process(made: Made, workers: str) -> None:
    here, there = _content(made["here"]), _content(made[workers])
    assert {"encode/mean.npy", "encode/contexts.npy", "evaluation/pictures.parquet", "metrics.json"} <= set(here)
    assert sum(name.endswith(".png") for name in here) == 5 * 10 + 2
    assert here.keys() == there.keys()
    assert [name for name in here if here[name] != there[name]] == []


def _double(number: int) -> int:
    if number == 5:
        raise DataError("five cannot be doubled")
    return 2 * number


class _Submitted:
    """Stands for a task run: computes when it is asked, and counts those that wait."""

    waiting = most = 0

    def __init__(self, packed: bytes, threads: int) -> None:
        type(self).waiting += 1
        type(self).most = max(self.most, self.waiting)
        self.packed = packed

    def result(self) -> bytes:
        import pickle

        type(self).waiting -= 1
        function, shard = pickle.loads(self.packed)
        return pickle.dumps(function(shard))


def test_results_come_in_order_and_few_shards_wait_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.fanout._shard.submit", _Submitted)
    assert list(_spread(_double, range(5), threads=1, ahead=3)) == [0, 2, 4, 6, 8]
    assert _Submitted.most == 3
    assert _Submitted.waiting == 0
    with pytest.raises(DataError, match="five cannot be doubled"):
        list(_spread(_double, range(7), threads=1, ahead=3))


def test_without_a_server_to_share_workers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.fanout.PREFECT_API_URL", type("Unset", (), {"value": staticmethod(lambda: None)}))
    with pytest.raises(ConfigError, match="workers 2: their task runs need a Prefect server"):
        on_workers(2, 1, lambda fan_out: None)


def test_a_model_that_was_trained_again_has_another_stamp(tmp_path: Path) -> None:
    import os

    file = tmp_path / "model.safetensors"
    file.write_bytes(b"one")
    before = stamp(tmp_path)
    assert stamp(tmp_path) == before
    file.write_bytes(b"two")
    os.utime(file, ns=(0, before[0][2] + 1))
    assert stamp(tmp_path) != before
