"""Training on picks: SFT (Eq. 1), the DPO warm start (Eq. 19) and PerFusion (Eq. 13).

What the paper leaves open, and what is done here:

* The learning rate of 1e-8 (App. B.3) is the unscaled number of the public launcher; `scale_lr` multiplies it by the
  effective batch, and the effective rate is reported.
* Groups in which nothing, or everything, was picked hold no comparison: they are dropped before batching and counted.
* Preference training can run away (every error rises, the unpicked pictures' fastest). Both errors and the share of
  pairs ordered rightly are logged, and training stops with a named error when the policy denoises much worse than its
  reference over twenty steps.
* Whether the user matters is measured while training: the same batch with the users rolled by one group.

What the sample marketplace asks for beyond the paper, each a named option of `PreferenceConfig` or `GeneratorConfig`
that is off by default (tiny networks, minutes of training, a twin that predicts the clean latent):

* beta follows the signal-to-noise ratio and unpicked pictures are clamped: a constant beta never moves the colours,
  which are decided near pure noise, and unclamped losers saturate every picture.
* Small first embeddings, a user path that is open from the start (`enter_gain`), a norm on the cross network and a
  faster user path: without them every user gets the same pictures. The gain must be judged against a wrong user, not
  against the base: what everybody likes is learned first, here by the DPO backbone.
* Noise levels are drawn where pictures are decided. Training mostly at the very last level is cheap, but
  the copied blocks have learned to ignore their input there, and the user enters through that input.
"""

from __future__ import annotations

import copy
import sys
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from perfusion.compute import Compute
from perfusion.config import GeneratorConfig, OptimiserConfig, PreferenceConfig, SamplingConfig
from perfusion.data import GroupTable
from perfusion.errors import ConfigError, DataError, DivergenceError
from perfusion.generation.backbone import DiffusionBackbone, load_backbone, load_unet
from perfusion.generation.encoding import EncodedData, open_encoded
from perfusion.generation.noising import error_weight, prediction_target, sample_timesteps
from perfusion.generation.objectives import (
    Candidates,
    GroupBatch,
    draw_groups,
    measure,
    picked_loss,
    preference_loss,
)
from perfusion.generation.pan import PersonalAdaptiveNetwork
from perfusion.generation.pipeline import PerFusionPipeline
from perfusion.generation.predictors import Predictor, predict_from_decoder, predict_from_pan, predict_from_unet
from perfusion.generation.preference import BETA_CONVENTION, denoising_error
from perfusion.generation.samples import drawing, drawing_unet
from perfusion.loop import TrainingRun, batch_rows, train
from perfusion.seeding import generator_for

__all__ = ["comparable_groups", "train_dpo", "train_generator", "train_sft"]

Tables = Mapping[str, GroupTable]
_PROBE_EVERY = 50  # steps between measurements with other users' features
_WINDOW = 20  # steps over which divergence is judged


