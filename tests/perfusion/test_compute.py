"""Every way to compute a training gives what the plain way gives, and what cannot be had is refused by name."""

from __future__ import annotations

import copy
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_generator import TWIN, generator, group_table, make_home, preferences
from torch import nn

from perfusion.compute import Compute
from perfusion.config import PLAIN, ComputeConfig, EncodeConfig, OptimiserConfig
from perfusion.errors import ConfigError
from perfusion.generation.backbone import load_backbone, load_unet
from perfusion.generation.encoding import encode, open_encoded
from perfusion.generation.objectives import draw_groups, measure, preference_loss
from perfusion.generation.pipeline import PerFusionPipeline
from perfusion.generation.predictors import predict_from_pan, predict_from_unet
from perfusion.generation.train import build_pan, train_dpo, train_generator, train_sft
from perfusion.loop import TrainingRun

SWITCHES = {
    "checkpointing": (ComputeConfig(gradient_checkpointing=True), 0.0),
    "channels_last": (ComputeConfig(channels_last=True), 1e-5),
    "math": (ComputeConfig(attention="math"), 1e-5),
    "bf16": (ComputeConfig(precision="bf16"), 0.05),
}
ALL = ComputeConfig(precision="bf16", gradient_checkpointing=True, channels_last=True, attention="math")
compiler = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler to compile with"
)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return make_home(tmp_path_factory.mktemp("compute"))


