"""The one optimiser loop. Objectives are functions of the step; the loop knows nothing of what they compute."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from perfusion.checkpoint import load_training_state, save_training_state
from perfusion.compute import Compute
from perfusion.config import PLAIN, ComputeConfig, OptimiserConfig
from perfusion.distributed import ALONE, Processes
from perfusion.errors import DataError, DivergenceError
from perfusion.optimiser import build_optimisers
from perfusion.progress import Progress
from perfusion.seeding import generator_for, seed_step

__all__ = ["TrainingRun", "batch_rows", "learning_rate_factor", "train"]

Metrics = dict[str, float]
Objective = Callable[[int], tuple[Tensor, Metrics]]
ParameterGroups = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class TrainingRun:
    """Where and as what a training run keeps itself.

    Attributes:
        name: shown in progress lines and used to name random streams, e.g. "reward".
        seed: root seed of the run.
        state_dir: folder of the resumable state; None trains without one.
        key: `run_key` of all that the run depends on; a state with another key is ignored.
        compute: device, precision and the like, for the trainings that heed it.
        processes: that share its micro-batches; all but the first log nothing and keep no state.
        on_metrics: called with (step, metrics) every `log_every` steps and at the last one.
        on_sample: called with the step after it completed, at `sample_steps`; may be slow.
        on_pictures: called with (step, uint8 pictures (n, 3, S, S)) by trainings that draw samples at `sample_steps`.
    """

    name: str
    seed: int
    state_dir: Path | None = None
    key: str = ""
    compute: ComputeConfig = PLAIN
    processes: Processes = ALONE
    on_metrics: Callable[[int, Metrics], None] | None = None
    on_sample: Callable[[int], None] | None = None
    on_pictures: Callable[[int, Tensor], None] | None = None
    sample_steps: frozenset[int] = frozenset()


def batch_rows(count: int, size: int, step: int, seed: int, *path: object) -> Tensor:
    """Rows of batch `step`, (size,) long: every epoch is a new permutation, and batches run on from one to the next.

    Args:
        count: rows to draw from.
        size: of a batch.
        step: its number, from 0.
        seed, path: name the random stream; each epoch's permutation is a function of them and its number.

    Raises:
        DataError: no rows to draw from.
    """
    if count == 0:
        raise DataError("no training groups; check the filter (data.min_records) and the split")
    at = torch.arange(step * size, (step + 1) * size)
    rows = torch.empty(size, dtype=torch.long)
    for epoch in at.div(count, rounding_mode="floor").unique().tolist():
        order = torch.randperm(count, generator=generator_for(seed, *path, epoch))
        inside = at // count == epoch
        rows[inside] = order[at[inside] - epoch * count]
    return rows


def learning_rate_factor(step: int, config: OptimiserConfig) -> float:
    """The learning rate at `step` as a share of `config.lr`: linear warm-up from 1/warmup, then the schedule."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "linear":
        return max(config.final_factor, 1.0 - (1.0 - config.final_factor) * done)
    return config.final_factor + (1.0 - config.final_factor) * 0.5 * (1.0 + math.cos(math.pi * done))


