"""Training and drawing at Stable Diffusion v1.5's size on an accelerator: one run, one table, one JSON.

    python -m benchmarks.gpu

takes a few minutes at most and a bare machine: torch, diffusers and transformers for the training arms; pydantic,
PyYAML, pandas and pyarrow too for drawing, which goes through the pipeline. No part of it needs prefect, mlflow or dvc.
What each arm does is said in benchmarks/training.py and benchmarks/inference.py. `--device cpu --size twin` tries it
without an accelerator.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import time
from typing import Any, get_args

import torch

from benchmarks.common import OUT, Timing, measure, record, show
from benchmarks.sizes import SizeName

HALVES = ("training", "inference")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--size", choices=get_args(SizeName), default="sd15")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--dtype", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--half", choices=HALVES, nargs="*", default=list(HALVES), help="which to run")
    parser.add_argument("--rounds", type=int, default=10, help="of training; drawing takes half as many")
    parser.add_argument("--pictures", type=int, help="in a training step; default 16 on cuda")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch sees no CUDA device here; --device cpu --size twin tries the same code")
    began = time.perf_counter()
    timings: list[Timing] = []
    peaks: dict[str, dict[str, int]] = {}
    for half in options.half:
        module = importlib.import_module(f"benchmarks.{half}")  # what drawing needs is not asked of training
        timings += _timings(module, half, options)
        peaks[half] = _peaks(module, half, options)
    show(f"{options.size}, {options.dtype}", timings)
    for half, found in peaks.items():
        if found:
            print(f"\nPeak memory, {half}: " + ", ".join(f"{n} {p / 2**30:.2f} GiB" for n, p in found.items()))
    ratio = {timing.arm: timing.ratio for timing in timings}
    figures: dict[str, float] = {}
    if "training" in options.half:
        figures |= {"training_perfusion_over_plain": ratio["training perfusion"]}
        figures |= {"training_perfusion_over_dpo": ratio["training perfusion"] / ratio["training dpo"]}
    if "inference" in options.half:
        figures |= {f"inference_{name}_over_plain": ratio[f"inference {name}"] for name in ("exact", "cached")}
    seconds = time.perf_counter() - began
    print("\n" + ", ".join(f"{name} {value:.3f}" for name, value in figures.items()) + f"; {seconds:.0f} s in all")
    record(f"gpu-{options.size}", timings, {"gpu": figures} if options.device == "cuda" else {},
           dtype=options.dtype, device=options.device, peak_bytes=peaks, seconds=seconds)  # fmt: skip
    print(f"kept in {OUT / f'gpu-{options.size}.json'}")


def _timings(module: Any, half: str, options: argparse.Namespace) -> list[Timing]:
    """One half's arms, side by side; their networks are gone when it returns."""
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[options.dtype]
    found = module.arms(options.size, None, options.device, dtype, _pictures(half, options))
    work = {f"{half} {name}": run for name, run in found.work.items()}
    rounds = options.rounds if half == "training" else max(1, options.rounds // 2)
    timings = measure(work, f"{half} {found.baseline}", found.items, rounds, warmup=2)
    del work, found
    gc.collect()
    return timings


def _peaks(module: Any, half: str, options: argparse.Namespace) -> dict[str, int]:
    """Peak bytes of each arm's tensors, one arm at a time; an accelerator counts them, a processor does not."""
    if options.device == "cpu":
        return {}
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[options.dtype]
    names = module.ARMS if half == "training" else ("plain", "full", "exact", "student")
    pictures = _pictures(half, options) or 5
    return {name: module.peak_on_device(options.size, name, None, dtype, pictures) for name in names}


def _pictures(half: str, options: argparse.Namespace) -> int | None:
    """Pictures a round: of training as asked for, 16 on an accelerator; of drawing the pipeline's own number."""
    if half == "inference" or options.pictures is not None:
        return options.pictures if half == "training" else None
    return 16 if options.device == "cuda" else None


if __name__ == "__main__":
    main()
