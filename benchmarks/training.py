"""What a training step costs per picture: plain diffusion, Diffusion-DPO, PerFusion written naively, PerFusion.

Each arm takes whole steps (forward, backward, clip, optimiser) on the same number of pictures, on the same networks:

    plain           every weight of the U-Net learns to predict the noise of each picture (Eq. 1)
    dpo             Diffusion-DPO as the public scripts compute it: every weight of the U-Net, and a second, frozen
                    U-Net as its reference, each run in full on pairs of pictures (Eq. 19)
    perfusion-naive the adaptive network on a frozen U-Net, policy and reference each run in full (Eq. 13)
    perfusion       the same numbers: the frozen encoder runs once for both, as this project trains

    python -m benchmarks.training --size sd15 --rounds 5
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.common import measure, peak_memory, record, show
from benchmarks.sizes import SIZES, SizeName, build_parser
from perfusion.generation.pan import PersonalAdaptiveNetwork
from perfusion.generation.predictors import Predictor, predict_from_pan, predict_from_unet
from perfusion.generation.preference import (
    denoising_error,
    group_preference_loss,
    pairwise_preference_loss,
    reference_gap,
)

from diffusers import UNet2DConditionModel  # isort: skip

__all__ = ["ARMS", "BASELINE", "Arms", "arms", "main", "peak_on_device"]

ARMS = ("plain", "dpo", "perfusion-naive", "perfusion")
BASELINE = "plain"
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Arms(NamedTuple):
    """What `benchmarks.common.measure` takes: name -> one round of its work, the baseline, pictures a round."""

    work: Mapping[str, Callable[[], object]]
    baseline: str
    items: int


def arms(
    size: SizeName, latent: int | None = None, device: str = "cpu", dtype: torch.dtype = torch.float32,
    pictures: int | None = None,
) -> Arms:  # fmt: skip
    """The four arms; each builds the networks it needs when it first runs, and networks of the same kind are shared.

    Args:
        size: of the networks.
        latent: side of the latents; None takes the size's own.
        device: "cpu", "cuda" or "meta" (to count operations).
        dtype: of the arithmetic; weights are float32, other types by autocast.
        pictures: in a step, an even number: one group with one picked picture, or half as many pairs.
    """
    steps = _Steps(size, latent, device, dtype, pictures)
    work = {name: getattr(steps, name.replace("-", "_")) for name in ARMS}
    return Arms(work, BASELINE, steps.pictures)


class _Steps:
    """Networks, inputs and optimisers, made when first asked for, and a step of each arm."""

    def __init__(
        self, size: SizeName, latent: int | None, device: str, dtype: torch.dtype, pictures: int | None
    ) -> None:
        self.size, self.device, self.dtype = SIZES[size], device, dtype
        self.latent = latent or self.size.latent
        self.pictures = pictures or self.size.pictures
        if self.pictures % 2:
            raise SystemExit(f"--pictures {self.pictures}: pairs need an even number")
        # AdamW as in training, but plain SGD for SD1.5 in main memory: its moments alone would take 7 GB an arm there
        self.stateless = size == "sd15" and device == "cpu"

    @cached_property
    def frozen(self) -> UNet2DConditionModel:
        """The backbone of the adaptive network, and the reference of DPO."""
        torch.manual_seed(0)
        return self.size.build_unet(self.device, self.latent).eval()

    @cached_property
    def policy(self) -> UNet2DConditionModel:
        """A U-Net that trains as a whole."""
        torch.manual_seed(0)
        return self.size.build_unet(self.device, self.latent).requires_grad_(True).train()

    @cached_property
    def pan(self) -> PersonalAdaptiveNetwork:
        return self.size.build_pan(self.frozen, self.device).train()

    @cached_property
    def policy_optimiser(self) -> torch.optim.Optimizer:
        return self._optimiser(self.policy)

    @cached_property
    def pan_optimiser(self) -> torch.optim.Optimizer:
        return self._optimiser(self.pan)

    @cached_property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What a predictor takes: one prompt, one user and one noise level, for all pictures."""
        config = self.size.unet
        z = torch.randn(self.pictures, config.get("in_channels", 4), self.latent, self.latent)
        context = torch.randn(1, self.size.tokens, config["cross_attention_dim"]).expand(self.pictures, -1, -1)
        t = torch.full((self.pictures,), 500)
        users = self.size.users(1).expand(self.pictures, -1)
        return tuple(x.contiguous().to(self.device) for x in (z, t, context, users))  # type: ignore[return-value]

    @cached_property
    def noise(self) -> Tensor:
        return torch.randn_like(self.inputs[0])

    def plain(self) -> None:
        z, t, context, _ = self.inputs
        with self._autocast():
            prediction = self.policy(z, t, context).sample.float()
        self._step(denoising_error(self.noise, prediction).mean(), self.policy, self.policy_optimiser)

    def dpo(self) -> None:
        gap = self._gap(predict_from_unet(self.policy, self.frozen))
        loss = pairwise_preference_loss(*gap.chunk(2), beta=2000.0).mean()
        self._step(loss, self.policy, self.policy_optimiser)

    def perfusion_naive(self) -> None:
        self._perfusion(self._predict_in_full)

    def perfusion(self) -> None:
        self._perfusion(predict_from_pan(self.pan, self.frozen))

    def _perfusion(self, predict: Predictor) -> None:
        gap = self._gap(predict)[None]  # one group
        picked = torch.zeros_like(gap, dtype=torch.bool)
        picked[:, 0] = True
        loss = group_preference_loss(gap, picked, torch.ones_like(picked), beta=2000.0).mean()
        self._step(loss, self.pan, self.pan_optimiser)

    def _predict_in_full(self, z: Tensor, t: Tensor, context: Tensor, users: Tensor) -> tuple[Tensor, Tensor]:
        """Policy and reference through diffusers' own forward, encoder and all."""
        with torch.no_grad():
            from_reference = self.frozen(z, t, context).sample
        extra = self.pan(z, t, context, self.pan.user_map(users))
        policy = self.frozen(
            z, t, context, down_block_additional_residuals=extra.skips, mid_block_additional_residual=extra.mid
        ).sample
        return policy, from_reference

    def _gap(self, predict: Predictor) -> Tensor:
        """How much worse the policy denoises each picture than its reference, (pictures,)."""
        with self._autocast():
            policy, from_reference = predict(*self.inputs)
        return reference_gap(
            denoising_error(self.noise, policy.float()), denoising_error(self.noise, from_reference.float())
        )

    def _step(self, loss: Tensor, module: nn.Module, optimiser: torch.optim.Optimizer) -> None:
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    def _optimiser(self, module: nn.Module) -> torch.optim.Optimizer:
        kind = torch.optim.SGD if self.stateless else torch.optim.AdamW
        return kind(module.parameters(), lr=1e-8, weight_decay=0.01)

    def _autocast(self) -> AbstractContextManager:
        kind = "cpu" if self.device == "meta" else self.device
        return torch.autocast(kind, self.dtype, enabled=self.dtype != torch.float32)


