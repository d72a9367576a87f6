"""Training on the same picks of the user-blind baseline and of PerFusionRM (Sec. 4.2, App. B.3)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from perfusion.checkpoint import atomic_write
from perfusion.config import OptimiserConfig, PickScoreConfig, RewardConfig, Section
from perfusion.data import GroupTable, shuffle_phrases
from perfusion.loop import ParameterGroups, TrainingRun, batch_rows, train
from perfusion.reward.backbones import Backbone
from perfusion.reward.batches import (
    NOTHING,
    BestWeights,
    Candidates,
    GroupObjective,
    Measure,
    Scorer,
    blind_scores,
    gather,
    measure,
    spread,
)
from perfusion.reward.frozen import Frozen
from perfusion.reward.losses import group_auc, group_loss, group_loss_minimum, pickscore_loss
from perfusion.reward.model import PerFusionRM
from perfusion.reward.weights import load_backbone
from perfusion.seeding import generator_for, seed_step

__all__ = ["mask_users", "train_pickscore", "train_reward"]

Tables = Mapping[str, GroupTable]


@dataclass(frozen=True)
class _Fit:
    """What one training minimises and how it is watched.

    Attributes:
        model: holds the parameters that train.
        scorer: batch -> (R,) scores.
        objective: scores, picked, valid -> loss of each group.
        batch_at: micro-batch number -> batch.
        valid: held-out groups.
        backbone: prepares `valid`.
        frozen: what is kept of pictures and prompts.
    """

    model: nn.Module
    scorer: Scorer
    objective: GroupObjective
    batch_at: Callable[[int], Candidates]
    valid: GroupTable
    backbone: Backbone
    frozen: Frozen = NOTHING

    def measure(self, most: int) -> Measure:
        self.model.eval()
        found = measure(self.scorer, self.objective, self.valid, self.backbone, most, self.frozen)
        self.model.train()
        return found


def train_pickscore(
    tables: Tables, clip_dir: Path, config: PickScoreConfig, out: Path, run: TrainingRun
) -> dict[str, float]:
    """Tune the whole backbone of `clip_dir` on the picks of "train", blind to who picked; keep what is best on "valid".

    Step 0 counts: if tuning never lowers the held-out loss, the untuned weights are kept.

    Returns:
        Metrics of the last step, and "valid_loss", "valid_gauc", "kept_step" of what was saved.
    """
    backbone = load_backbone(clip_dir)
    _to_device(backbone.model)
    table = _comparisons(tables["train"])

    def batch_at(step: int) -> Candidates:
        rows = batch_rows(len(table), config.batch_groups, step, run.seed, run.name)
        return gather(table, rows, _prompts(table, rows, run, step, True), table.features(rows), backbone)

    def scorer(batch: Candidates) -> Tensor:
        return blind_scores(backbone, batch)

    fit = _Fit(backbone.model, scorer, pickscore_loss, batch_at, tables["valid"], backbone)
    metrics = _train(fit, run, config.optimiser, config.evaluate_every, config.evaluate_groups, keep_best=True)
    backbone.model.eval().cpu()
    backbone.save(out)
    _save_parameters(out, config, metrics)
    return metrics


def train_reward(
    tables: Tables, backbone_dir: Path, config: RewardConfig, out: Path, run: TrainingRun
) -> dict[str, float]:
    """Train the plug-ins of a PerFusionRM on the picks of "train" (Eq. 9), the backbone of `backbone_dir` frozen.

    Returns:
        Metrics of the last step, and "valid_loss", "valid_gauc", "kept_step" of what was saved.
    """
    backbone = load_backbone(backbone_dir)
    table = _comparisons(tables["train"])
    seed_step(run.seed, run.name, "weights")
    model = PerFusionRM.from_backbone(backbone, table.encoder.cardinalities, config, table.encoder)
    _to_device(model)
    frozen = _frozen(model, tables, len(table), config)
    owner = table.user_index
    if config.shuffle_users:
        owner = owner[torch.randperm(len(owner), generator=generator_for(run.seed, run.name, "shuffle"))]

    def batch_at(step: int) -> Candidates:
        rows = batch_rows(len(table), config.batch_groups, step, run.seed, run.name)
        generator = generator_for(run.seed, run.name, "unknown", step)
        users = mask_users(table.users[owner[rows]], config.unknown_dropout, config.feature_dropout, generator)
        prompts = _prompts(table, rows, run, step, config.shuffle_phrases)
        return gather(table, rows, prompts, users, model.blind, frozen)

    fit = _Fit(model, model.score_candidates, group_loss, batch_at, tables["valid"], model.blind, frozen)
    keep_best = config.keep == "best"
    metrics = _train(
        fit, run, config.optimiser, config.evaluate_every, config.evaluate_groups, keep_best, _rates(model, config)
    )
    model.eval().cpu().save_pretrained(out)
    _save_parameters(out, config, metrics)
    return metrics


def _frozen(model: PerFusionRM, tables: Tables, groups: int, config: RewardConfig) -> Frozen:
    """What training keeps of the frozen towers: nothing, where it looks at most of the pictures once at most."""
    drawn = config.optimiser.steps * config.optimiser.accumulate * config.batch_groups
    if not config.cache or drawn <= groups:
        return NOTHING
    prompts = [] if config.shuffle_phrases else tables["train"].prompts  # orders of phrases are too many to keep
    return model.freeze(tables["train"].pixels, [*prompts, *tables["valid"].prompts])


def mask_users(users: Tensor, identity: float, feature: float, generator: torch.Generator) -> Tensor:
    """Set features to unknown, at random, in a copy of (B, F): the user's id (the last) and each other feature.

    Masked ids teach what the profile alone says, which is all there is for a new user; masked features keep the
    crossing from learning by heart what one combination of features happened to pick.

    Args:
        identity: share of rows whose id is masked.
        feature: share of the other values that are masked.
    """
    share = torch.full((users.shape[1],), feature)
    share[-1] = identity
    return users.masked_fill(torch.rand(users.shape, generator=generator) < share, 0)


def _train(
    fit: _Fit, run: TrainingRun, optimiser: OptimiserConfig, every: int, most: int, keep_best: bool,
    groups: ParameterGroups | None = None,
) -> dict[str, float]:  # fmt: skip
    """Minimise the mean of `fit.objective` over groups, measuring on held-out groups every `every` steps."""
    best = BestWeights(fit.model)

    def loss_at(step: int) -> tuple[Tensor, dict[str, float]]:
        batch = fit.batch_at(step)
        s = spread(fit.scorer(batch), batch.valid)
        loss = fit.objective(s, batch.picked, batch.valid).mean()
        metrics = {"gauc": group_auc(s.detach(), batch.picked, batch.valid).nanmean().item()}
        if fit.objective is group_loss:
            metrics["excess"] = loss.item() - group_loss_minimum(batch.picked, batch.valid).mean().item()
        return loss, metrics

    def evaluate(step: int) -> None:
        found = fit.measure(most)
        best.offer(found.loss, step)
        if run.on_metrics is not None:
            run.on_metrics(step, {"valid_loss": found.loss, "valid_gauc": found.gauc})
        if run.on_sample is not None and step in run.sample_steps:
            run.on_sample(step)

    evaluate(0)
    steps = frozenset(range(every, optimiser.steps, every)) | {optimiser.steps}
    watched = replace(run, on_sample=evaluate, sample_steps=steps | run.sample_steps)
    metrics = train(watched, {"model": fit.model, "best": best}, loss_at, optimiser, groups)
    if keep_best:
        best.restore()
    found = fit.measure(most)
    kept = int(best.step) if keep_best else optimiser.steps
    return {**metrics, "valid_loss": found.loss, "valid_gauc": found.gauc, "kept_step": float(kept)}


def _rates(model: PerFusionRM, config: RewardConfig) -> ParameterGroups:
    """AdamW groups: the vision tower's own adaptive networks at `vision_lr_factor`, the rest at the full rate."""
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    vision = [p for name, p in trainable.items() if name.startswith("plugins.vision.adaptive")]
    rest = [p for name, p in trainable.items() if not name.startswith("plugins.vision.adaptive")]
    slow = {"params": vision, "lr": config.optimiser.lr * config.vision_lr_factor}
    return [group for group in ({"params": rest}, slow) if group["params"]]


