"""Muon against timm's, and what goes to which optimiser."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from perfusion import torchvision_guard
from perfusion.config import OptimiserConfig
from perfusion.loop import TrainingRun, train
from perfusion.optimiser import Muon, build_optimisers, is_matrix, orthogonalise


@pytest.mark.parametrize("shape", [(16, 16), (20, 90), (90, 20), (64, 27)])
def test_orthogonalise_is_near_the_polar_factor(shape: tuple[int, int]) -> None:
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonalise(matrix)
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.6
    assert values.max() < 1.3
    assert (found * (u @ v)).sum() / (found.norm() * (u @ v).norm()) > 0.98  # cosine with the exact factor


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (32, 16, 3, 3)])
def test_steps_are_those_of_timm(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    torchvision_guard.install()
    from timm.optim import muon

    plain = muon.zeropower_via_newtonschulz
    monkeypatch.setattr(  # timm computes in bfloat16; in double precision the two must agree closely
        muon, "zeropower_via_newtonschulz", lambda *args, **kw: plain(*args, **{**kw, "dtype": torch.float64})
    )
    stream = torch.Generator().manual_seed(1)
    ours = nn.Parameter(torch.randn(*shape, generator=stream, dtype=torch.float64))
    theirs = copy.deepcopy(ours)
    optimisers = (
        Muon([ours], lr=0.02, momentum=0.9, weight_decay=0.1),
        muon.Muon([theirs], lr=0.02, momentum=0.9, weight_decay=0.1, nesterov=True),
    )
    for _ in range(4):
        ours.grad = torch.randn(*shape, generator=stream, dtype=torch.float64)
        theirs.grad = ours.grad.clone()
        for optimiser in optimisers:
            optimiser.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_every_parameter_is_stepped_once_with_its_groups_rate() -> None:
    module = nn.Sequential(nn.Conv2d(8, 32, 3), nn.GroupNorm(4, 32), nn.Conv2d(32, 4, 1), nn.Linear(16, 24))
    groups = [{"params": list(module[:2].parameters()), "lr": 0.5}, {"params": list(module[2:].parameters())}]
    config = OptimiserConfig(steps=1, lr=0.1, method="muon")
    matrices, rest = build_optimisers(list(module.parameters()), config, groups)
    assert isinstance(matrices, Muon)
    taken = [p for o in (matrices, rest) for group in o.param_groups for p in group["params"]]
    assert sorted(map(id, taken)) == sorted(map(id, module.parameters()))
    assert all(is_matrix(p) for group in matrices.param_groups for p in group["params"])
    assert not any(is_matrix(p) for group in rest.param_groups for p in group["params"])
    assert [group["lr"] for group in matrices.param_groups] == [0.5, 0.1]
    assert [len(build_optimisers(list(module.parameters()), OptimiserConfig(steps=1, lr=0.1)))] == [1]


def test_a_resumed_run_is_bit_equal(tmp_path) -> None:
    class Killed(Exception):
        pass

    def fit(folder, stop: int | None) -> nn.Module:
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 20))

        def objective(step: int):
            if step == stop:
                raise Killed
            x = torch.randn(8, 20)
            return (module(x) - x).square().mean(), {}

        config = OptimiserConfig(steps=12, lr=0.02, warmup=3, method="muon", checkpoint_seconds=1e-9)
        train(TrainingRun("toy", 0, state_dir=folder), {"toy": module}, objective, config)
        return module

    whole = fit(tmp_path / "whole", None)
    with pytest.raises(Killed):
        fit(tmp_path / "cut", 7)
    resumed = fit(tmp_path / "cut", None)
    for expected, found in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(expected, found)
