"""One worker against two on this machine, side by side: training, encoding, drawing and judging.

Of one thread a process, on the sample marketplace with untrained twins of the sample's size (cost does not hang on
weights). Rounds alternate between one and two, so that whatever else the machine does falls on both.

    training    seconds of a step, of two micro-batches: in one process, and shared by two (`accelerate launch`, Gloo)
    encode,     seconds of the whole work after the workers have started: in this process ("here"), on one Dask worker
    evaluate    and on two

Seconds are told twice: by the clock, and as processor seconds of the busiest, which other work on the machine leaves
alone: of the first process of a training; of the slower worker and of what this process does beside them.

What comes out must be the same bytes with one and with two, or this stops.

    python -m benchmarks.scaling --rounds 3
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import hardware, record

__all__ = ["main"]

Seconds = dict[str, dict[str, list[tuple[float, float]]]]
STEPS = 16  # of a training; the first is not counted
LAUNCH = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--main_process_port", "0",
          "--mixed_precision", "no", "--dynamo_backend", "no", "--num_processes")  # fmt: skip
#: Spreads the work over Dask workers, as the stages do.
ON_WORKERS = """
import sys
from pathlib import Path
from flows.environment import quieten
quieten(Path.cwd())
from flows.server import start_server
root, out, workers = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
if __name__ == "__main__":  # workers import this file too
    start_server()()
    from benchmarks.scaling import shards
    from tasks.fanout import on_workers
    on_workers(workers, 1, lambda fan_out: shards(root, out, workers, fan_out))