def gradients(home: Path, config: ComputeConfig, kind: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss of one batch and the gradient of every weight that trains: an adaptive network, or a whole U-Net."""
    table, backbone = group_table(), load_backbone(home / "diffusion")
    data, compute = open_encoded(home / "encode", table), Compute(config)
    options = generator(timestep_ranges=((300, 900),))
    torch.manual_seed(1)
    batch = draw_groups(torch.tensor([0, 1, 2, 3]), table, data, backbone.scheduler, options).to(compute.device)
    if kind == "pan":
        trained = build_pan(backbone.unet, table, options, TrainingRun("generator", 0))
        for layer in (trained.enter, trained.leave_mid, *trained.leave):
            torch.nn.init.constant_(layer.weight, 0.01)
        predict = predict_from_pan(trained, backbone.unet)
    else:
        trained = copy.deepcopy(backbone.unet).requires_grad_(True).train()
        predict = predict_from_unet(trained, backbone.unet)
    compute.prepare(trained, backbone.unet)
    predicted = compute.casting(predict)(batch.noised, batch.t, batch.context, batch.users)
    gap, _ = measure(batch, *predicted)
    loss = preference_loss(gap, batch, backbone.scheduler, options, pairs=False)
    loss.backward()
    assert all(parameter.grad is None for parameter in backbone.unet.parameters())
    return loss.detach(), {name: p.grad for name, p in trained.named_parameters() if p.grad is not None}


@pytest.fixture(scope="module")
def plain(home):
    return {kind: gradients(home, PLAIN, kind) for kind in ("pan", "unet")}


def assert_close(found, expected, tolerance: float) -> None:
    """Loss and every gradient, relative to the largest entry of each; tolerance 0 is bit for bit."""
    (loss, grads), (expected_loss, expected_grads) = found, expected
    assert grads.keys() == expected_grads.keys()
    assert (loss - expected_loss).abs() <= tolerance * expected_loss.abs()
    norm = torch.stack([grad.norm() for grad in expected_grads.values()]).norm()
    apart = torch.stack([(grads[name] - expected_grads[name]).norm() for name in grads]).norm()
    assert apart <= tolerance * norm


@pytest.mark.parametrize("kind", ["pan", "unet"])
@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_changes_neither_loss_nor_gradient(home, plain, kind, switch):
    config, tolerance = SWITCHES[switch]
    assert_close(gradients(home, config, kind), plain[kind], tolerance)


@compiler
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own compiler calls what torch deprecates
def test_compiled_blocks_change_neither_result_nor_gradient():
    """A block of a U-Net's kinds of layers; compiling a whole U-Net takes minutes on a CPU."""
    torch.manual_seed(0)
    network = nn.Module()
    network.down_blocks = nn.ModuleList([nn.Sequential(nn.GroupNorm(2, 4), nn.SiLU(), nn.Conv2d(4, 4, 3))])
    network.mid_block = nn.Identity()
    x = torch.randn(2, 4, 6, 6)

    def run() -> list[torch.Tensor]:
        y = network.mid_block(network.down_blocks[0](x))
        return [y, *torch.autograd.grad(y.square().mean(), list(network.parameters()))]

    expected = run()
    Compute(ComputeConfig(device="cpu", compile=True)).prepare(network)
    assert network.down_blocks[0]._compiled_call_impl is not None
    for found, plain in zip(run(), expected, strict=True):
        assert torch.allclose(found, plain, atol=1e-5)


def test_the_adaptive_network_alone_gets_weight_gradients(home, plain):
    """The frozen decoder passes gradients on (asserted in `gradients`: none stay), the frozen encoder sees none."""
    _, grads = plain["pan"]
    table, backbone = group_table(), load_backbone(home / "diffusion")
    pan = build_pan(backbone.unet, table, generator(), TrainingRun("generator", 0))
    silent = set(dict(pan.named_parameters())) - grads.keys()
    assert not silent
    z, t = torch.randn(2, 8, 4, 4), torch.tensor([500, 500])
    context, users = torch.randn(2, 8, 16), table.users[:2]
    seen = []
    for block in backbone.unet.down_blocks:
        block.register_forward_hook(lambda module, inputs, output: seen.append(output[0].requires_grad))
    policy, reference = predict_from_pan(pan, backbone.unet)(z, t, context, users)
    assert seen == [False] * len(backbone.unet.down_blocks)
    assert policy.requires_grad
    assert not reference.requires_grad


def trained(home: Path, out: Path, arm: str, run: TrainingRun, optimiser: OptimiserConfig) -> dict[str, torch.Tensor]:
    """Weights that an arm saved, as read back."""
    tables = {"train": group_table()}
    if arm == "generator":
        config = generator(optimiser=optimiser)
        train_generator(tables, home / "encode", home / "diffusion", home / "dpo", config, TWIN.sampling, out, run)
        return PerFusionPipeline.from_pretrained(out).pan.state_dict()
    train = {"dpo": train_dpo, "sft": train_sft}[arm]
    train(tables, home / "encode", home / "diffusion", preferences(optimiser=optimiser), out, run)
    return load_unet(out).state_dict()


@pytest.mark.parametrize("arm", ["sft", "dpo", "generator"])
def test_with_every_switch_an_interrupted_training_resumes_bit_for_bit(home, tmp_path, arm):
    optimiser = OptimiserConfig(steps=4, lr=1e-3, accumulate=2, checkpoint_seconds=1e-9)

    def stop(step: int, metrics: dict[str, float]) -> None:
        raise KeyboardInterrupt

    run = TrainingRun(arm, 0, compute=ALL)
    whole = trained(home, tmp_path / "whole", arm, run, optimiser)
    state = replace(run, state_dir=tmp_path / "state")
    often = optimiser.model_copy(update={"log_every": 2})
    with pytest.raises(KeyboardInterrupt):
        trained(home, tmp_path / "cut", arm, replace(state, on_metrics=stop), often)
    resumed = trained(home, tmp_path / "resumed", arm, state, optimiser)
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert all(value.is_contiguous() and value.dtype == torch.float32 for value in whole.values())


def test_scaled_losses_train_and_resume_as_plain_ones(home, tmp_path, monkeypatch):
    """Half precision needs CUDA; its scaling of losses does not: by a power of two it changes nothing in float32."""
    optimiser = OptimiserConfig(steps=4, lr=1e-3, checkpoint_seconds=1e-9)
    run = TrainingRun("generator", 0)
    expected = trained(home, tmp_path / "plain", "generator", run, optimiser)
    scalers = []

    def scaler(self: Compute) -> torch.amp.GradScaler:
        scalers.append(torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1))
        return scalers[-1]

    monkeypatch.setattr(Compute, "scaler", scaler)
    state = replace(run, state_dir=tmp_path / "state")
    half = optimiser.model_copy(update={"steps": 2, "schedule": "constant"})
    whole = optimiser.model_copy(update={"schedule": "constant"})
    trained(home, tmp_path / "half", "generator", state, half)
    assert scalers[-1].get_scale() == 2.0**12
    trained(home, tmp_path / "resumed", "generator", state, whole)
    assert scalers[-1].get_scale() == 2.0**14
    found = trained(home, tmp_path / "scaled", "generator", run, optimiser)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_accumulated_micro_batches_are_one_batch(home, tmp_path, monkeypatch):
    """Rows of micro-batches follow one another in the epoch's order; noise is drawn for each, so here it is one."""
    tables = {"train": group_table()}
    encode(tables, home / "diffusion", EncodeConfig(orders=1), tmp_path / "encode")
    noise = torch.randn(1, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(torch, "randn", lambda count, *shape, **_: noise.expand(count, *shape))
    norms: dict[int, list[float]] = {}
    for micro in (1, 2, 4):
        optimiser = OptimiserConfig(steps=3, lr=1e-3, accumulate=micro, log_every=1)
        config = generator(optimiser=optimiser, batch_groups=4 // micro, timestep_ranges=((500, 501),))
        seen = norms.setdefault(micro, [])
        train_generator(
            tables, tmp_path / "encode", home / "diffusion", home / "dpo", config, TWIN.sampling,
            tmp_path / str(micro),
            TrainingRun("generator", 0, on_metrics=lambda _, metrics, seen=seen: seen.append(metrics["grad_norm"])),
        )  # fmt: skip
    assert norms[2] == pytest.approx(norms[1], rel=1e-4)
    assert norms[4] == pytest.approx(norms[1], rel=1e-4)
    assert len(set(norms[1])) == 3


def test_mirrored_views_are_the_codecs_of_mirrored_pictures_and_one_side_a_group(home, tmp_path):
    table, backbone = group_table(), load_backbone(home / "diffusion")
    encode({"train": table}, home / "diffusion", EncodeConfig(batch_images=7, flip=True), tmp_path)
    data, plain = open_encoded(tmp_path, table), open_encoded(home / "encode", table)
    rows = torch.arange(9)
    mirrored = backbone.vae.encode(table.pixels[:9].flip(-1).float() / 127.5 - 1).latent_dist.mode()
    assert torch.equal(data.latents(rows, torch.zeros_like(rows)), plain.latents(rows, torch.zeros_like(rows)))
    assert torch.allclose(data.latents(rows, torch.ones_like(rows)), mirrored, atol=1e-5)
    torch.manual_seed(0)
    batch = draw_groups(torch.arange(10), table, data, backbone.scheduler, preferences())
    images = table.image_index[:10][table.valid[:10]]
    group = torch.arange(10)[:, None].expand(10, 5)[table.valid[:10]]
    side = (batch.target != data.latents(images, torch.zeros_like(images))).flatten(1).any(1)
    assert 0 < side.sum() < len(side)
    assert all(side[group == one].unique().numel() == 1 for one in range(10))


def test_half_the_disk_costs_one_part_in_two_thousand(home, tmp_path):
    table = group_table()
    encode({"train": table}, home / "diffusion", EncodeConfig(orders=2, dtype="float16"), tmp_path)
    half, full = open_encoded(tmp_path, table), open_encoded(home / "encode", table)
    assert half.mean.nbytes * 2 == full.mean.nbytes
    rows = torch.arange(20)
    for side in (half, full):
        assert side.latents(rows, torch.zeros_like(rows)).dtype == torch.float32
    apart = half.latents(rows, torch.zeros_like(rows)) - full.latents(rows, torch.zeros_like(rows))
    assert (apart.abs() <= full.latents(rows, torch.zeros_like(rows)).abs() / 2048 + 1e-7).all()
    torch.manual_seed(0)
    found = half.conditions(["coat", "coat, v-neck"])
    torch.manual_seed(0)
    assert torch.allclose(found, full.conditions(["coat", "coat, v-neck"]), rtol=1 / 2048, atol=1e-6)


@pytest.mark.skipif(torch.cuda.is_available(), reason="what a CPU cannot do is what is refused here")
@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"device": "cuda"}, "compute.device cuda: torch sees no CUDA device"),
        ({"precision": "fp16"}, "compute.precision fp16 on cpu: half precision trains on CUDA only"),
        ({"attention": "xformers"}, "compute.attention xformers on cpu: xformers runs on CUDA only"),
    ],
)
def test_what_cannot_be_had_is_refused(asked, told):
    with pytest.raises(ConfigError, match=told):
        Compute(ComputeConfig(**asked))


def test_compiling_without_a_compiler_is_refused(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match=r"compute.compile on cpu: no C\+\+ compiler"):
        Compute(ComputeConfig(device="cpu", compile=True))
