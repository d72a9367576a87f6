"""The gates' test bench run by worker processes, and kept in work/benchmarks/gates.json."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from perfusion.checkpoint import atomic_write
from perfusion.config import GatesConfig, Params
from perfusion.progress import Progress
from perfusion.trials import Market
from perfusion.trials.bench import Batch, Size, figures, plan, run_batch
from perfusion.trials.models import CHAMPION_UTILITY, ERROR, FOLLOWS, OWN_KNOWN, READING, SHARED
from tasks.process import cpu_environment, die_with_parent
from tasks.workspace import Workspace

__all__ = ["gate_trials", "simulate"]

MERCHANTS = 600  # of the sample marketplace


def gate_trials(workspace: Workspace, size: Size) -> dict[str, Any]:
    """Put simulated pairs through the gates with this workspace's thresholds, and keep what came of it.

    Returns:
        What stands in work/benchmarks/gates.json: `perfusion.trials.bench.figures`, with the assumptions, the
        thresholds and the seconds.
    """
    params = workspace.params()
    began = time.monotonic()
    market = Market.draw(MERCHANTS, seed=0)
    found = {
        **simulate(market, params, size, workers=os.cpu_count() or 1),
        "assumptions": _assumptions(market, params),
        "size": asdict(size),
        "thresholds": params.gates.model_dump(),
        "seconds": round(time.monotonic() - began, 1),
    }
    atomic_write(workspace.gate_trials, json.dumps(found, indent=1, allow_nan=False).encode())
    return found


def simulate(market: Market, params: Params, size: Size, workers: int) -> dict[str, Any]:
    """`perfusion.trials.bench.figures` of all trials; the same whatever the number of workers.

    Args:
        market: the population.
        params: sections `gates` and `evaluate`.
        size: how many trials.
        workers: processes, of one thread each.
    """
    batches = plan(size)
    progress = Progress("gates on trial", sum(len(batch.seeds) for batch in batches))
    results: dict[int, list[Any]] = {}
    done = 0
    with _pool(market, params, workers) as pool:
        running = {pool.submit(_run, batch): place for place, batch in enumerate(batches)}
        for finished in as_completed(running):
            place = running[finished]
            results[place] = finished.result()
            done += len(results[place])
            progress.show(done, {})
    found: dict[str, list[Any]] = defaultdict(list)
    for place, batch in enumerate(batches):
        found[batch.kind] += results[place]
    return figures(found)


@contextmanager
def _pool(market: Market, params: Params, workers: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes that end with this one; what has not begun is dropped when the block ends."""
    before = dict(os.environ)
    os.environ.update(cpu_environment(1))  # read by numerical libraries while a worker imports them
    evaluate = params.evaluate
    start = (market, params.gates, evaluate.pairs * evaluate.pictures, evaluate.cold_pairs)
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_start, initargs=start)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        os.environ.clear()
        os.environ.update(before)


_given: tuple[Market, GatesConfig, int, int] | None = None  # in a worker: what all its batches share


def _start(market: Market, config: GatesConfig, pairs: int, cold_pairs: int) -> None:
    global _given
    die_with_parent()
    _given = (market, config, pairs, cold_pairs)


def _run(batch: Batch) -> list[Any]:
    assert _given is not None
    market, config, pairs, cold_pairs = _given
    return list(run_batch(market, config, batch, pairs, cold_pairs))


def _assumptions(market: Market, params: Params) -> dict[str, Any]:
    """What the figures rest on; see `perfusion.trials.models`."""
    return {
        "merchants": MERCHANTS,
        "users": min(params.evaluate.pairs, len(market.known)),
        "test_groups": int((market.groups.split == "test").sum()),
        "cold_groups": int((market.groups.split != "test").sum()),
        "champion_utility": CHAMPION_UTILITY,
        "error": ERROR,
        "shared_error": SHARED,
        "reading": READING,
        "own_taste_known": OWN_KNOWN,
        "follows_prompt": FOLLOWS,
    }