def train_sft(
    tables: Tables, encoded_dir: Path, diffusion_dir: Path, config: PreferenceConfig, out: Path, run: TrainingRun
) -> dict[str, float]:
    """Fine-tune the U-Net on picked pictures alone (Eq. 1); saves the U-Net in `out`.

    A batch holds `batch_groups` picked pictures.
    """
    compute = Compute(run.compute)
    table, data = tables["train"], open_encoded(encoded_dir, tables["train"])
    backbone = load_backbone(diffusion_dir)
    group, column = (table.picked & table.valid).nonzero(as_tuple=True)
    if not len(group):
        raise DataError("no picked picture among the training groups: nothing to learn from")
    unet = _trainable_unet(backbone.unet, config)
    compute.prepare(unet)
    predict = compute.casting(lambda z, t, context: unet(z, t, context).sample)

    def objective(step: int) -> tuple[Tensor, dict[str, float]]:
        chosen = batch_rows(len(group), config.batch_groups, step, run.seed, run.name, "epoch")
        rows = group[chosen]
        z = data.latents(table.image_index[rows, column[chosen]], data.draw_views(len(rows)))
        noise = torch.randn_like(z)
        t = sample_timesteps(len(z), config.timestep_ranges)
        context = data.conditions([table.prompts[row] for row in rows.tolist()])
        drawn = backbone.scheduler.add_noise(z, noise, t), prediction_target(backbone.scheduler, z, noise, t)
        noised, target, t, context = (part.to(compute.device) for part in (*drawn, t, context))
        error = denoising_error(target, predict(noised, t, context))
        weight = error_weight(backbone.scheduler, t, config.weight_floor)
        return (weight * error).mean(), {"error": error.mean().item()}

    optimiser = _scaled(config)
    metrics = train(drawing_unet(run, tables, diffusion_dir, backbone, unet), {"unet": unet}, objective, optimiser)
    compute.settle(unet)
    unet.save_pretrained(out)
    return {**metrics, "pictures": len(group), "effective_lr": optimiser.lr}


def train_dpo(
    tables: Tables, encoded_dir: Path, diffusion_dir: Path, config: PreferenceConfig, out: Path, run: TrainingRun
) -> dict[str, float]:
    """Align the U-Net with what most users pick (Eq. 19), the warm start of App. B.3; saves the U-Net in `out`.

    A batch holds one pair, a picked and an unpicked picture, of each of `batch_groups` groups.
    """
    compute = Compute(run.compute)
    backbone = load_backbone(diffusion_dir)
    unet = _trainable_unet(backbone.unet, config)
    compute.prepare(unet, backbone.unet)
    predict = _unet_predictor(unet, backbone.unet, config)
    objective, counts = _preference_objective(tables, encoded_dir, backbone, predict, config, run, "pair")
    optimiser = _scaled(config)
    _announce(run, config, optimiser)
    shown = drawing_unet(run, tables, diffusion_dir, backbone, unet)
    guard = _DivergenceGuard(config.max_error_ratio, run.name)
    metrics = train(shown, {"unet": unet}, objective, optimiser, check=guard.check)
    compute.settle(unet)
    unet.save_pretrained(out)
    return {**metrics, **counts, "effective_lr": optimiser.lr}


def train_generator(
    tables: Tables, encoded_dir: Path, diffusion_dir: Path, dpo_dir: Path, config: GeneratorConfig,
    sampling: SamplingConfig, out: Path, run: TrainingRun,
) -> dict[str, float]:  # fmt: skip
    """PerFusion: train PAN on the frozen, DPO-aligned backbone with the group objective (Eq. 13).

    Saves a complete `PerFusionPipeline` in `out`, with the feature encoder of the tables.

    Ablations (Sec. 5.4) leave the same layout. `config.pan=False` trains the U-Net itself, and the pipeline has no
    `pan`: it is drawn blind. `config.group=False` trains by Eq. 1 on the picked pictures alone, and is drawn for the
    user where there is a PAN. Both start from the aligned backbone in `dpo_dir`, as PerFusion does.
    """
    compute = Compute(run.compute)
    backbone = load_backbone(diffusion_dir)
    backbone.unet = load_unet(dpo_dir).requires_grad_(False).eval()
    optimiser = _scaled(config, 1.0 if config.pan else config.unet_lr_factor)
    _announce(run, config, optimiser)
    pan: PersonalAdaptiveNetwork | None = None
    unet: UNet2DConditionModel = backbone.unet
    modules: dict[str, nn.Module]
    if config.pan:
        pan = build_pan(backbone.unet, tables["train"], config, run)
        compute.prepare(pan, backbone.unet)
        predict, modules = predict_from_pan(pan, backbone.unet), {"pan": pan}
        groups = [
            {"params": pan.copy_parameters(), "lr": optimiser.lr},
            {"params": pan.user_parameters(), "lr": optimiser.lr * config.user_lr_factor},
        ]
    else:
        unet = _trainable_unet(backbone.unet, config)
        compute.prepare(unet, backbone.unet)
        predict, modules, groups = _unet_predictor(unet, backbone.unet, config), {"unet": unet}, None
    objective, counts = _preference_objective(
        tables, encoded_dir, backbone, predict, config, run, _candidates(config), config.unknown_dropout, config.pan
    )  # fmt: skip
    pipe = PerFusionPipeline(
        **{**backbone.components(), "unet": unet}, pan=pan, features=tables["train"].encoder,
        num_inference_steps=sampling.steps, guidance_scale=sampling.guidance_scale, user_scale=config.user_scale,
        eta=sampling.eta,
    )  # fmt: skip
    guard = _DivergenceGuard(config.max_error_ratio, run.name)
    metrics = train(drawing(run, tables, pipe), modules, objective, optimiser, groups, check=guard.check)
    compute.settle(unet, *modules.values())
    pipe.save_pretrained(out)
    return {**metrics, **counts, "effective_lr": optimiser.lr}


