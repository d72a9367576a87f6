"""Shards on Dask workers, through Prefect's task runner: what `perfusion.fanout.in_turn` gives, several at a time.

Every shard is a task run of Prefect, so that a run's page shows which are done, which failed and where. Imported only
by a stage that is to be spread: it brings Prefect and Dask with it.
"""

from __future__ import annotations

import os
import pickle
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any, TypeVar

import dask
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.settings import PREFECT_API_URL
from prefect_dask import DaskTaskRunner

from perfusion.errors import ConfigError
from perfusion.fanout import FanOut
from tasks.process import cpu_environment

__all__ = ["on_workers"]

T = TypeVar("T")
R = TypeVar("R")
_AHEAD = 2  # shards that wait at each worker: more would only fill the scheduler's memory
_work: ContextVar[Callable[[], Any]] = ContextVar("work")  # no parameter: Prefect sends those along with every task


def on_workers(workers: int, threads: int, work: Callable[[FanOut], R]) -> R:
    """`work(fan_out)` with shards computed by Dask workers.

    Args:
        workers: how many are started on this machine, each a process of its own; gone when this returns. Where
            `DASK_SCHEDULER_ADDRESS`, Dask's own variable, names a cluster, that one is used and none are started.
        threads: torch's, at every worker. Results are the same bytes as here where this process has as many.
        work: is handed what maps a function over shards; function, shards and results are pickled.

    Raises:
        ConfigError: there is no Prefect server that this process and the workers could share.
        Whatever a shard or `work` raises.
    """
    if PREFECT_API_URL.value() is None:  # Prefect would start one here and another one in every worker
        raise ConfigError(
            f"workers {workers}: their task runs need a Prefect server, and PREFECT_API_URL names none\n"
            "remedy: `perfusion retrain` and `perfusion stage NAME` start one; for `dvc repro` run `make prefect` in "
            "another terminal and set PREFECT_API_URL=http://127.0.0.1:4200/api; or set workers to 1"
        )
    address = os.environ.get("DASK_SCHEDULER_ADDRESS")
    local = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0", "memory_limit": 0}
    runner = DaskTaskRunner(address=address) if address else DaskTaskRunner(cluster_kwargs=local)
    spread = partial(_spread, threads=threads, ahead=_AHEAD * workers)
    token = _work.set(lambda: work(spread))
    try:
        with dask.config.set({"distributed.nanny.pre-spawn-environ": cpu_environment(threads)}):
            return _fan_out.with_options(task_runner=runner)()
    finally:
        _work.reset(token)


def run_work() -> Any:
    """The work that `on_workers` was given."""
    return _work.get()()


def compute_shard(packed: bytes, threads: int) -> bytes:
    """One shard, packed, because Prefect looks through whatever else is passed to a task."""
    import torch

    torch.set_num_threads(threads)
    function, shard = pickle.loads(packed)
    return pickle.dumps(function(shard))


# no decorators: a function that a worker finds under its own name is sent as a name, others with all they refer to
_fan_out: Any = flow(name="fan-out", persist_result=False, validate_parameters=False)(run_work)
_shard: Any = task(name="shard", cache_policy=NO_CACHE, persist_result=False)(compute_shard)


def _spread(function: Callable[[T], R], shards: Iterable[T], /, *, threads: int, ahead: int) -> Iterator[R]:
    """Results in the order of the shards, at most `ahead` of which are on their way at a time."""
    waiting: deque[Any] = deque()
    for shard in shards:
        waiting.append(_shard.submit(pickle.dumps((function, shard)), threads))
        if len(waiting) >= ahead:
            yield pickle.loads(waiting.popleft().result())
    while waiting:
        yield pickle.loads(waiting.popleft().result())
