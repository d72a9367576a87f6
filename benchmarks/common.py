"""What every benchmark shares: arms timed in turn within one run, ratios round by round, one JSON, one table.

Only torch, numpy, psutil and rich: `benchmarks/gpu.py` runs on a bare machine.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

__all__ = ["OUT", "Timing", "hardware", "measure", "peak_memory", "record", "show"]

OUT = Path("work/benchmarks")
HEADLINES = OUT / "speed.json"


@dataclass(frozen=True)
class Timing:
    """One arm's figures.

    Attributes:
        arm: its name.
        seconds: one number a round.
        items: pictures, groups or rows that a round works through.
        ratio: median over rounds of this arm's seconds an item over the baseline's in the same round; low, high its
            quartiles.
    """

    arm: str
    seconds: list[float]
    items: int
    ratio: float
    low: float
    high: float

    @property
    def per_item(self) -> float:
        """Median seconds an item."""
        return statistics.median(self.seconds) / self.items


def measure(
    arms: Mapping[str, Callable[[], object]],
    baseline: str,
    items: Mapping[str, int] | int = 1,
    rounds: int = 7,
    warmup: int = 1,
) -> list[Timing]:
    """Time the arms in turn, `rounds` times over, so that whatever else the machine does falls on all of them.

    This process then keeps the memory it frees (`keep_freed_memory`).

    Args:
        arms: name -> one round of its work.
        baseline: the arm whose time the ratios are over.
        items: pictures (groups, rows) a round works through, for all or by arm; ratios are per item.
        rounds: how often each arm runs.
        warmup: rounds before those, not counted.
    """
    keep_freed_memory()
    count = {name: items if isinstance(items, int) else items[name] for name in arms}
    taken: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(warmup + rounds):
        for name, work in arms.items():
            _wait_for_device()
            began = time.perf_counter()
            work()
            _wait_for_device()
            if turn >= warmup:
                taken[name].append(time.perf_counter() - began)
        print(f"round {turn + 1}/{warmup + rounds}", file=sys.stderr, flush=True)
    base = [seconds / count[baseline] for seconds in taken[baseline]]
    timings = []
    for name, seconds in taken.items():
        ratios = [s / count[name] / b for s, b in zip(seconds, base, strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
        timings.append(Timing(name, seconds, count[name], statistics.median(ratios), low, high))
    return timings


def keep_freed_memory() -> None:
    """Let glibc keep what this process frees, as an accelerator's allocator and tuned servers do; no-op elsewhere.

    By default it hands large blocks back to the kernel, which fills them in anew page by page: time that has nothing to
    do with what an arm computes.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        trim_threshold, top_pad, mmap_max = -1, -2, -4  # malloc.h
        for parameter, value in ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 2**28)):
            if not libc.mallopt(parameter, value):
                raise RuntimeError(f"mallopt({parameter}, {value}) was refused by the C library")


def peak_memory(command: Sequence[str]) -> int:
    """Peak resident bytes of a Python command run in a process of its own, its output passed on.

    Raises:
        RuntimeError: it fails.
    """
    code = (
        "import resource, subprocess, sys; r = subprocess.run(sys.argv[1:], stdout=sys.stderr).returncode; "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024); sys.exit(r)"
    )
    done = subprocess.run([sys.executable, "-c", code, sys.executable, *command], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}")
    return int(done.stdout.split()[-1])


def hardware() -> str:
    """The machine in a line: processor or accelerator, cores, memory, versions."""
    import psutil

    memory = psutil.virtual_memory().total / 2**30
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    return (
        f"{device}, {len(os.sched_getaffinity(0))} cores, {torch.get_num_threads()} torch threads, {memory:.0f} GiB, "
        f"python {platform.python_version()}, torch {torch.__version__}"
    )


def record(name: str, timings: Sequence[Timing], headlines: Mapping[str, Mapping[str, float]], **facts: Any) -> None:
    """Keep a benchmark's figures: all of them in `work/benchmarks/NAME.json`, headlines merged into `speed.json`.

    Args:
        headlines: section -> figure -> value, e.g. {"training": {"perfusion_over_plain": 1.2}}.
        facts: anything else worth keeping (sizes, FLOPs, bytes).
    """
    OUT.mkdir(parents=True, exist_ok=True)
    stamp = {"hardware": hardware(), "date": datetime.now(UTC).isoformat(timespec="seconds")}
    _write(OUT / f"{name}.json", {**stamp, **facts, "timings": [asdict(t) for t in timings], "headlines": headlines})
    merged = json.loads(HEADLINES.read_text()) if HEADLINES.exists() else {}
    for section, figures in headlines.items():
        merged[section] = {**merged.get(section, {}), **figures}
    _write(HEADLINES, merged)


def show(title: str, timings: Sequence[Timing], unit: str = "picture") -> None:
    """Print the table, as Markdown, so that it can be kept in docs/performance.md as it is."""
    print(f"\n### {title}\n\n{hardware()}, {datetime.now(UTC):%Y-%m-%d}\n")
    print(f"| arm | ms a {unit} | ratio | quartiles of the ratio | rounds |\n|---|---|---|---|---|")
    for t in timings:
        row = [t.arm, f"{1000 * t.per_item:.4g}", f"{t.ratio:.3f}", f"{t.low:.3f} to {t.high:.3f}", len(t.seconds)]
        print("| " + " | ".join(str(cell) for cell in row) + " |")


def _write(file: Path, content: Mapping[str, Any]) -> None:
    part = file.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1))
    part.replace(file)


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
