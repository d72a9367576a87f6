"""Stages whose training several processes share: how they are started, and how a process finds the others."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

from perfusion.config import Params
from perfusion.errors import ConfigError

if TYPE_CHECKING:
    from perfusion.distributed import Processes

__all__ = ["SHARED", "is_launched", "launch", "processes_of", "together"]

#: Stages that several processes can share; the others have no training, or one of the tiny twins.
SHARED = ("pickscore", "reward", "dpo", "sft", "generator")


def processes_of(stage: str, params: Params) -> int:
    """How many processes a stage is to have: `processes`, but no more than its step has micro-batches."""
    if stage not in SHARED:
        return 1
    return min(params.processes, getattr(params, stage).optimiser.accumulate)


def is_launched() -> bool:
    """Whether a launcher (`accelerate launch`, torchrun) started this process, alone or with others."""
    return "TORCHELASTIC_RUN_ID" in os.environ  # as torch.distributed.is_torchelastic_launched, without torch


def launch(arguments: list[str], count: int) -> NoReturn:
    """Become the launcher of `count` processes of `python -m tasks.stages ARGUMENTS` on this machine.

    `--multi_gpu` is accelerate's name for torch's launcher, with or without GPUs. When one process fails or is killed,
    the launcher ends the others and fails.
    """
    options = ["--multi_gpu", "--num_machines", "1", "--num_processes", str(count), "--main_process_port", "0"]
    plain = ["--mixed_precision", "no", "--dynamo_backend", "no"]  # the parameters' section `compute` says these
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, *plain, "-m", "tasks.stages", *arguments]
    sys.stderr.flush()
    os.execv(sys.executable, command)


@contextmanager
def together(stage: str) -> Iterator[Processes | None]:
    """The processes that share the stage, for the time of the block; None where no launcher started any.

    Raises:
        ConfigError: several were started for a stage that one process runs.
    """
    if not is_launched():
        yield None
        return
    from perfusion.distributed import joined

    with joined() as processes:
        if processes.count > 1 and stage not in SHARED:
            raise ConfigError(
                f"{stage}: {processes.count} processes were launched for a stage that one runs; those that several can "
                f"share are {', '.join(SHARED)}. Encoding and drawing are spread by the parameter `workers`"
            )
        yield processes
