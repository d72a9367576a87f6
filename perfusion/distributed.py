"""Several processes that share a training: each computes some micro-batches of every step, all take the same step.

Parameters say what is computed (`optimiser.accumulate` micro-batches a step), processes only where: micro-batch k of a
step is drawn from its own number whoever computes it, its gradient has the same bits, and counts as one of
`accumulate` however many of them a process got. What may differ between numbers of processes is the order in which
gradients are summed, hence the last bits of the sum; of two micro-batches on two processes not even those.

A launcher starts the processes (`accelerate launch`, torchrun) and ends all of them when one fails.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from perfusion.errors import ConfigError

__all__ = ["ALONE", "Processes", "joined"]

T = TypeVar("T")
_BUCKET = 1 << 24  # numbers summed at a time: 64 MiB of float32


@dataclass(frozen=True)
class Processes:
    """Those that share a training, as one of them sees it; the default is a training in one process.

    Attributes:
        rank: this one's number, from 0.
        count: of all.
    """

    rank: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        """Whether this one logs, keeps states and writes what comes of it: number 0 does."""
        return self.rank == 0

    def mine(self, micro_batches: int) -> range:
        """Which of a step's micro-batches this process computes: every `count`-th.

        Raises:
            ConfigError: there are fewer of them than processes.
        """
        if micro_batches < self.count:
            raise ConfigError(
                f"{self.count} processes for {micro_batches} micro-batches a step (optimiser.accumulate): start at "
                f"most {micro_batches}, or raise accumulate and lower the batch by the same factor"
            )
        return range(self.rank, micro_batches, self.count)

    def add_up(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its sum over all processes; what none of them touched keeps none."""
        if self.count == 1:
            return
        parameters = list(parameters)
        touched = torch.tensor([float(p.grad is not None) for p in parameters])
        dist.all_reduce(touched)
        used = [p for p, times in zip(parameters, touched.tolist(), strict=True) if times]
        for parameter in used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for bucket in _buckets([p.grad for p in used if p.grad is not None]):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            dist.all_reduce(flat)
            for gradient, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                gradient.copy_(part.view_as(gradient))

    def gather(self, told: Sequence[tuple[int, T]]) -> list[T]:
        """What all processes told of their micro-batches, (number, value), as values in the order of the numbers."""
        everything = [list(told)]
        if self.count > 1:
            everything = [[] for _ in range(self.count)]
            dist.all_gather_object(everything, list(told))
        return [value for _, value in sorted((pair for part in everything for pair in part), key=lambda pair: pair[0])]

    def start_alike(self, step: int, modules: Iterable[nn.Module], file: object) -> None:
        """See that all begin at the same step, from the weights and buffers of process 0.

        Args:
            step: from which this process goes on.
            modules: that train.
            file: of the state it was read from, for the message.

        Raises:
            ConfigError: another process goes on from another step: they do not read the same state.
        """
        if self.count == 1:
            return
        steps = self.gather([(self.rank, step)])
        if len(set(steps)) > 1:
            raise ConfigError(
                f"processes go on from different steps, {steps}: {file} must be on a disk that all of them share"
            )
        for module in modules:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, 0)


ALONE = Processes()


@contextmanager
def joined() -> Iterator[Processes]:
    """Join the processes that a launcher started with this one, for the time of the block; alone where none did.

    Gradients on CUDA are summed by NCCL, on a CPU by Gloo. Where there is CUDA, every process takes a device of its
    machine, by its number there.
    """
    if not dist.is_torchelastic_launched():
        yield ALONE
        return
    accelerated = torch.cuda.is_available()
    if accelerated:
        torch.cuda.set_device(dist.get_node_local_rank())
    dist.init_process_group("cpu:gloo,cuda:nccl" if accelerated else "gloo")
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
        dist.barrier()  # nobody leaves while another still computes
    finally:
        dist.destroy_process_group()


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The gradients in their order, in runs of about `_BUCKET` numbers of one type."""
    bucket: list[Tensor] = []
    for gradient in gradients:
        full = sum(g.numel() for g in bucket) + gradient.numel() > _BUCKET
        if bucket and (full or bucket[0].dtype != gradient.dtype):
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket
