"""The generator's trainings end to end on a few 16-pixel pictures, in seconds."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_generator import SIZE, TWIN, generator, group_table, make_home, preferences

from perfusion.config import (
    OptimiserConfig,
)
from perfusion.errors import ConfigError, DataError, DivergenceError, WeightsError
from perfusion.generation.backbone import load_backbone, load_unet
from perfusion.generation.encoding import open_encoded
from perfusion.generation.objectives import draw_groups, measure, picked_loss, preference_loss
from perfusion.generation.pipeline import PerFusionPipeline
from perfusion.generation.predictors import predict_from_decoder, predict_from_pan, predict_from_unet
from perfusion.generation.preference import denoising_error, group_preference_loss
from perfusion.generation.train import build_pan, comparable_groups, train_dpo, train_generator, train_sft
from perfusion.loop import TrainingRun


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return make_home(tmp_path_factory.mktemp("generation"))


@pytest.fixture
def parts(home):
    table = group_table()
    backbone = load_backbone(home / "diffusion")
    return table, open_encoded(home / "encode", table), backbone


def test_encoded_latents_are_the_codecs(home, parts):
    table, data, backbone = parts
    z = backbone.vae.encode(table.pixels[:3].float() / 127.5 - 1).latent_dist.mode()
    assert torch.allclose(data.latents(torch.arange(3), torch.zeros(3, dtype=torch.long)), z, atol=1e-5)
    assert data.std is None
    assert data.conditions(["coat", "coat"]).shape == (2, 8, 16)
    with pytest.raises(DataError, match="encode stage"):
        data.conditions(["hat"])
    with pytest.raises(DataError, match="other pictures"):
        open_encoded(home / "encode", replace(table, image_ids=["other"]))


def test_candidates_of_a_group_share_noise_level_and_noise(parts):
    table, data, backbone = parts
    torch.manual_seed(0)
    batch = draw_groups(torch.tensor([0, 1, 2]), table, data, backbone.scheduler, preferences())
    kept = backbone.scheduler.alphas_cumprod[batch.t][:, None, None, None]
    noise = (batch.noised - kept.sqrt() * batch.target) / (1 - kept).sqrt()  # the twin's target is the latent
    for group in range(3):
        mine = batch.group == group
        assert batch.t[mine].unique().numel() == 1
        assert torch.allclose(noise[mine], noise[mine][:1].expand_as(noise[mine]), atol=1e-4)


@pytest.mark.parametrize("candidates", ["all", "pair"])
def test_sharing_rows_at_pure_noise_changes_neither_loss_nor_gradient(parts, candidates):
    table, data, backbone = parts
    config = generator(terminal_groups=3, timestep_ranges=((300, 900),))
    results = []
    for share in (True, False):
        torch.manual_seed(1)
        batch = draw_groups(torch.tensor([0, 1, 2, 3, 4]), table, data, backbone.scheduler, config, candidates, share)
        pan = build_pan(backbone.unet, table, config, TrainingRun("generator", 0))
        for conv in (pan.enter, pan.leave_mid, *pan.leave):
            torch.nn.init.constant_(conv.weight, 0.01)
        gap, _ = measure(
            batch, *predict_from_pan(pan, backbone.unet)(batch.noised, batch.t, batch.context, batch.users)
        )
        loss = preference_loss(gap, batch, backbone.scheduler, config, candidates == "pair")
        results.append((len(batch.noised), loss, torch.autograd.grad(loss, pan.to_map.weight)[0]))
    assert results[0][0] < results[1][0]
    assert torch.allclose(results[0][1], results[1][1], atol=1e-6)
    assert torch.allclose(results[0][2], results[1][2], atol=1e-6)


def test_a_frozen_encoder_run_once_gives_the_plain_predictions_bit_for_bit(parts):
    table, data, backbone = parts
    batch = draw_groups(torch.tensor([0, 1, 2]), table, data, backbone.scheduler, preferences())
    args = (batch.noised, batch.t, batch.context, batch.users)
    reference = backbone.unet
    policy = copy.deepcopy(reference)
    for block in policy.up_blocks:
        for parameter in block.parameters():
            parameter.data.mul_(1.1)
    policy.requires_grad_(True)
    shared, shared_reference = predict_from_decoder(policy, reference)(*args)
    plain, plain_reference = predict_from_unet(policy, reference)(*args)
    assert torch.equal(shared, plain)
    assert torch.equal(shared_reference, plain_reference)
    weights = list(policy.up_blocks.parameters())
    for a, b in zip(torch.autograd.grad(shared.sum(), weights), torch.autograd.grad(plain.sum(), weights), strict=True):
        assert torch.equal(a, b)


def test_the_first_loss_is_that_of_an_untouched_backbone(parts):
    """|P| log(1 + |N|): the network says nothing yet, so policy and reference agree bit for bit."""
    table, data, backbone = parts
    config = generator()
    rows, counts = comparable_groups(table)
    assert counts == {"groups": 10.0, "dropped_nothing_picked": 1.0, "dropped_all_picked": 1.0}
    batch = draw_groups(rows, table, data, backbone.scheduler, config)
    pan = build_pan(backbone.unet, table, config, TrainingRun("generator", 0))
    gap, metrics = measure(
        batch, *predict_from_pan(pan, backbone.unet)(batch.noised, batch.t, batch.context, batch.users)
    )
    assert gap.eq(0).all()
    assert metrics["implicit_accuracy"] == 0.5
    expected = group_preference_loss(torch.zeros_like(gap), batch.picked, batch.valid, beta=5.0).mean()
    assert preference_loss(gap, batch, backbone.scheduler, config, pairs=False) == expected


@pytest.mark.parametrize("trainable", ["full", "decoder"])
def test_dpo_moves_what_it_may(home, tmp_path, trainable):
    tables = {"train": group_table()}
    metrics = train_dpo(
        tables, home / "encode", home / "diffusion", preferences(trainable=trainable, scale_lr=True), tmp_path,
        TrainingRun("dpo", 0),
    )  # fmt: skip
    before, after = load_backbone(home / "diffusion").unet.state_dict(), load_unet(tmp_path).state_dict()
    moved = {name.split(".")[0] for name in after if not torch.equal(before[name], after[name])}
    assert "up_blocks" in moved
    assert ("down_blocks" in moved) == (trainable == "full")
    assert metrics["effective_lr"] == pytest.approx(4e-3)
    assert metrics["loss"] == pytest.approx(0.693147, abs=1e-6)  # one step: still at the start


def test_sft_learns_the_picked_pictures(home, tmp_path, parts):
    table, data, backbone = parts
    config = preferences(optimiser=OptimiserConfig(steps=40, lr=3e-3))
    result = train_sft({"train": table}, home / "encode", home / "diffusion", config, tmp_path, TrainingRun("sft", 0))
    assert result["pictures"] == table.picked.sum()
    rows = torch.arange(10)
    torch.manual_seed(0)
    batch = draw_groups(rows, table, data, backbone.scheduler, preferences())
    picked = batch.picked[batch.valid]
    with torch.no_grad():
        before, after = (
            denoising_error(batch.target, unet(batch.noised, batch.t, batch.context).sample)[picked].mean()
            for unet in (backbone.unet, load_unet(tmp_path))
        )
    assert after < before


def test_an_interrupted_training_resumes_bit_for_bit(home, tmp_path):
    tables = {"train": group_table()}
    config = generator(optimiser=OptimiserConfig(steps=6, lr=1e-3, checkpoint_seconds=1e-9), unknown_dropout=0.5)

    def stop(step: int, metrics: dict[str, float]) -> None:
        raise KeyboardInterrupt

    def go(name: str, **run) -> dict[str, torch.Tensor]:
        train_generator(
            tables, home / "encode", home / "diffusion", home / "dpo", config, TWIN.sampling, tmp_path / name,
            TrainingRun("generator", 0, **run),
        )  # fmt: skip
        return PerFusionPipeline.from_pretrained(tmp_path / name).pan.state_dict()

    whole = go("whole")
    state = tmp_path / "state"
    short = config.model_copy(update={"optimiser": config.optimiser.model_copy(update={"log_every": 3})})
    with pytest.raises(KeyboardInterrupt):
        train_generator(
            tables, home / "encode", home / "diffusion", home / "dpo", short, TWIN.sampling, tmp_path / "cut",
            TrainingRun("generator", 0, state_dir=state, on_metrics=stop),
        )  # fmt: skip
    assert not (tmp_path / "cut").exists()
    resumed = go("resumed", state_dir=state)
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


@pytest.mark.parametrize("pan", [True, False])
@pytest.mark.parametrize("group", [True, False])
def test_ablations_train_what_they_say(home, tmp_path, pan, group):
    """Sec. 5.4: without PAN the U-Net itself learns, blind; without the group objective Eq. 1 trains."""
    config = generator(pan=pan, group=group, optimiser=OptimiserConfig(steps=3, lr=1e-3))
    metrics = train_generator(
        {"train": group_table()}, home / "encode", home / "diffusion", home / "dpo", config, TWIN.sampling, tmp_path,
        TrainingRun("generator", 0),
    )  # fmt: skip
    pipe = PerFusionPipeline.from_pretrained(tmp_path)
    dpo = load_unet(home / "dpo").state_dict()
    assert (pipe.pan is not None) == pan
    still = [key for key, value in pipe.unet.state_dict().items() if torch.equal(value, dpo[key])]
    assert (len(still) == len(dpo)) == pan
    assert ("implicit_accuracy" in metrics) == group


def test_without_pan_the_unet_learns_at_a_rate_of_its_own(home, tmp_path):
    metrics = train_generator(
        {"train": group_table()}, home / "encode", home / "diffusion", home / "dpo",
        generator(pan=False, unet_lr_factor=0.25), TWIN.sampling, tmp_path, TrainingRun("generator", 0),
    )  # fmt: skip
    assert metrics["effective_lr"] == pytest.approx(0.25e-3)


def test_without_the_group_objective_the_loss_is_the_picked_pictures_denoising_error(parts):
    table, data, backbone = parts
    config = generator(group=False, terminal_groups=2)
    rows, _ = comparable_groups(table)
    torch.manual_seed(0)
    batch = draw_groups(rows, table, data, backbone.scheduler, config, "picked")
    assert len(batch.target) == table.picked[rows].sum()
    with torch.no_grad():
        prediction = backbone.unet(batch.noised, batch.t, batch.context).sample
    by_hand = [
        ((target - prediction[row]) ** 2).mean() / max(1 - float(backbone.scheduler.alphas_cumprod[batch.t[row]]), 0.1)
        for target, row in zip(batch.target, batch.row.tolist(), strict=True)
    ]
    assert torch.allclose(picked_loss(batch, prediction, backbone.scheduler, config), torch.stack(by_hand).mean())
    assert measure(batch, prediction, prediction)[1].keys() == {"err_theta", "err_ref"}


def test_divergence_stops_with_a_name(home, tmp_path):
    config = preferences(optimiser=OptimiserConfig(steps=60, lr=0.5), max_error_ratio=1.01)
    with pytest.raises(DivergenceError, match=r"err_theta / err_ref .* limit 1.01"):
        train_dpo(
            {"train": group_table()}, home / "encode", home / "diffusion", config, tmp_path, TrainingRun("dpo", 0)
        )


def test_noise_levels_where_the_network_is_silent_cannot_be_trained(parts):
    table, _, backbone = parts
    with pytest.raises(ConfigError, match="min_timestep 300"):
        build_pan(backbone.unet, table, generator(min_timestep=300), TrainingRun("generator", 0))


def test_no_comparison_is_an_error(parts):
    table = group_table()
    with pytest.raises(DataError, match="no group holds both"):
        comparable_groups(replace(table, picked=torch.zeros_like(table.picked)))


def test_absent_weights_name_the_place_and_the_remedy(tmp_path):
    with pytest.raises(WeightsError, match=r"nowhere/vae: cannot load.*diffusion.path"):
        load_backbone(tmp_path / "nowhere")


def test_pictures_while_training(home, tmp_path):
    drawn = {}
    run = TrainingRun(
        "generator", 0, sample_steps=frozenset({1}), on_pictures=lambda step, pixels: drawn.update({step: pixels})
    )
    train_generator(
        {"train": group_table()}, home / "encode", home / "diffusion", home / "dpo", generator(), TWIN.sampling,
        tmp_path, run,
    )  # fmt: skip
    assert drawn[1].shape == (16, 3, SIZE, SIZE)
    assert drawn[1].dtype == torch.uint8
    drawn.clear()
    train_dpo(
        {"train": group_table()}, home / "encode", home / "diffusion", preferences(), tmp_path / "dpo",
        replace(run, name="dpo"),
    )  # fmt: skip
    assert drawn[1].shape == (16, 3, SIZE, SIZE)
