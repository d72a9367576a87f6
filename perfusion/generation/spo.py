"""SPO, step-by-step preference optimisation (Liang et al. 2024), a baseline of Table 3; blind to users, without picks.

From one noised latent x_t several x_{t-1} are drawn. A preference model judges each by the clean picture that the
policy then predicts; where best and worst lie clearly apart, the policy is pulled towards the best step and pushed from
the worst. One of them, at random, goes on, so that each comparison starts from one and the same x_t.

What is done otherwise than in the public code (docs/decisions.md):

* The preference model is not conditioned on the noise level. It is a function that the caller gives: PickScore tuned on
  this dataset's picks, on the decoded prediction of the clean latent.
* An optimiser step is one trajectory of a batch of prompts, its denoising steps the micro-batches: what is compared is
  drawn by the very weights that are then moved, and a run resumes bit for bit.
* The loss is a logsigmoid, and a step without noise (the last one, as a rule) is sampled but not compared.

Legend: P prompts, K candidates of each, (C, H, W) a latent, T tokens, D width.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor

from perfusion.compute import Compute
from perfusion.config import SpoConfig
from perfusion.data import GroupTable
from perfusion.errors import ConfigError
from perfusion.generation.backbone import DiffusionBackbone, latent_shape, load_backbone
from perfusion.generation.codec import from_unit
from perfusion.generation.denoiser import guide
from perfusion.generation.encoding import open_encoded
from perfusion.generation.lora import add_lora, merge_lora, without_lora
from perfusion.generation.samples import drawing_unet
from perfusion.generation.text import embed_prompts
from perfusion.loop import TrainingRun, batch_rows, train
from perfusion.seeding import generator_for

__all__ = ["Preference", "best_and_worst", "ddim_step", "log_density", "spo_loss", "train_spo"]

Preference = Callable[[list[str], Tensor], Tensor]
"""(P prompts, pictures (P, K, 3, S, S) uint8) -> scores (P, K), nats: exp(logit_scale) x cosine for PickScore."""


def train_spo(
    tables: Mapping[str, GroupTable], encoded_dir: Path, diffusion_dir: Path, preference: Preference,
    config: SpoConfig, out: Path, run: TrainingRun,
) -> dict[str, float]:  # fmt: skip
    """Train adapters on the backbone's attention and save the U-Net with them merged in `out`, as the SFT arm is saved.

    Prompts are those of the training groups; their pictures and picks are not looked at.

    Args:
        tables: `train`, and `valid` for sample pictures.
        encoded_dir: what the `encode` stage wrote of them.
        diffusion_dir: the backbone, where the policy starts and which stays its reference.
        preference: scores pictures for prompts; `scorer.score` of a `perfusion.scorers.PickScore` is one.
        config: trajectories, comparison, loss and schedule.
        out: folder to write: config.json and diffusion_pytorch_model.safetensors.
        run: name, seed, state, callbacks and compute.

    Returns:
        The last trajectory's metrics: `loss` and `lr` of its last step; over the whole of it `spo_loss` (nats, of the
        compared), `compared` (share of states whose best and worst lie apart), `preference` (mean score) and
        `clipped` (share of the compared whose ratios are out of bounds, so that they teach nothing).

    Raises:
        ConfigError: no denoising step is left to compare.
    """
    compute = Compute(run.compute)
    backbone = load_backbone(diffusion_dir)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator_for(run.seed, run.name, "init").initial_seed())
        unet = copy.deepcopy(backbone.unet)
        add_lora(unet, config.rank)
    compute.prepare(unet.train())
    backbone.vae.to(compute.device)
    trajectories = _Trajectories(tables["train"], encoded_dir, backbone, unet, preference, config, run)
    micro = len(trajectories.compared) * config.optimiser.accumulate
    optimiser = config.optimiser.model_copy(update={"accumulate": micro})
    shown = drawing_unet(run, tables, diffusion_dir, backbone, unet)
    metrics = train(shown, {"unet": unet}, trajectories.objective, optimiser)
    compute.settle(unet)
    merge_lora(unet)
    unet.save_pretrained(out)
    return metrics


def ddim_step(
    scheduler: DDIMScheduler, prediction: Tensor, t: int, z: Tensor, eta: float
) -> tuple[Tensor, Tensor, float]:  # fmt: skip
    """The next latent's distribution under DDIM, diffusers' own step taken apart.

    Args:
        scheduler: with its number of steps set.
        prediction: (..., C, H, W) the denoiser's, of the scheduler's own kind.
        t: noise level of z.
        z: (..., C, H, W).
        eta: share of fresh noise, in [0, 1].

    Returns:
        The predicted clean latent and the mean, of the shape of z, and the standard deviation.
    """
    previous = t - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    kept = float(scheduler.alphas_cumprod[t])
    kept_next = float(scheduler.alphas_cumprod[previous] if previous >= 0 else scheduler.final_alpha_cumprod)
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        clean, noise = (z - math.sqrt(1 - kept) * prediction) / math.sqrt(kept), prediction
    elif kind == "sample":
        clean, noise = prediction, (z - math.sqrt(kept) * prediction) / math.sqrt(1 - kept)
    else:
        clean = math.sqrt(kept) * z - math.sqrt(1 - kept) * prediction
        noise = math.sqrt(kept) * prediction + math.sqrt(1 - kept) * z
    variance = (1 - kept_next) / (1 - kept) * (1 - kept / kept_next)
    std = eta * math.sqrt(max(variance, 0.0))
    direction = math.sqrt(max(1 - kept_next - std**2, 0.0))  # rounding may leave it a hair below 0 at eta 1
    return clean, math.sqrt(kept_next) * clean + direction * noise, std


def log_density(x: Tensor, mean: Tensor, std: float) -> Tensor:
    """Log-density of a latent under a normal distribution, the mean over (C, H, W): (..., C, H, W) -> (...), nats."""
    density = -((x - mean) ** 2) / (2 * std**2) - math.log(std) - 0.5 * math.log(2 * math.pi)
    return density.mean(dim=(-3, -2, -1))


def best_and_worst(scores: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """Columns of the highest and the lowest score, and whether they lie apart: (P, K) -> (P,), (P,), (P,) bool.

    Apart means that their shares in a softmax over the two differ by more than `threshold`, in [0, 1].
    """
    high, best = scores.max(-1)
    low, worst = scores.min(-1)
    return best, worst, torch.tanh((high - low) / 2) > threshold  # sigmoid(d) - sigmoid(-d) = tanh(d / 2)


def spo_loss(best: Tensor, worst: Tensor, beta: float, clip: float) -> Tensor:
    """-log sigmoid(beta (log clip(r_best) - log clip(r_worst))), (...) -> (...), nats.

    Args:
        best, worst: log r = log p_theta - log p_ref of the better and the worse step.
        beta: strength.
        clip: r is held within [1 - clip, 1 + clip]; beyond, nothing more is to be gained or lost.
    """
    low, high = math.log1p(-clip), math.log1p(clip)
    return -F.logsigmoid(beta * (best.clamp(low, high) - worst.clamp(low, high)))


class _Trajectories:
    """The objective: micro-batch k is the k-th compared denoising step of an optimiser step's trajectory."""

    def __init__(
        self, table: GroupTable, encoded_dir: Path, backbone: DiffusionBackbone, unet: UNet2DConditionModel,
        preference: Preference, config: SpoConfig, run: TrainingRun,
    ) -> None:  # fmt: skip
        self.table, self.data = table, open_encoded(encoded_dir, table)
        self.unet, self.vae, self.preference = unet, backbone.vae, preference
        self.config, self.run = config, run
        self.compute = Compute(run.compute)
        self.shape = latent_shape(unet)
        self.none = embed_prompts(backbone.tokenizer, backbone.text_encoder, [""]).to(self.compute.device)  # (1, T, D)
        self.predict = self.compute.casting(self._predict)
        self.scheduler: Any = backbone.scheduler
        self.scheduler.set_timesteps(config.denoising_steps)
        self.levels: list[int] = self.scheduler.timesteps.tolist()
        self.plain = self.levels[: config.first_compared]
        self.compared = [t for t in self.levels[config.first_compared :] if self._std(t) > 0.0]
        if not self.compared:
            raise ConfigError(
                f"spo.first_compared {config.first_compared} of spo.denoising_steps {config.denoising_steps}: no step "
                "with fresh noise is left to compare; lower the one or raise the other"
            )
        self.prompts: list[str] = []
        self.text = self.z = torch.empty(0)
        self.totals: dict[str, float] = {}

    def objective(self, micro: int) -> tuple[Tensor, dict[str, float]]:
        """Compare the steps from the state left by the micro-batch before, train on them, and go on from one of them.

        The first of a trajectory draws the state, so that nothing is carried from one optimiser step to the next.
        """
        trajectory, place = divmod(micro, len(self.compared))
        if place == 0:
            self._begin(trajectory)
        t = self.compared[place]
        prediction = self.predict(self.z, t, self.text)
        with torch.no_grad(), without_lora(self.unet):
            reference = self.predict(self.z, t, self.text)
        _, mean, std = ddim_step(self.scheduler, prediction, t, self.z, self.config.eta)
        _, mean_ref, _ = ddim_step(self.scheduler, reference, t, self.z, self.config.eta)
        fresh = torch.randn(len(self.z), self.config.candidates, *self.shape).to(self.z)
        following = mean.detach()[:, None] + std * fresh  # (P, K, C, H, W)
        best, worst, apart = best_and_worst(scores := self._judge(following, t), self.config.threshold)
        every = torch.arange(len(following), device=following.device)
        better, worse = ratios = [
            log_density(following[every, chosen], mean, std) - log_density(following[every, chosen], mean_ref, std)
            for chosen in (best, worst)
        ]
        losses = spo_loss(better, worse, self.config.beta, self.config.clip)  # (P,)
        self.z = following[every, torch.randint(self.config.candidates, (len(following),)).to(every.device)]
        return torch.where(apart, losses, 0.0).mean(), self._count(place, losses, ratios, apart, scores)

    @torch.no_grad()
    def _begin(self, trajectory: int) -> None:
        """Draw prompts and noise, and sample up to the first comparison."""
        rows = batch_rows(
            len(self.table), self.config.batch_prompts, trajectory, self.run.seed, self.run.name, "epoch"
        )  # fmt: skip
        self.prompts = [self.table.prompts[row] for row in rows.tolist()]
        self.text = self.data.conditions(self.prompts).to(self.compute.device)
        self.z = torch.randn(len(rows), *self.shape).to(self.compute.device)
        for t in self.plain:
            _, mean, std = ddim_step(self.scheduler, self.predict(self.z, t, self.text), t, self.z, self.config.eta)
            self.z = mean + std * torch.randn(mean.shape).to(mean)

    def _predict(self, z: Tensor, t: int, text: Tensor) -> Tensor:
        """The guided prediction, (P, C, H, W)."""
        if self.config.guidance_scale == 1.0:
            return self.unet(z, t, text).sample
        both = self.unet(torch.cat([z, z]), t, torch.cat([self.none.expand_as(text), text])).sample
        none, prompted = both.chunk(2)
        return guide(none, prompted, None, self.config.guidance_scale, 0.0)

    @torch.no_grad()
    def _judge(self, candidates: Tensor, t: int) -> Tensor:
        """Preference for what the policy makes of each candidate, (P, K, C, H, W) -> (P, K)."""
        flat, count = candidates.flatten(0, 1), candidates.shape[1]
        after = self.levels[self.levels.index(t) + 1 :]
        if after:
            prediction = self.predict(flat, after[0], self.text.repeat_interleave(count, 0))
            flat, _, _ = ddim_step(self.scheduler, prediction, after[0], flat, self.config.eta)
        pictures = from_unit(self.vae.decode(flat / self.vae.config.scaling_factor).sample)
        return self.preference(self.prompts, pictures.cpu().unflatten(0, candidates.shape[:2])).to(candidates.device)

    def _std(self, t: int) -> float:
        z = torch.zeros(1, 1, 1, 1)
        return ddim_step(self.scheduler, z, t, z, self.config.eta)[2]

    def _count(
        self, place: int, losses: Tensor, ratios: Sequence[Tensor], apart: Tensor, scores: Tensor
    ) -> dict[str, float]:  # fmt: skip
        """What to log, over the trajectory so far."""
        low, high = math.log1p(-self.config.clip), math.log1p(self.config.clip)
        held = torch.stack([(ratio < low) | (ratio > high) for ratio in ratios]).all(0)
        found = {
            "spo_loss": losses.detach()[apart].sum().item(), "compared": float(apart.sum()),
            "clipped": float((held & apart).sum()), "preference": scores.mean().item(),
        }  # fmt: skip
        before = self.totals if place else dict.fromkeys(found, 0.0)
        self.totals = {name: before[name] + value for name, value in found.items()}
        compared = max(1.0, self.totals["compared"])
        return {
            "spo_loss": self.totals["spo_loss"] / compared,
            "compared": self.totals["compared"] / ((place + 1) * len(losses)),
            "clipped": self.totals["clipped"] / compared,
            "preference": self.totals["preference"] / (place + 1),
        }