def build_pan(
    unet: UNet2DConditionModel, table: GroupTable, config: GeneratorConfig, run: TrainingRun
) -> PersonalAdaptiveNetwork:
    """A fresh adaptive network for the users of `table`; its random part is a function of the run's seed and name.

    Raises:
        ConfigError: noise levels are trained at which the network is not run.
    """
    lowest = min(low for low, _ in config.timestep_ranges)
    if lowest < config.min_timestep:
        raise ConfigError(
            f"generator.timestep_ranges starts at {lowest}, below generator.min_timestep {config.min_timestep}, where "
            "the adaptive network says nothing: raise the one or lower the other"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator_for(run.seed, run.name, "init").initial_seed())
        return PersonalAdaptiveNetwork.from_unet(
            unet, table.encoder.cardinalities, embedding_dim=config.embedding_dim, embedding_std=config.embedding_std,
            cross_layers=config.cross_layers, cross_norm=config.cross_norm, min_timestep=config.min_timestep,
            enter_gain=config.enter_gain,
        ).train()  # fmt: skip


def comparable_groups(table: GroupTable) -> tuple[Tensor, dict[str, float]]:
    """Rows of the groups that hold a comparison, and how many were dropped for which reason.

    Raises:
        DataError: none does.
    """
    some = (table.picked & table.valid).any(1)
    rest = (~table.picked & table.valid).any(1)
    rows = (some & rest).nonzero().squeeze(1)
    counts = {
        "groups": float(len(rows)),
        "dropped_nothing_picked": float((~some).sum()),
        "dropped_all_picked": float((some & ~rest).sum()),
    }
    if not len(rows):
        raise DataError(f"no group holds both a picked and an unpicked picture: {counts}")
    return rows, counts


def _preference_objective(
    tables: Tables, encoded_dir: Path, backbone: DiffusionBackbone, predict: Predictor, config: PreferenceConfig,
    run: TrainingRun, candidates: Candidates, dropout: float = 0.0, personal: bool = False,
) -> tuple[Callable[[int], tuple[Tensor, dict[str, float]]], dict[str, float]]:  # fmt: skip
    """The function of the step that the loop minimises, and the counts of the groups it draws from."""
    table = tables["train"]
    data: EncodedData = open_encoded(encoded_dir, table)
    usable, counts = comparable_groups(table)
    compute = Compute(run.compute)
    predict = compute.casting(predict)

    def objective(step: int) -> tuple[Tensor, dict[str, float]]:
        size = config.batch_groups + config.terminal_groups
        rows = usable[batch_rows(len(usable), size, step, run.seed, run.name, "epoch")]
        drawn = draw_groups(rows, table, data, backbone.scheduler, config, candidates)
        batch, users = drawn.to(compute.device), _forget_ids(drawn, dropout).to(compute.device)
        policy, reference = predict(batch.noised, batch.t, batch.context, users)
        gap, metrics = measure(batch, policy, reference)
        if candidates == "picked":
            return picked_loss(batch, policy, backbone.scheduler, config), metrics
        if personal and (step + 1) % _PROBE_EVERY == 0:
            metrics["wrong_user_accuracy"] = _with_wrong_users(batch, predict)
        return preference_loss(gap, batch, backbone.scheduler, config, candidates == "pair"), metrics

    return objective, counts