def train(
    run: TrainingRun,
    modules: Mapping[str, nn.Module],
    objective: Objective,
    config: OptimiserConfig,
    groups: ParameterGroups | None = None,
    ema: Mapping[str, nn.Module] | None = None,
    check: Callable[[Metrics], None] | None = None,
) -> Metrics:
    """Minimise `objective(step)` over the trainable parameters of `modules`; resume where a crash left off.

    With several processes (`run.processes`) each computes some of a step's micro-batches; see `perfusion.distributed`.

    Args:
        run: name, seed, state folder and callbacks.
        modules: the modules that hold trainable parameters, by name; only these are saved for resuming.
        objective: step -> (scalar loss, metrics). All its randomness must come from the step (see `seeding`): the
            global generator is seeded per step before the call, so a resumed run is bit-equal to an uninterrupted one.
        config: method, steps, learning rate, warm-up, schedule, weight decay, clipping, accumulation.
        groups: parameter groups; a group's own "lr" is kept and scaled by the schedule. Default: one group.
        ema: modules (same names and shapes) that follow an exponential moving average with `config.ema_decay`.
        check: called with the metrics of every micro-batch, in their order, in every process; stops by raising.

    Returns:
        The metrics of the last step, of its last micro-batch.

    Raises:
        ConfigError: more processes than micro-batches.
        DivergenceError: the loss is not finite.
    """
    trainable = [p for module in modules.values() for p in module.parameters() if p.requires_grad]
    optimisers = build_optimisers(trainable, config, groups)
    base_rates = [group["lr"] for optimiser in optimisers for group in optimiser.param_groups]
    compute = Compute(run.compute)
    scaler = compute.scaler()
    state_file = run.state_dir / f"{run.name}.pt" if run.state_dir is not None else None
    start, metrics = _resume(state_file, run, modules, optimisers, scaler, ema)
    run.processes.start_alike(start, [*modules.values(), *(ema or {}).values()], state_file)
    stepped = [group for optimiser in optimisers for group in optimiser.param_groups]  # loading a state makes new ones
    progress = Progress(run.name, config.steps, start)
    if start and run.processes.leads:
        sys.stderr.write(f"{run.name}: resuming at step {start} of {config.steps}\n")
    saved = time.monotonic()
    for step in range(start, config.steps):
        factor = learning_rate_factor(step, config)
        for group, rate in zip(stepped, base_rates, strict=True):
            group["lr"] = rate * factor
        for optimiser in optimisers:
            optimiser.zero_grad(set_to_none=True)
        told = []
        for micro in run.processes.mine(config.accumulate):
            seed_step(run.seed, run.name, step, micro)
            with compute.repeatable():
                loss, found = objective(step * config.accumulate + micro)
                if not torch.isfinite(loss):
                    raise DivergenceError(
                        f"{run.name}: loss is {loss.item()} at step {step}; "
                        f"lower {run.name}.optimiser.lr (now {config.lr:g})"
                    )
                scaler.scale(loss / config.accumulate).backward()
            told.append((micro, {"loss": loss.item(), **found}))
        run.processes.add_up(trainable)
        for metrics in run.processes.gather(told):
            if check is not None:
                check(metrics)
        for optimiser in optimisers:
            scaler.unscale_(optimiser)
        norm = nn.utils.clip_grad_norm_(trainable, config.grad_clip)
        for optimiser in optimisers:
            scaler.step(optimiser)  # not taken where a float16 gradient has overflowed: the scale is lowered instead
        scaler.update()
        _follow(ema, modules, config.ema_decay, step)
        done = step + 1
        metrics = {**metrics, "grad_norm": norm.item(), "lr": config.lr * factor}
        if run.processes.leads:
            progress.show(done, metrics)
        if run.on_metrics is not None and (done % config.log_every == 0 or done == config.steps):
            run.on_metrics(done, metrics)
        if run.on_sample is not None and done in run.sample_steps:
            run.on_sample(done)
        late = time.monotonic() - saved > config.checkpoint_seconds or done == config.steps
        if state_file is not None and run.processes.leads and late:
            _save(state_file, run, modules, optimisers, scaler, ema, done, metrics)
            saved = time.monotonic()
    return metrics


def _trainable_state(module: nn.Module) -> dict[str, Tensor]:
    """Trainable parameters and buffers: what training can change."""
    frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    return {name: value for name, value in module.state_dict().items() if name not in frozen}


def _save(
    file: Path, run: TrainingRun, modules: Mapping[str, nn.Module], optimisers: Sequence[torch.optim.Optimizer],
    scaler: torch.amp.GradScaler, ema: Mapping[str, nn.Module] | None, step: int, metrics: Metrics,
) -> None:  # fmt: skip
    save_training_state(
        file,
        {
            "key": run.key,
            "step": step,
            "metrics": metrics,
            "modules": {name: _trainable_state(module) for name, module in modules.items()},
            "optimisers": [optimiser.state_dict() for optimiser in optimisers],
            "scaler": scaler.state_dict(),
            "ema": {name: module.state_dict() for name, module in (ema or {}).items()},
        },
    )


def _resume(
    file: Path | None, run: TrainingRun, modules: Mapping[str, nn.Module], optimisers: Sequence[torch.optim.Optimizer],
    scaler: torch.amp.GradScaler, ema: Mapping[str, nn.Module] | None,
) -> tuple[int, Metrics]:  # fmt: skip
    state = load_training_state(file, run.key) if file is not None else None
    if state is None:
        return 0, {}
    for name, module in modules.items():
        missing, unexpected = module.load_state_dict(state["modules"][name], strict=False)
        trainable_missing = [key for key in missing if key in _trainable_state(module)]
        if trainable_missing or unexpected:
            raise DivergenceError(f"{file}: state does not fit {name}: missing {trainable_missing}, extra {unexpected}")
    for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
        optimiser.load_state_dict(saved)
    scaler.load_state_dict(state["scaler"])
    for name, module in (ema or {}).items():
        module.load_state_dict(state["ema"][name])
    return int(state["step"]), dict(state["metrics"])


@torch.no_grad()
def _follow(ema: Mapping[str, nn.Module] | None, modules: Mapping[str, nn.Module], decay: float, step: int) -> None:
    """Move each averaged module towards its source; the decay ramps up so that the first steps are forgotten."""
    if not ema:
        return
    weight = 1.0 - min(decay, (1 + step) / (10 + step))
    for name, averaged in ema.items():
        for target, source in zip(averaged.parameters(), modules[name].parameters(), strict=True):
            target.lerp_(source, weight)
