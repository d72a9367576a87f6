"""A training shared by two processes is the training of one: same curve, same weights, same states."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import trainings_in_processes as trainings
from safetensors.torch import load_file

from perfusion import distributed
from perfusion.distributed import ALONE, Processes
from perfusion.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parents[2]
CURVE = 1e-5  # relative, where three micro-batches are summed in another order
WEIGHTS = 1e-4  # of the largest of its tensor, after six steps: AdamW divides by the gradient's size, be it tiny
TWO = ("--multi_gpu", "--num_machines", "1", "--num_processes", "2", "--main_process_port", "0")
PLAIN = ("--mixed_precision", "no", "--dynamo_backend", "no")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Folders of the models, of what one process trained, and of what two did."""
    home, one, two = (tmp_path_factory.mktemp(name) for name in ("home", "one", "two"))
    trainings.make_models(home)
    for stage in ("reward", "generator"):
        trainings.train_one(home, home / "half", stage, 2, ALONE, trainings.HALF, home / "state")
    script = REPOSITORY / "tests" / "trainings_in_processes.py"
    command = [sys.executable, "-m", "accelerate.commands.launch", *TWO, *PLAIN, str(script), str(home), str(two)]
    paths = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
    launched = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    for stage, micro_batches in trainings.TRAININGS:
        name = f"{stage}-{micro_batches}"
        curve = trainings.train_one(home, one / name, stage, micro_batches, ALONE)
        (one / f"{name}.json").write_text(json.dumps(curve))
    said, _ = launched.communicate()
    assert launched.returncode == 0, said[-4000:]
    return home, one, two


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All weights below a folder, by file and name."""
    files = sorted(folder.rglob("*.safetensors"))
    assert files, f"{folder} holds no weights"
    return {f"{file.relative_to(folder)}:{name}": w for file in files for name, w in load_file(file).items()}


def apart(one: Path, two: Path) -> float:
    """The largest difference of two models' weights, relative to the largest weight of the same tensor."""
    a, b = weights(one), weights(two)
    assert a.keys() == b.keys()
    return max(float((a[k].double() - b[k].double()).abs().max() / a[k].double().abs().max().clamp(1e-6)) for k in a)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "micro_batches"), trainings.TRAININGS)
def test_two_processes_train_what_one_trains(
    places: tuple[Path, Path, Path], stage: str, micro_batches: int
) -> None:  # fmt: skip
    """Bit for bit with two micro-batches a step: a + b is b + a. Of three, one process has two: sums are rounded."""
    _, one, two = places
    name = f"{stage}-{micro_batches}"
    curves = [json.loads((place / f"{name}.json").read_text()) for place in (one, two)]
    assert [set(step) for step in curves[0]] == [set(step) for step in curves[1]]
    assert len({step["loss"] for step in curves[0] if "loss" in step}) == trainings.STEPS, "it did not move"
    if micro_batches == 2:
        assert curves[0] == curves[1]
        assert apart(one / name, two / name) == 0.0
    else:
        for alone, shared in zip(*curves, strict=True):
            assert shared == pytest.approx(alone, rel=CURVE, abs=CURVE)
        assert apart(one / name, two / name) < WEIGHTS


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["reward", "generator"])
def test_a_state_of_one_process_is_continued_by_two_and_the_other_way_round(
    places: tuple[Path, Path, Path], stage: str, tmp_path: Path
) -> None:
    home, one, two = places
    curve = json.loads((two / f"{stage}-resumed.json").read_text())
    trained = [step["step"] for step in curve if "grad_norm" in step]
    assert trained == list(range(trainings.HALF + 1, trainings.STEPS + 1)), "it did not go on from the state"
    assert apart(one / f"{stage}-2", two / f"{stage}-resumed") == 0.0
    curve = trainings.train_one(home, tmp_path / "whole", stage, 2, ALONE, state=two / "state")
    assert [step["step"] for step in curve if "grad_norm" in step] == trained
    assert apart(one / f"{stage}-2", tmp_path / "whole") == 0.0


def test_micro_batches_are_dealt_in_turn() -> None:
    dealt = [list(Processes(rank, 3).mine(7)) for rank in range(3)]
    assert dealt == [[0, 3, 6], [1, 4], [2, 5]]
    with pytest.raises(ConfigError, match="4 processes for 3 micro-batches a step"):
        Processes(0, 4).mine(3)


def test_alone_nothing_is_exchanged() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    ALONE.add_up([parameter])
    assert parameter.grad is None
    assert ALONE.gather([(1, "b"), (0, "a")]) == ["a", "b"]
    ALONE.start_alike(3, [torch.nn.Linear(1, 1)], None)


def test_gradients_are_summed_in_runs_of_bounded_size_and_one_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "_BUCKET", 10)
    sizes = [4, 5, 2, 30, 1, 1]
    gradients = [torch.ones(size, dtype=torch.float64 if place == 5 else None) for place, size in enumerate(sizes)]
    buckets = [[len(gradient) for gradient in bucket] for bucket in distributed._buckets(gradients)]
    assert buckets == [[4, 5], [2], [30], [1], [1]]
    assert list(distributed._buckets([])) == []


class _Both:
    """Stands for two processes: sums what both hold, this one's and `other`."""

    def __init__(self, *other: torch.Tensor) -> None:
        self.other = list(other)

    def all_reduce(self, tensor: torch.Tensor) -> None:
        tensor.add_(self.other.pop(0))


def test_a_weight_that_another_process_alone_touched_gets_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that nobody touched keeps none: an optimiser then leaves it alone, as it does in one process."""
    mine, theirs, nobodys = (torch.nn.Parameter(torch.zeros(2)) for _ in range(3))
    mine.grad = torch.tensor([1.0, 2.0])
    others = _Both(torch.tensor([1.0, 1.0, 0.0]), torch.tensor([10.0, 20.0, 3.0, 4.0]))
    monkeypatch.setattr(distributed, "dist", others)
    Processes(0, 2).add_up([mine, theirs, nobodys])
    assert mine.grad.tolist() == [11.0, 22.0]
    assert theirs.grad is not None
    assert theirs.grad.tolist() == [3.0, 4.0]
    assert nobodys.grad is None
