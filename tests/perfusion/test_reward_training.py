"""Training of the two reward models on a market so small that the answer is known."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from perfusion.config import ClipConfig, OptimiserConfig, PickScoreConfig, RewardConfig
from perfusion.data import Corpus, FeatureEncoder, GroupTable
from perfusion.errors import ConfigError, DataError
from perfusion.loop import TrainingRun, batch_rows
from perfusion.reward import PerFusionRM, load_clip, pretrain_clip, train_pickscore, train_reward, twin
from perfusion.reward.batches import NOTHING, BestWeights, gather, measure, spread
from perfusion.reward.frozen import Frozen, embed_pictures, embed_prompts
from perfusion.reward.losses import group_auc, group_loss
from perfusion.reward.model import VARIANTS
from perfusion.reward.train import mask_users

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 60, 230), "grey": (128, 128, 128)}
CLIP = ClipConfig(
    optimiser=OptimiserConfig(steps=150, lr=3e-3, warmup=5), width=32, layers=1, heads=2, patch=8, projection=8,
    batch_images=32, batch_captions=16,
)  # fmt: skip
REWARD = RewardConfig(
    optimiser=OptimiserConfig(steps=60, lr=1e-2, warmup=5), batch_groups=16, embedding_dim=4, adaptive_hidden=16,
    evaluate_every=20, unknown_dropout=0.2, vision_lr_factor=0.5,
)  # fmt: skip


RUN = TrainingRun("reward", 0)
SIDES = ["left stripe", "right stripe"]


def patches(colours: torch.Tensor, sides: torch.Tensor | None = None) -> torch.Tensor:
    """Pictures (n, 3, 16, 16) of one colour each, with a white stripe on one side."""
    values = torch.tensor(list(COLOURS.values()), dtype=torch.uint8)[colours]
    pictures = values[:, :, None, None].repeat(1, 1, 16, 16)
    for row, side in enumerate([0] * len(colours) if sides is None else sides.tolist()):
        pictures[row, :, :, slice(0, 4) if side == 0 else slice(12, 16)] = 255
    return pictures


@pytest.fixture(scope="module")
def clip_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    colours, sides = torch.randint(4, (2, 400), generator=torch.Generator().manual_seed(0))
    sides = sides % 2
    families = {"colour": list(COLOURS), "side": SIDES}
    corpus = Corpus(patches(colours, sides), families, torch.stack([colours, sides], dim=1))
    out = tmp_path_factory.mktemp("clip")
    metrics = pretrain_clip(corpus, CLIP, out, TrainingRun("clip", 0))
    assert metrics["zero_shot"] > 0.95
    return out


@pytest.fixture(scope="module")
def tables() -> dict[str, GroupTable]:
    """Merchants of style x pick red, of style y blue, whatever the prompt; groups of 2 to 4, padded."""
    generator = torch.Generator().manual_seed(1)
    users = pd.DataFrame({"user_id": [f"m{i}" for i in range(12)], "style": ["x", "y"] * 6})
    encoder = FeatureEncoder.fit(users)
    pixels = patches(torch.arange(4))

    def table(count: int) -> GroupTable:
        owner = torch.randint(12, (count,), generator=generator)
        index = torch.stack([torch.randperm(4, generator=generator) for _ in range(count)])
        favourite = torch.where(owner % 2 == 0, 0, 2)
        size = torch.randint(2, 5, (count,), generator=generator)
        size = size.maximum((index == favourite[:, None]).int().argmax(1) + 1)
        valid = torch.arange(4)[None] < size[:, None]
        picked = (index == favourite[:, None]) & valid
        return GroupTable(
            pixels, index, valid, picked, owner, encoder.transform(users), ["grey"] * count,
            [f"r{i}" for i in range(count)], users["user_id"].tolist(), encoder, [f"i{i}" for i in range(4)],
        )  # fmt: skip

    return {"train": table(160), "valid": table(40)}


def held_out_gauc(folder: Path, table: GroupTable, blind: bool = False) -> float:
    model = PerFusionRM.from_pretrained(folder)
    rows = torch.arange(len(table))
    scores = model.score(table.prompts, table.candidates(rows), None if blind else table.features(rows))
    return group_auc(scores, table.picked, table.valid).nanmean().item()


def test_the_order_of_phrases_hardly_matters_and_their_number_shows(clip_dir: Path):
    backbone = load_clip(clip_dir)
    with torch.no_grad():
        forth, back, other, one = backbone.model.get_text_features(
            **backbone.tokens(["red, left stripe", "left stripe, red", "blue, left stripe", "red"])
        ).pooler_output
    assert functional.cosine_similarity(forth, back, dim=0) > 0.97
    assert functional.cosine_similarity(forth, other, dim=0) < 0.6
    assert forth.norm().item() / one.norm().item() == pytest.approx(2**0.5, rel=0.1)


def test_the_plug_in_learns_whose_favourite_is_what(clip_dir: Path, tables: dict[str, GroupTable], tmp_path: Path):
    curve = {}
    run = TrainingRun("reward", 0, on_metrics=lambda step, metrics: curve.setdefault(step, {}).update(metrics))
    metrics = train_reward(tables, clip_dir, REWARD, tmp_path, run)
    assert held_out_gauc(tmp_path, tables["valid"]) > 0.95
    assert held_out_gauc(tmp_path, tables["valid"], blind=True) < 0.8
    assert metrics["valid_gauc"] == pytest.approx(held_out_gauc(tmp_path, tables["valid"]), abs=1e-6)
    assert {0, 20, 40, 60} <= set(curve)
    assert curve[60]["valid_loss"] < curve[0]["valid_loss"]
    assert {"loss", "excess", "gauc", "valid_gauc"} <= set(curve[60])
    assert (tmp_path / "training.json").exists()


def test_shuffled_users_gain_nothing(clip_dir: Path, tables: dict[str, GroupTable], tmp_path: Path):
    shuffled = REWARD.model_copy(update={"shuffle_users": True})
    train_reward(tables, clip_dir, shuffled, tmp_path, TrainingRun("reward", 0))
    assert held_out_gauc(tmp_path, tables["valid"]) < 0.85


def test_the_baseline_learns_what_everybody_likes_and_keeps_its_best_step(
    clip_dir: Path, tables: dict[str, GroupTable], tmp_path: Path
):
    config = PickScoreConfig(optimiser=OptimiserConfig(steps=30, lr=1e-3, warmup=3), batch_groups=16, evaluate_every=10)
    curve = {}
    run = TrainingRun("pickscore", 0, on_metrics=lambda step, metrics: curve.setdefault(step, {}).update(metrics))
    metrics = train_pickscore(tables, clip_dir, config, tmp_path, run)
    losses = {step: values["valid_loss"] for step, values in curve.items() if "valid_loss" in values}
    assert metrics["kept_step"] == min(losses, key=losses.get)
    assert metrics["valid_loss"] == pytest.approx(min(losses.values()), abs=1e-6)
    assert metrics["valid_gauc"] > 0.6
    contrary = {**tables, "train": replace(tables["train"], picked=tables["train"].valid & ~tables["train"].picked)}
    metrics = train_pickscore(contrary, tmp_path, config, tmp_path / "wild", TrainingRun("pickscore", 0))
    assert metrics["kept_step"] == 0  # tuning that only harms leaves the weights as they were
    before, after = load_file(tmp_path / "model.safetensors"), load_file(tmp_path / "wild" / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("stage", ["reward", "pickscore", "clip"])
def test_interrupted_and_resumed_training_gives_the_same_bytes(
    stage: str, clip_dir: Path, tables: dict[str, GroupTable], tmp_path: Path
):
    """Stop in the middle of step 8 of 12, start again: weights as if nothing had happened."""
    optimiser = OptimiserConfig(steps=12, lr=1e-2, warmup=2, checkpoint_seconds=1e-9, log_every=1)

    def go(out: Path, run: TrainingRun) -> None:
        if stage == "reward":
            config = REWARD.model_copy(update={"optimiser": optimiser, "evaluate_every": 3})
            train_reward(tables, clip_dir, config, out, run)
        elif stage == "pickscore":
            train_pickscore(tables, clip_dir, PickScoreConfig(optimiser=optimiser, evaluate_every=3), out, run)
        else:
            colours = torch.arange(40) % 4
            corpus = Corpus(patches(colours), {"colour": list(COLOURS)}, colours[:, None])
            pretrain_clip(corpus, CLIP.model_copy(update={"optimiser": optimiser}), out, run)

    class Killed(Exception):
        pass

    def kill(step: int, metrics: dict[str, float]) -> None:
        if step == 8 and "lr" in metrics:
            raise Killed

    go(tmp_path / "whole", TrainingRun(stage, 0))
    state = tmp_path / "state"
    with pytest.raises(Killed):
        go(tmp_path / "resumed", TrainingRun(stage, 0, state, "key", on_metrics=kill))
    assert not (tmp_path / "resumed" / "model.safetensors").exists()
    go(tmp_path / "resumed", TrainingRun(stage, 0, state, "key"))
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "resumed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_kept_of_frozen_towers_changes_neither_scores_nor_gradients(
    variant: str, clip_dir: Path, tables: dict[str, GroupTable], tmp_path: Path
):
    """Picture embeddings without a plug-in, else the first layer's input; prompt embeddings without a plug-in."""
    config = REWARD.model_copy(update={"variant": variant, "optimiser": OptimiserConfig(steps=2, lr=1e-2)})
    train_reward(tables, clip_dir, config, tmp_path, TrainingRun("reward", 0))
    model = PerFusionRM.from_pretrained(tmp_path)
    table, rows = tables["train"], torch.arange(8)
    prompts, users = [table.prompts[row] for row in rows.tolist()], table.features(rows)
    frozen = model.freeze(table.pixels, table.prompts)
    assert frozen.pictures.ndim == (2 if variant == "text_only" else 3)
    assert (frozen.prompts is not None) == (variant == "vision_only")
    results = []
    for kept in (NOTHING, frozen):
        batch = gather(table, rows, prompts, users, model.blind, kept)
        loss = group_loss(spread(model.score_candidates(batch), batch.valid), batch.picked, batch.valid).sum()
        model.zero_grad()
        loss.backward()
        results.append((loss.detach(), {name: p.grad.clone() for name, p in model.plugins.named_parameters()}))
    (plain, gradients), (cached, cached_gradients) = results
    torch.testing.assert_close(cached, plain)
    for name, gradient in gradients.items():
        torch.testing.assert_close(cached_gradients[name], gradient, rtol=1e-4, atol=1e-6)