def _candidates(config: GeneratorConfig) -> Candidates:
    """Whom of a group the objective looks at."""
    if not config.group:
        return "picked"
    return "pair" if config.objective == "pair" else "all"


def _forget_ids(batch: GroupBatch, share: float) -> Tensor:
    """Users (R, F) with the user id, the last feature, masked for a share of the groups: strangers have none."""
    if share == 0.0:
        return batch.users
    forgotten = (torch.rand(len(batch.valid)) < share)[batch.group]
    return torch.cat([batch.users[:, :-1], batch.users[:, -1:].masked_fill(forgotten[:, None], 0)], dim=1)


@torch.no_grad()
def _with_wrong_users(batch: GroupBatch, predict: Predictor) -> float:
    """Implicit accuracy when each group is shown the next group's user: no better than chance if only users matter."""
    first = torch.searchsorted(batch.group, torch.arange(len(batch.valid), device=batch.group.device))
    users = batch.users[first].roll(1, 0)[batch.group]
    _, metrics = measure(batch, *predict(batch.noised, batch.t, batch.context, users))
    return metrics["implicit_accuracy"]


class _DivergenceGuard:
    """Stops training when the policy denoises worse than `limit` times its reference over a window of steps."""

    def __init__(self, limit: float, name: str) -> None:
        self.limit, self.name = limit, name
        self.errors: deque[tuple[float, float]] = deque(maxlen=_WINDOW)

    def check(self, metrics: Mapping[str, float]) -> None:
        self.errors.append((metrics["err_theta"], metrics["err_ref"]))
        policy, reference = (sum(side) for side in zip(*self.errors, strict=True))
        if len(self.errors) == _WINDOW and policy > self.limit * reference:
            raise DivergenceError(
                f"{self.name}: err_theta / err_ref is {policy / reference:.3f} over {_WINDOW} steps, limit "
                f"{self.limit:g} ({self.name}.max_error_ratio): lower the learning rate, raise beta or set loser_clamp"
            )


def _trainable_unet(source: UNet2DConditionModel, config: PreferenceConfig) -> UNet2DConditionModel:
    """A copy of the U-Net with gradients, in all of it or its decoder."""
    unet: UNet2DConditionModel = copy.deepcopy(source).requires_grad_(config.trainable == "full").train()
    for part in (unet.up_blocks, unet.conv_norm_out, unet.conv_out):
        part.requires_grad_(True)
    return unet


def _unet_predictor(unet: UNet2DConditionModel, reference: UNet2DConditionModel, config: PreferenceConfig) -> Predictor:
    return (predict_from_unet if config.trainable == "full" else predict_from_decoder)(unet, reference)


def _scaled(config: PreferenceConfig, factor: float = 1.0) -> OptimiserConfig:
    """The optimiser section with its effective learning rate."""
    factor *= config.batch_groups * config.optimiser.accumulate if config.scale_lr else 1
    return config.optimiser.model_copy(update={"lr": config.optimiser.lr * factor})


def _announce(run: TrainingRun, config: PreferenceConfig, optimiser: OptimiserConfig) -> None:
    if not run.processes.leads:
        return
    scaled = f" = {config.optimiser.lr:g} x effective batch" if config.scale_lr else ""
    sys.stderr.write(
        f"{run.name}: beta {config.beta:g}; {BETA_CONVENTION}\n{run.name}: learning rate {optimiser.lr:g}{scaled}\n"
    )
