"""The cost model's numbers: by arithmetic that a reader can redo, and its counts against the networks themselves."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import cost_model
from benchmarks.cost_model import Cluster, Load, attention_stack, phases, storage

BILLION, SIXTY_FOUR = Load(1e9), Cluster(64)


def by_stage(load: Load, cluster: Cluster) -> dict[str, cost_model.Phase]:
    return {phase.stage.split()[0]: phase for phase in phases(load, cluster)}


def test_the_generator_by_hand() -> None:
    """10^9 x 5 pictures x 2.763 TFLOP over 64 x 989 x .35 TFLOP/s = 6.2e5 s; 1.95 million sums of 57 ms = 1.1e5 s."""
    generator = by_stage(BILLION, SIXTY_FOUR)["generator"]
    assert generator.operations == pytest.approx(1.3815e22)
    computing = 1.3815e22 / (64 * 989e12 * 0.35)
    waiting = 1e9 / 512 * (2 * 63 / 64 * 362e6 * 4 / 50e9)
    assert computing == pytest.approx(6.236e5, rel=1e-3)
    assert waiting == pytest.approx(1.114e5, rel=1e-3)
    assert generator.seconds == pytest.approx(computing + waiting)
    assert generator.waiting == pytest.approx(waiting / (computing + waiting))
    assert generator.gpu_hours == pytest.approx(64 * (computing + waiting) / 3600)


def test_the_data_plane_is_the_measured_rate() -> None:
    stages = by_stage(BILLION, SIXTY_FOUR)
    assert stages["split"].seconds == pytest.approx(100 * 30.4)
    assert stages["validate"].seconds == pytest.approx(100 * 12.6)
    assert stages["split"].gpu_hours == 0


def test_one_gpu_sums_nothing_and_twice_the_gpus_halve_what_is_computed() -> None:
    alone, pair = by_stage(Load(1e6), Cluster(1)), by_stage(Load(1e6), Cluster(2))
    assert {phase.waiting for phase in alone.values()} == {0.0}
    assert pair["encode"].seconds == pytest.approx(alone["encode"].seconds / 2)
    assert alone["dpo"].seconds / 2 < pair["dpo"].seconds < alone["dpo"].seconds


def test_storage_by_hand() -> None:
    kept = storage(BILLION)
    assert kept["latents on disk"] == 5e9 * 65536
    assert kept["groups.parquet on disk"] == 190e9
    assert kept["users in memory (filter)"] == pytest.approx(1e9 / 11 * 200)


def _counted(network: torch.nn.Module, *inputs: torch.Tensor) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*inputs)
    return float(counter.get_total_flops())


def test_the_formula_of_a_transformer_is_its_count() -> None:
    from torch import nn

    layers, width, tokens = 3, 64, 20
    with torch.device("meta"):
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True)
        stack = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        counted = _counted(stack.train(), torch.zeros(1, tokens, width))
    assert attention_stack(layers, width, tokens) == pytest.approx(counted, rel=1e-6)


@pytest.mark.slow
def test_the_encoder_of_stable_diffusion_is_counted_on_its_own_architecture() -> None:
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
        )  # fmt: skip
        vae.forward = lambda x: vae.encode(x).latent_dist.mean  # type: ignore[method-assign]
        counted = _counted(vae, torch.zeros(1, 3, 512, 512))
    assert pytest.approx(counted, rel=1e-3) == cost_model.ENCODER_FORWARD


def test_the_tables_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    cost_model.main(["--records", "1e7", "--gpus", "8", "--gpu-hour", "2"])
    told = capsys.readouterr().out
    assert "| generator |" in told
    assert "price:" in told
