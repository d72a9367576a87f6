"""The same bits from the same training, however the processor's threads are scheduled."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from perfusion.config import OptimiserConfig
from perfusion.loop import TrainingRun, train
from perfusion.seeding import repeatable

ROWS, WEIGHTS = 2, 768
STREAM = torch.Generator().manual_seed(0)
TAKEN = torch.randint(ROWS, (400,), generator=STREAM)  # each row many times
TARGET = torch.randn(len(TAKEN), WEIGHTS, generator=STREAM)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def loss_of(table: Tensor) -> Tensor:
    return (table[TAKEN] * TARGET).sum()


def test_a_training_has_the_same_bits_every_time() -> None:
    def trained() -> bytes:
        table = nn.Embedding.from_pretrained(torch.zeros(ROWS, WEIGHTS), freeze=False)
        train(
            TrainingRun("x", 0), {"x": table}, lambda step: (loss_of(table.weight), {}), OptimiserConfig(steps=8, lr=1)
        )
        return table.weight.detach().numpy().tobytes()

    assert len({trained() for _ in range(5)}) == 1


def test_a_gradient_is_summed_in_one_order_and_the_setting_is_left_as_it_was() -> None:
    def gradient() -> bytes:
        table = torch.zeros(ROWS, WEIGHTS, requires_grad=True)
        loss_of(table).backward()
        assert table.grad is not None
        return table.grad.numpy().tobytes()

    with repeatable():
        assert len({gradient() for _ in range(50)}) == 1
    assert not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(KeyError), repeatable():
        raise KeyError
    assert not torch.are_deterministic_algorithms_enabled()