def _prompts(table: GroupTable, rows: Tensor, run: TrainingRun, step: int, shuffle: bool) -> list[str]:
    """Prompts of the groups `rows`, their phrases shuffled (Sec. 6.4)."""
    prompts = [table.prompts[row] for row in rows.tolist()]
    if not shuffle:
        return prompts
    generator = generator_for(run.seed, run.name, "phrases", step)
    return [shuffle_phrases(prompt, generator) for prompt in prompts]


def _comparisons(table: GroupTable) -> GroupTable:
    """The groups that were picked from, and not entirely: the others hold no comparison."""
    rows = ((table.picked & table.valid).any(-1) & (~table.picked & table.valid).any(-1)).nonzero()[:, 0]
    kept = rows.tolist()
    return replace(
        table, image_index=table.image_index[rows], valid=table.valid[rows], picked=table.picked[rows],
        user_index=table.user_index[rows], prompts=[table.prompts[row] for row in kept],
        record_ids=[table.record_ids[row] for row in kept],
    )  # fmt: skip


def _to_device(model: nn.Module) -> None:
    """Move to the accelerator, where there is one."""
    model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def _save_parameters(out: Path, config: Section, metrics: Mapping[str, float]) -> None:
    """training.json: the resolved parameters and the last metrics, beside the weights."""
    record = {"parameters": config.model_dump(mode="json"), "metrics": dict(metrics)}
    atomic_write(out / "training.json", json.dumps(record, indent=1).encode())
