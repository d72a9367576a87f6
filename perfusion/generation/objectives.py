"""Denoising errors of a policy and its reference on groups of pictures, and the losses over them (Eq. 1, 13, 19).

Legend: B groups, N candidates of the largest one, V valid candidates of the batch, R rows run, (C, H, W) a latent.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from perfusion.config import GeneratorConfig, PreferenceConfig
from perfusion.data import GroupTable
from perfusion.generation.encoding import EncodedData
from perfusion.generation.noising import beta_at, error_weight, prediction_target, sample_timesteps
from perfusion.generation.preference import (
    denoising_error,
    group_preference_loss,
    pairwise_preference_loss,
    reference_gap,
)

__all__ = [
    "Candidates",
    "GroupBatch",
    "draw_groups",
    "implicit_accuracy",
    "picked_loss",
    "preference_loss",
    "spread_errors",
]

Candidates = Literal["all", "pair", "picked"]
"""Whom of a group a batch holds: everybody (Eq. 13), one picked and one unpicked (Eq. 19), the picked (Eq. 1)."""


@dataclass(frozen=True)
class GroupBatch:
    """Noised groups, flattened to their valid candidates; R rows go through the network.

    All candidates of a group share one noise level, one noise and, where pictures are mirrored, one side. At the last
    level of a schedule that ends in pure noise nothing of the picture is left in its noised latent, so the candidates
    share that too: one row serves them all (an exact saving). Everywhere else R = V.

    Attributes:
        noised: (R, C, H, W); t: (R,) noise levels; context: (R, T, D); users: (R, F).
        row: (V,) the row of each candidate.
        target: (V, C, H, W) what each candidate's prediction should be.
        t_group: (B,) noise levels by group.
        group: (R,) the group of each row.
        picked, valid: (B, N) bool.
    """

    noised: Tensor
    t: Tensor
    context: Tensor
    users: Tensor
    row: Tensor
    target: Tensor
    t_group: Tensor
    group: Tensor
    picked: Tensor
    valid: Tensor

    def to(self, device: torch.device) -> GroupBatch:
        """The batch on a device. It is drawn on the CPU, so that every device sees the same one."""
        return GroupBatch(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


def draw_groups(
    rows: Tensor, table: GroupTable, data: EncodedData, scheduler: DDIMScheduler, config: PreferenceConfig,
    candidates: Candidates = "all", share: bool = True,
) -> GroupBatch:  # fmt: skip
    """Noise the pictures of the groups `rows` (B,) with torch's global generator.

    The last `config.terminal_groups` of them are taken to the last noise level, the others to levels at random.

    Args:
        candidates: whom to keep of each group; a pair is drawn at random.
        share: run candidates whose noised latents are equal once.
    """
    valid, picked, images = table.valid[rows], table.picked[rows], table.image_index[rows]
    if candidates == "picked":
        valid = valid & picked
    elif candidates == "pair":
        chosen = torch.stack([_choose(picked & valid), _choose(~picked & valid)], dim=1)  # (B, 2)
        valid, picked, images = (x.gather(1, chosen) for x in (valid, picked, images))
    group = torch.arange(len(rows))[:, None].expand_as(valid)[valid]  # (V,)
    z = data.latents(images[valid], data.draw_views(len(rows))[group])
    last = scheduler.config.num_train_timesteps - 1
    t_group = sample_timesteps(len(rows), config.timestep_ranges)
    t_group[len(rows) - config.terminal_groups :] = last
    noise = torch.randn(len(rows), *z.shape[1:])[group]
    context = data.conditions([table.prompts[row] for row in rows.tolist()])
    row, first = _shared_rows(group, (scheduler.alphas_cumprod[t_group] == 0.0)[group] & share)
    return GroupBatch(
        noised=scheduler.add_noise(z[first], noise[first], t_group[group[first]]), t=t_group[group[first]],
        context=context[group[first]], users=table.features(rows)[group[first]], row=row,
        target=prediction_target(scheduler, z, noise, t_group[group]), t_group=t_group, group=group[first],
        picked=picked, valid=valid,
    )  # fmt: skip


def _shared_rows(group: Tensor, shared: Tensor) -> tuple[Tensor, Tensor]:
    """Row of each candidate (V,) and the first candidate of each row (R,), given each candidate's group, ascending."""
    new = torch.ones_like(shared)
    new[1:] = ~shared[1:] | (group[1:] != group[:-1])
    return new.long().cumsum(0) - 1, new.nonzero().squeeze(1)