"""


def main() -> None:
    """Measure, print the table, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="how often one and two take their turns")
    parser.add_argument("--users", type=int, default=40, help="merchants of the sample marketplace")
    parser.add_argument("--work", nargs=3, metavar=("WHAT", "ROOT", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work is not None:
        what, root, out = options.work
        parts: dict[str, Callable[[Path, Path], None]] = {
            "make": partial(make, users=options.users), "train": train, "here": here
        }  # fmt: skip
        parts[what](Path(root), Path(out))
        return
    load = os.getloadavg()
    with tempfile.TemporaryDirectory(prefix="perfusion-scaling-") as scratch:
        root = Path(scratch) / "made"
        _python("-m", "benchmarks.scaling", "--users", str(options.users), "--work", "make", str(root), str(root))
        seconds = _rounds(root, Path(scratch), options.rounds)
    rows = _rows(seconds)
    two = {f"{row['what']}_two_over_one": row["seconds_ratio"] for row in rows if row["workers"] == 2}
    record("scaling", [], {"scaling": two}, rows=rows, seconds=seconds, load_before=load, load_after=os.getloadavg())
    _show(rows, load)


def _rounds(root: Path, scratch: Path, rounds: int) -> Seconds:
    """Seconds, by the clock and of a processor, by what was done and by how many did it, one pair a round."""
    found: Seconds = {}
    prints: dict[str, str] = {}
    for turn in range(rounds):
        for how in ("here", "1", "2"):
            out = scratch / f"{turn}-{how}"
            out.mkdir()
            _one_turn(root, out, how)
            for file in sorted(out.glob("*.json")):
                told = json.loads(file.read_text())
                found.setdefault(file.stem, {}).setdefault(how, []).append((told["seconds"], told["cpu"]))
                if prints.setdefault(file.stem, told["print"]) != told["print"]:
                    raise SystemExit(f"{file.stem}: other bytes with {how} than with those before")
            print(f"round {turn + 1}/{rounds}: {how}", file=sys.stderr, flush=True)
    return found


def _one_turn(root: Path, out: Path, how: str) -> None:
    """Everything once, by this process alone ("here"; trainings have no other way to be alone) or by workers."""
    train = ("-m", "benchmarks.scaling", "--work", "train", str(root), str(out))
    if how == "here":
        _python(*train)
        _python("-m", "benchmarks.scaling", "--work", "here", str(root), str(out))
        return
    if how == "2":
        _python(*LAUNCH, how, *train)
    script = out / "on_workers.py"  # workers import the file that started them
    script.write_text(ON_WORKERS)
    _python(str(script), str(root), str(out), how)


def make(root: Path, out: Path, users: int) -> None:
    """Untrained twins of the sample's size in `root`, and encoded pictures in `root`/encode; `out` is not used."""
    from benchmarks.untrained import SIDE, make_stages
    from perfusion.config import ClipConfig, DiffusionConfig, EncodeConfig
    from perfusion.data import load_tables
    from perfusion.generation import encode

    make_stages(root, users, ClipConfig(), DiffusionConfig(), DiffusionConfig().sampling.steps)
    tables = load_tables(root / "data", root / "split", SIDE, splits=("train", "valid"))
    encode(tables, root / "diffusion", EncodeConfig(), root / "encode")


def train(root: Path, out: Path) -> None:
    """Both trainings, by this process or with those of the launcher; the first writes seconds a step and a print."""
    from benchmarks.untrained import SIDE
    from perfusion.config import OptimiserConfig, RewardConfig, SamplingConfig, load_params
    from perfusion.data import load_tables
    from perfusion.distributed import joined
    from perfusion.generation import train_generator
    from perfusion.loop import TrainingRun
    from perfusion.reward import train_reward

    torch.set_num_threads(1)
    sample = load_params(Path(__file__).parents[1] / "params.yaml").generator
    with joined() as processes:
        tables = load_tables(root / "data", root / "split", SIDE, splits=("train", "valid"))
        optimiser = OptimiserConfig(steps=STEPS, lr=1e-3, accumulate=2, log_every=1)
        for name in ("reward", "generator"):
            told: list[tuple[float, float]] = []
            run = TrainingRun(name, 0, processes=processes, on_metrics=partial(_note, told))
            into = out / f"{name}-{processes.rank}"
            if name == "reward":
                reward = RewardConfig(optimiser=optimiser, batch_groups=32, evaluate_every=STEPS)
                train_reward(tables, root / "clip", reward, into, run)
                told = told[1:-1]  # the first and the last tell of a measurement on held-out groups
            else:
                half = {"optimiser": optimiser, "batch_groups": 6, "terminal_groups": 8}
                generator = sample.model_copy(update=half)
                folders = (root / "encode", root / "diffusion", root / "dpo")
                train_generator(tables, *folders, generator, SamplingConfig(), into, run)
            if processes.leads:
                clock, cpu = ([b[i] - a[i] for a, b in pairwise(told)] for i in (0, 1))
                _tell(out / f"{name}-step.json", (statistics.median(clock), statistics.median(cpu)), into)


def _note(told: list[tuple[float, float]], *_: object) -> None:
    told.append(_now())


def here(root: Path, out: Path) -> None:
    """Encode and evaluate in this process."""
    from perfusion.fanout import in_turn

    torch.set_num_threads(1)
    shards(root, out, 0, in_turn)


def shards(root: Path, out: Path, workers: int, fan_out: Any) -> None:
    """Encode and evaluate with `fan_out`, timed after every worker has imported what it needs."""
    from benchmarks.untrained import SIDE
    from perfusion.config import EncodeConfig, EvaluateConfig, GatesConfig
    from perfusion.data import load_tables
    from perfusion.evaluation.generator import evaluate_generator
    from perfusion.generation import encode

    spread = partial(fan_out, _busy)
    tables = load_tables(root / "data", root / "split", SIDE, splits=("train", "valid"))
    before = dict(spread([2.0] * workers))
    began = _now()
    encode(tables, root / "diffusion", EncodeConfig(), out / "encode", fan_out=fan_out)
    ended = _now()
    between = dict(spread([2.0] * workers))
    _tell(out / "encode.json", _taken(began, ended, before, between), out / "encode")
    began = _now()
    evaluate_generator(
        root / "data", root / "split", root / "clip", root / "clip", root / "reward", root / "diffusion", root / "sft",
        root / "dpo", root / "generator", out / "evaluation", image_size=SIDE, twin=True,
        config=EvaluateConfig(pairs=96, batch_pictures=16), gates=GatesConfig(resamples=200, min_users=5), seed=0,
        fan_out=fan_out,
    )  # fmt: skip
    ended = _now()
    _tell(out / "evaluate.json", _taken(began, ended, between, dict(spread([2.0] * workers))), out / "evaluation")


def _now() -> tuple[float, float]:
    """The clock, and this process's processor seconds."""
    return time.perf_counter(), time.process_time()


def _busy(seconds: float) -> tuple[int, float]:
    """A worker's number and processor seconds, after importing what shards need.

    The worker is held for a while, so that the next of these goes to another one.
    """
    import perfusion.evaluation.studio  # noqa: F401

    time.sleep(seconds)
    return os.getpid(), time.process_time()


def _taken(
    began: tuple[float, float], ended: tuple[float, float], before: Mapping[int, float], after: Mapping[int, float]
) -> tuple[float, float]:
    """Seconds by the clock, and processor seconds here and of the busiest worker."""
    workers = [after[pid] - before[pid] for pid in before.keys() & after.keys()]
    if before.keys() != after.keys():
        raise SystemExit(f"workers {sorted(before)} became {sorted(after)}: one was not asked, or died")
    return ended[0] - began[0], ended[1] - began[1] + max(workers, default=0.0)


def _tell(file: Path, seconds: tuple[float, float], made: Path) -> None:
    """Keep how long it took, and a print of every file made but those that tell of time."""
    digest = hashlib.blake2b(digest_size=12)
    for part in sorted(made.rglob("*")):
        if part.is_file() and part.suffix != ".json":
            digest.update(f"{part.relative_to(made)}\0".encode())
            digest.update(part.read_bytes())
    file.write_text(json.dumps({"seconds": seconds[0], "cpu": seconds[1], "print": digest.hexdigest()}))


def _python(*arguments: str) -> None:
    """A python process of one thread with this checkout's code; its output is kept back unless it fails."""
    one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    environment = {**os.environ, **one, "PYTHONPATH": str(Path.cwd()), "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}: exit code {done.returncode}\n{done.stdout[-3000:]}")


def _rows(seconds: Seconds) -> list[dict[str, Any]]:
    """A row for each thing done and number of workers: median seconds, and the ratio to one worker round by round."""
    rows = []
    for what, by_how in seconds.items():
        one = by_how.get("1", by_how["here"])  # a training alone is here
        for how, taken in by_how.items():
            workers = {"here": 0 if "1" in by_how else 1, "1": 1, "2": 2}[how]
            row: dict[str, Any] = {"what": what, "workers": workers}
            for place, name in enumerate(("seconds", "cpu")):
                ratios = [mine[place] / theirs[place] for mine, theirs in zip(taken, one, strict=True)]
                row |= {name: statistics.median(pair[place] for pair in taken), f"{name}_ratios": ratios}
                row[f"{name}_ratio"] = statistics.median(ratios)
            rows.append(row)
    return rows


def _show(rows: Sequence[Mapping[str, Any]], load: Sequence[float]) -> None:
    print(f"\n### Scaling\n\n{hardware()}; load before {load[0]:.1f}\n")
    print("| what | workers | seconds | ratio to one | processor s of the busiest | ratio to one |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        cells = [row["what"], row["workers"] or "here"]
        cells += [f"{row[name]:.3f}" for name in ("seconds", "seconds_ratio", "cpu", "cpu_ratio")]
        print("| " + " | ".join(map(str, cells)) + " |")


if __name__ == "__main__":
    main()