def peak_on_device(size: SizeName, name: str, latent: int | None, dtype: torch.dtype, pictures: int | None) -> int:
    """Most bytes that an accelerator's tensors take in two steps of an arm that is alone there."""
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    _two_steps(arms(size, latent, "cuda", dtype, pictures), name)
    return torch.cuda.max_memory_allocated() - before


def main() -> None:
    """Time the arms side by side, and measure each one's peak memory in a process of its own."""
    parser = build_parser("training", __doc__, "in a step; default 60 for twin, 4 for sd15", ARMS, PRECISIONS)
    options = parser.parse_args()
    dtype = PRECISIONS[options.dtype or ("fp32" if options.device == "cpu" else "bf16")]
    found = arms(options.size, options.latent, options.device, dtype, options.pictures)
    if options.peak is not None:
        if options.peak != "imports":
            _two_steps(found, options.peak)
        return
    if options.only != "memory":
        _time(options, found, dtype)
    if options.only != "time":
        peaks = _peaks(options, dtype)
        print("\nPeak memory: " + ", ".join(f"{name} {value / 2**30:.2f} GiB" for name, value in peaks.items()))
        record(f"training-memory-{options.size}", [], {}, peak_bytes=peaks, dtype=str(dtype), pictures=found.items)


def _time(options: argparse.Namespace, found: Arms, dtype: torch.dtype) -> None:
    latent = options.latent or SIZES[options.size].latent
    timings = measure(*found, rounds=options.rounds)
    optimiser = "SGD" if options.size == "sd15" and options.device == "cpu" else "AdamW"
    what = f"latent {latent}x{latent}, {str(dtype).split('.')[1]}, {found.items} pictures, {optimiser}"
    show(f"Training step, {options.size}, {what}", timings)
    ratio = {timing.arm: timing.ratio for timing in timings}
    figures = {"perfusion_over_plain": ratio["perfusion"], "perfusion_over_dpo": ratio["perfusion"] / ratio["dpo"]}
    # the twin's figures are for its own table: what the project promises is of Stable Diffusion's size
    record(
        f"training-{options.size}", timings, {"training": figures} if options.size == "sd15" else {}, latent=latent,
        dtype=str(dtype), optimiser=optimiser, pictures=found.items,
    )  # fmt: skip


def _peaks(options: argparse.Namespace, dtype: torch.dtype) -> dict[str, int]:
    """Peak bytes of each arm: on the device, or of a process of its own less what its imports take."""
    if options.device != "cpu":
        return {n: peak_on_device(options.size, n, options.latent, dtype, options.pictures) for n in ARMS}
    command = ["-m", "benchmarks.training", "--size", options.size, "--device", "cpu"]
    given = {"--latent": options.latent, "--pictures": options.pictures, "--dtype": options.dtype}
    command += [word for name, value in given.items() if value is not None for word in (name, str(value))]
    floor = peak_memory([*command, "--peak", "imports"])
    return {name: peak_memory([*command, "--peak", name]) - floor for name in ARMS}


def _two_steps(found: Arms, name: str) -> None:
    """Two, so that the optimiser's state is there when gradients are."""
    for _ in range(2):
        found.work[name]()


if __name__ == "__main__":
    main()