def spread_errors(batch: GroupBatch, prediction: Tensor) -> Tensor:
    """Denoising errors by group: predictions (R, C, H, W) -> (B, N), 0 where there is no candidate."""
    errors = torch.zeros(batch.valid.shape, dtype=prediction.dtype, device=prediction.device)
    return errors.masked_scatter(batch.valid, denoising_error(batch.target, prediction.index_select(0, batch.row)))


def preference_loss(
    gap: Tensor, batch: GroupBatch, scheduler: DDIMScheduler, config: PreferenceConfig, pairs: bool
) -> Tensor:
    """Loss of a batch, nats: Eq. 13 over groups or Eq. 19 over pairs, with the options of `config`.

    The mean over groups; groups taken to the last noise level have a mean of their own, which is added: they are cheap
    and many, and would drown the others.

    Args:
        gap: (B, N) s = err_theta - err_ref.
    """
    beta = beta_at(scheduler, batch.t_group, config.beta, config.beta_pivot, config.beta_floor)  # (B,)
    if config.loser_clamp is not None:
        gap = clamp_losers(gap, batch.picked, config.loser_clamp / beta)
    if pairs:
        loss = pairwise_preference_loss(gap[:, 0], gap[:, 1], beta=beta)
    else:
        options: dict[str, Any] = {}
        if isinstance(config, GeneratorConfig):
            options = {"objective": config.objective, "reduction": config.reduction}
        loss = group_preference_loss(gap, batch.picked, batch.valid, beta=beta, **options)
    loss = loss * (beta / config.beta) ** -config.loss_balance
    terminal = config.terminal_groups
    parts = loss.split([len(loss) - terminal, terminal])
    return torch.stack([part.mean() for part in parts if len(part)]).sum()


def picked_loss(batch: GroupBatch, policy: Tensor, scheduler: DDIMScheduler, config: PreferenceConfig) -> Tensor:
    """Denoising error of the batch's pictures, weighted by noise level, the mean over them (Eq. 1).

    Args:
        policy: (R, C, H, W) predictions.
    """
    error = denoising_error(batch.target, policy.index_select(0, batch.row))  # (V,)
    return (error_weight(scheduler, batch.t[batch.row], config.weight_floor) * error).mean()


def clamp_losers(gap: Tensor, picked: Tensor, limit: Tensor) -> Tensor:
    """Cap the gap of unpicked candidates, (B, N) with limits (B,): making them worse than that earns nothing.

    Unbounded, the easiest way to win is to denoise everything worse, the unpicked most of all.
    """
    return torch.where(picked, gap, torch.minimum(gap, limit[:, None]))


def implicit_accuracy(gap: Tensor, picked: Tensor, valid: Tensor) -> float:
    """Share of (picked, unpicked) pairs that the policy's implicit reward orders rightly, ties 1/2, in [0, 1]."""
    pairs = (picked & valid)[:, :, None] & (~picked & valid)[:, None, :]
    ahead = gap[:, None, :] - gap[:, :, None]  # s_n - s_p
    right = (ahead > 0).double() + 0.5 * (ahead == 0).double()
    return float((right * pairs).sum() / pairs.sum().clamp(min=1))


def measure(batch: GroupBatch, policy: Tensor, reference: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Gap (B, N) with gradient, and what to log of it."""
    err_theta, err_ref = spread_errors(batch, policy), spread_errors(batch, reference)
    gap = reference_gap(err_theta, err_ref)
    count = batch.valid.sum()
    metrics = {
        "err_theta": (err_theta.detach().sum() / count).item(),
        "err_ref": (err_ref.sum() / count).item(),
    }
    if (batch.valid & ~batch.picked).any():
        metrics["implicit_accuracy"] = implicit_accuracy(gap.detach(), batch.picked, batch.valid)
    return gap, metrics


def _choose(mask: Tensor) -> Tensor:
    """One True column of each row, uniformly: (B, N) -> (B,)."""
    return torch.multinomial(mask.float(), 1).squeeze(1)
