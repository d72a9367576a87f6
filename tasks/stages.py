"""The stages of dvc.yaml: `python -m tasks.stages NAME` reads paths, calls the library and writes what came of it.

Each adapter is a few lines; heavy imports happen only in the stage that needs them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perfusion.errors import ConfigError, PerFusionError
from tasks.launching import is_launched, launch, processes_of, together
from tasks.livelog import append_record
from tasks.process import cpu_environment, die_with_parent
from tasks.stage_run import StageRun, begin_stage, record_seconds, whole, write_metrics
from tasks.workspace import Workspace, open_workspace

if TYPE_CHECKING:
    from perfusion.data import Corpus, GroupTable
    from perfusion.fanout import FanOut

__all__ = ["STAGES", "explain", "main"]

Metrics = dict[str, Any]
EXPECTED_FAILURE = 2  # exit code of a failure that its message explains


def validate(run: StageRun) -> Metrics:
    """Check the dataset against the layout; what is wrong goes to quarantine."""
    from tasks.validation import validate as validate_dataset

    paths = run.workspace
    accepted = paths.accepted if paths.accepted.exists() else None
    with whole(paths.valid, paths.quarantine) as (valid, quarantine):
        return validate_dataset(paths.data, run.params.data, accepted, valid, quarantine)


def split(run: StageRun) -> Metrics:
    """Filter users and records, and split the rest."""
    from perfusion.data import split_dataset

    with whole(run.workspace.split) as (out,):
        return split_dataset(run.workspace.valid, run.params.data, out, seed=run.params.seed)


def backbones(run: StageRun) -> Metrics:
    """The CLIP and the diffusion backbone: real weights, or twins trained here."""
    metrics = {}
    for name, make in {"clip": _clip, "diffusion": _diffusion}.items():
        began = time.monotonic()
        metrics[name] = make(run)
        record_seconds(run.workspace, name, time.monotonic() - began)
    return metrics


def _clip(run: StageRun) -> Metrics:
    """The reward backbone: given weights, checked; else a twin trained on captioned pictures."""
    from perfusion.reward import load_backbone, pretrain_twin

    config = run.params.clip
    with whole(run.workspace.clip) as (out,):
        if config.path is not None:
            load_backbone(config.path, config.sha256, config.processor, (config.kind,)).save(out)
            return {}
        pictures = _corpus(run, config.pictures)
        return pretrain_twin(pictures, config, out, run.training("clip", config.optimiser))


def _diffusion(run: StageRun) -> Metrics:
    """The diffusion backbone: given weights, checked; else a twin trained on captioned pictures."""
    from perfusion.generation import load_backbone, pretrain_diffusion
    from perfusion.generation.pretrain import save_backbone

    config = run.params.diffusion
    with whole(run.workspace.diffusion) as (out,):
        if config.path is not None:
            save_backbone(load_backbone(config.path), config, out)
            return {}
        pictures = _corpus(run, config.pictures)
        return pretrain_diffusion(pictures, config, out, run.training("diffusion", config.optimiser))


def pickscore(run: StageRun) -> Metrics:
    """Tune the user-blind baseline on the same picks."""
    from perfusion.reward import train_pickscore

    config = run.params.pickscore
    with whole(run.workspace.pickscore, keep=run.leads) as (out,):
        training = run.training("pickscore", config.optimiser)
        return train_pickscore(_tables(run), run.workspace.clip, config, out, training)


def reward(run: StageRun) -> Metrics:
    """Train PerFusionRM."""
    from perfusion.reward import train_reward

    paths, config = run.workspace, run.params.reward
    backbone = {"pickscore": paths.pickscore, "clip": paths.clip}[config.backbone]
    with whole(paths.reward, keep=run.leads) as (out,):
        return train_reward(_tables(run), backbone, config, out, run.training("reward", config.optimiser))


def evaluate_reward(run: StageRun) -> Metrics:
    """Rank held-out groups with every scorer."""
    from perfusion.evaluation.reward import evaluate_reward as evaluate

    paths, params = run.workspace, run.params
    with whole(paths.reward_evaluation) as (out,):
        return evaluate(
            paths.data, paths.split, paths.clip, paths.pickscore, paths.reward, out,
            image_size=params.data.image_size, twin=params.clip.path is None, gates=params.gates, seed=params.seed,
        )  # fmt: skip


def encode(run: StageRun) -> Metrics:
    """Latents of all pictures and embeddings of all prompts, once."""
    from perfusion.generation import encode as encode_tables

    params, diffusion = run.params, run.workspace.diffusion
    with whole(run.workspace.encode) as (out,):
        return _spread(
            run, lambda fan_out: encode_tables(
                _tables(run), diffusion, params.encode, out, params.seed, params.compute, fan_out
            )
        )  # fmt: skip


def dpo(run: StageRun) -> Metrics:
    """Align the backbone with picks in general (Eq. 19), blind to the user: the warm start."""
    from perfusion.generation import train_dpo

    paths, config = run.workspace, run.params.dpo
    with whole(paths.dpo, keep=run.leads) as (out,):
        training = run.training("dpo", config.optimiser, run.params.compute)
        return train_dpo(_tables(run, pictures=False), paths.encode, paths.diffusion, config, out, training)


def sft(run: StageRun) -> Metrics:
    """Fine-tune the backbone on picked pictures (Eq. 1): a baseline."""
    from perfusion.generation import train_sft

    paths, config = run.workspace, run.params.sft
    with whole(paths.sft, keep=run.leads) as (out,):
        training = run.training("sft", config.optimiser, run.params.compute)
        return train_sft(_tables(run, pictures=False), paths.encode, paths.diffusion, config, out, training)


def generator(run: StageRun) -> Metrics:
    """Train PerFusion (Eq. 13) on the aligned backbone."""
    from perfusion.generation import train_generator

    paths, config = run.workspace, run.params.generator
    with whole(paths.generator, keep=run.leads) as (out,):
        training = run.training("generator", config.optimiser, run.params.compute)
        sampling = run.params.diffusion.sampling
        tables = _tables(run, pictures=False)
        return train_generator(tables, paths.encode, paths.diffusion, paths.dpo, config, sampling, out, training)


def evaluate_generator(run: StageRun) -> Metrics:
    """Draw pictures with every arm for the same users, prompts and seeds, and judge them."""
    from perfusion.evaluation.generator import evaluate_generator as evaluate

    paths, params = run.workspace, run.params
    with whole(paths.generator_evaluation) as (out,):
        return _spread(
            run, lambda fan_out: evaluate(
                paths.data, paths.split, paths.clip, paths.pickscore, paths.reward, paths.diffusion, paths.sft,
                paths.dpo, paths.generator, out, image_size=params.data.image_size, twin=params.clip.path is None,
                config=params.evaluate, gates=params.gates, seed=params.seed, fan_out=fan_out,
            )
        )  # fmt: skip


STAGES: dict[str, Callable[[StageRun], Metrics]] = {
    "validate": validate,
    "split": split,
    "backbones": backbones,
    "pickscore": pickscore,
    "reward": reward,
    "evaluate-reward": evaluate_reward,
    "encode": encode,
    "dpo": dpo,
    "sft": sft,
    "generator": generator,
    "evaluate-generator": evaluate_generator,
}


def main(arguments: list[str] | None = None) -> int:
    """Run one stage in the workspace of the current folder; returns 0, 1 for a defect, or 2 for what it explains.

    A training that several processes are to share (the parameter `processes`) becomes their launcher; in processes that
    `accelerate launch` started it shares theirs.
    """
    parser = argparse.ArgumentParser(prog="python -m tasks.stages", description="Run one stage of dvc.yaml here.")
    parser.add_argument("name", choices=STAGES)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an explained failure too")
    options = parser.parse_args(arguments)
    die_with_parent()
    workspace = open_workspace(Path.cwd())
    began = time.monotonic()
    try:
        params = workspace.params()
        os.environ.update(cpu_environment(params.threads))
        if not is_launched() and (count := processes_of(options.name, params)) > 1:
            launch(sys.argv[1:] if arguments is None else arguments, count)
        with together(options.name) as processes:
            run = begin_stage(options.name, workspace, processes)
            metrics = STAGES[options.name](run)
        if not run.leads:
            return 0
        write_metrics(workspace.metrics(options.name), metrics)
        shutil.rmtree(run.state, ignore_errors=True)
    except Exception as error:
        return explain(workspace, options.name, error, options.debug)
    record_seconds(workspace, options.name, time.monotonic() - began)
    return 0


def explain(workspace: Workspace, stage: str, error: Exception, debug: bool) -> int:
    """Tell why a stage failed, on the screen and as the last line of its log."""
    expected = isinstance(error, PerFusionError)
    told = {"error": type(error).__name__, "message": str(error) or repr(error), "expected": expected}
    with suppress(OSError):  # on a full disk the log takes no more; the screen does
        append_record(workspace.log(stage), **told)
    if debug or not expected:
        traceback.print_exception(error)
    print(f"{stage}: {error}", file=sys.stderr, flush=True)
    return EXPECTED_FAILURE if expected else 1


def _tables(run: StageRun, pictures: bool = True) -> dict[str, GroupTable]:
    """What training may see: held-out pictures are not even decoded, and `encode` numbers pictures as training does.

    Args:
        pictures: False for trainings on what `encode` made of them, which decode none.
    """
    from perfusion.data import load_tables

    paths, size = run.workspace, run.params.data.image_size
    return load_tables(paths.data, paths.split, size, splits=("train", "valid"), pictures=pictures)


def _spread(run: StageRun, work: Callable[[FanOut], Metrics]) -> Metrics:
    """`work`, whose shards several workers compute where the parameter `workers` asks for them."""
    if run.params.workers == 1:
        from perfusion.fanout import in_turn

        return work(in_turn)
    for name, value in {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "true"}.items():
        os.environ.setdefault(name, value)  # `perfusion` has set them; `dvc repro` alone has not
    try:
        from tasks.fanout import on_workers
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"workers {run.params.workers}: {error.name} is not installed, and without it one process does everything\n"
            "remedy: pip install 'perfusion[dask]', or set workers to 1"
        ) from None
    return on_workers(run.params.workers, run.params.threads, work)


def _corpus(run: StageRun, pictures: int) -> Corpus:
    """Captioned pictures for the twins: rendered anew for the sample world, the dataset's own otherwise."""
    from perfusion.world import captioned_pictures

    paths, params = run.workspace, run.params
    return captioned_pictures(paths.data, paths.valid, pictures, params.seed, params.data.image_size)


if __name__ == "__main__":
    sys.exit(main())