def test_embeddings_that_a_user_changes_are_refused(clip_dir: Path, tables: dict[str, GroupTable]):
    table, rows = tables["train"], torch.arange(2)
    model = PerFusionRM.from_backbone(load_clip(clip_dir), table.encoder.cardinalities, REWARD)
    pictures, prompts = embed_pictures(model.blind, table.pixels), embed_prompts(model.blind, table.prompts)
    for frozen, what in ((Frozen(pictures), "picture"), (Frozen(prompts=prompts), "prompt")):
        batch = gather(table, rows, table.prompts[:2], table.features(rows), model.blind, frozen)
        with pytest.raises(ConfigError, match=f"'full' changes {what} embeddings"):
            model.score_candidates(batch)


def test_training_with_a_cache_is_training_without(
    clip_dir: Path, tables: dict[str, GroupTable], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """And a run that looks at each picture once keeps nothing."""
    config = REWARD.model_copy(update={"optimiser": OptimiserConfig(steps=12, lr=1e-2), "batch_groups": 32})
    kept = []
    monkeypatch.setattr(PerFusionRM, "freeze", _recorded(kept, PerFusionRM.freeze))
    gauc = {}
    for cache in (True, False):
        train_reward(tables, clip_dir, config.model_copy(update={"cache": cache}), tmp_path / str(cache), RUN)
        gauc[cache] = held_out_gauc(tmp_path / str(cache), tables["valid"])
    assert len(kept) == 1
    assert kept[0].pictures.shape[:2] == (4, 5)  # 4 pictures; 4 patches and the class token
    assert gauc[True] == pytest.approx(gauc[False], abs=1e-3)
    weights = [load_file(tmp_path / str(cache) / "model.safetensors") for cache in (True, False)]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-3, atol=1e-5)
    once = OptimiserConfig(steps=len(tables["train"]) // 32, lr=1e-2)
    train_reward(tables, clip_dir, config.model_copy(update={"optimiser": once}), tmp_path / "once", RUN)
    assert len(kept) == 1


def _recorded(calls: list, function):
    def call(*arguments):
        calls.append(function(*arguments))
        return calls[-1]

    return call


def test_ragged_groups_are_gathered_without_their_padding(tables: dict[str, GroupTable]):
    backbone = twin(COLOURS, 16, CLIP)
    rows = torch.arange(len(tables["train"]))
    batch = gather(tables["train"], rows, tables["train"].prompts, tables["train"].features(rows), backbone)
    assert len(batch.image) == len(batch.group) == int(tables["train"].valid.sum())
    assert batch.group.bincount().tolist() == tables["train"].valid.sum(1).tolist()


def test_epochs_visit_every_group_once_and_batches_depend_on_the_step_alone():
    seen = torch.cat([batch_rows(10, 4, step, 0, "reward") for step in range(5)])
    assert sorted(seen[:10].tolist()) == list(range(10))
    assert sorted(seen[10:].tolist()) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()
    assert torch.equal(batch_rows(10, 4, 3, 0, "reward"), seen[12:16])
    assert not torch.equal(batch_rows(10, 4, 3, 1, "reward"), seen[12:16])
    with pytest.raises(DataError, match="no training groups"):
        batch_rows(0, 4, 0, 0, "reward")


def test_masking_hides_identities_and_features_at_their_own_rates():
    users = torch.full((4000, 3), 5)
    masked = mask_users(users, 0.25, 0.0, torch.Generator().manual_seed(0))
    assert (masked[:, :2] == 5).all()
    assert (masked[:, 2] == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    masked = mask_users(users, 0.0, 0.1, torch.Generator().manual_seed(0))
    assert (masked[:, 2] == 5).all()
    assert (masked[:, :2] == 0).float().mean().item() == pytest.approx(0.1, abs=0.02)
    assert (users == 5).all()


def test_measure_spreads_over_the_table_and_skips_groups_nobody_picked_from(tables: dict[str, GroupTable]):
    table = tables["valid"]
    silent = replace(table, picked=table.picked & (torch.arange(len(table)) % 2 == 1)[:, None])
    backbone = twin(COLOURS, 16, CLIP)
    sizes = []

    def perfect(batch) -> torch.Tensor:
        sizes.append(len(batch.picked))
        return batch.picked[batch.valid].float()

    found = measure(perfect, group_loss, silent, backbone, most=10)
    assert sizes == [10]
    assert found.gauc == 1.0
    with pytest.raises(DataError, match="no valid group"):
        measure(perfect, group_loss, replace(table, picked=table.picked & False), backbone, most=10)


def test_best_weights_come_back_after_a_worse_step():
    layer = torch.nn.Linear(2, 1)
    best = BestWeights(layer)
    best.offer(1.0, 10)
    good = layer.weight.detach().clone()
    torch.nn.init.zeros_(layer.weight)
    best.offer(2.0, 20)
    best.restore()
    assert torch.equal(layer.weight, good)
    assert int(best.step) == 10
