"""What drawing a picture costs: Stable Diffusion with guidance as diffusers computes it, and PerFusion beside it.

Every arm draws as many pictures, in as many steps, with the same guidance, on the same networks, up to the latent (the
codec's share is the same for all):

    plain       diffusers' StableDiffusionPipeline: one U-Net pass of twice the pictures a step
    blind       this project's pipeline without a user: the same numbers
    full        PerFusion with the adaptive network on both halves of guidance, as ControlNet does it
    exact       PerFusion: "unconditional" is no prompt and no user, so that the network runs on one half, and the
                frozen encoder serves prompt and user; the user weighs as much as the prompt
    apart       the same with a weight of its own for the user: a third prediction from the decoder
    cached      `exact` with the shortcuts of CACHED, whose cost in quality is for benchmarks.inference_quality to say
    student     a distilled student: one pass does all (perfusion.generation.distil); its time does not hang on weights

    python -m benchmarks.inference --size sd15 --rounds 5
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import OUT, measure, peak_memory, record, show
from benchmarks.sizes import SIZES, SizeName, build_parser
from perfusion.generation.denoiser import Denoiser, Shortcuts
from perfusion.generation.pipeline import PerFusionPipeline
from perfusion.generation.text import build_tokenizer

from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline  # isort: skip
from transformers import CLIPTextConfig, CLIPTextModel  # isort: skip

__all__ = ["ARMS", "BASELINE", "CACHED", "Arms", "arms", "flops_over_plain", "main", "peak_on_device"]

BASELINE = "plain"
GUIDANCE = 7.5
#: the cheapest of benchmarks.inference_quality that costs no score anything
CACHED: dict[str, Any] = {"deep_every": 2}
#: arm -> arguments of the pipeline's call
ARMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "blind": {},
    "full": {"unconditional": "personal"},
    "exact": {},
    "apart": {"user_scale": 5.0},
    "cached": CACHED,
    "student": {"guidance_scale": 1.0, "user_scale": 1.0},
}
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_PROMPT = "dress, v-neck, long sleeves"


class Arms(NamedTuple):
    """What `benchmarks.common.measure` takes: name -> one round of its work, the baseline, pictures a round."""

    work: Mapping[str, Callable[[], object]]
    baseline: str
    items: int


def arms(
    size: SizeName, latent: int | None = None, device: str = "cpu", dtype: torch.dtype = torch.float32,
    pictures: int | None = None, steps: int | None = None,
) -> Arms:  # fmt: skip
    """The arms, on networks of random weights that they share.

    Args:
        size: of the networks.
        latent: side of the latents; None takes the size's own.
        device, dtype: of the networks.
        pictures: a call draws; None is 5, the pipeline's default, or 1 of Stable Diffusion's size on a processor.
        steps: of a picture; None is 20, or 6 of Stable Diffusion's size on a processor.
    """
    slow = size == "sd15" and device == "cpu"
    count, taken = pictures or (1 if slow else 5), steps or (6 if slow else 20)
    pipe = build_pipeline(size, latent, device, dtype, codec=False)
    common = {"num_images_per_prompt": count, "num_inference_steps": taken, "output_type": "latent"}
    return Arms({name: partial(arm_of(pipe, name), **common) for name in ARMS}, BASELINE, count)


def build_pipeline(
    size: SizeName, latent: int | None, device: str, dtype: torch.dtype, codec: bool, personal: bool = True
) -> PerFusionPipeline:
    """A pipeline of random weights. Its adaptive network has something to say.

    Args:
        codec: with Stable Diffusion's AutoencoderKL; it is left out where pictures end as latents.
        personal: with an adaptive network.
    """
    shape = SIZES[size]
    with _default_dtype(dtype):
        unet = shape.build_unet(device, latent)
        pan = shape.build_pan(unet, device) if personal else None
        width = unet.config.cross_attention_dim
        layers, heads = (12, 12) if size == "sd15" else (2, 4)
        with torch.device(device):
            text = CLIPTextModel(
                CLIPTextConfig(
                    vocab_size=49408, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
                    num_attention_heads=heads, max_position_embeddings=shape.tokens, bos_token_id=1, eos_token_id=2,
                    pad_token_id=0,
                )
            )  # fmt: skip
            vae = AutoencoderKL(
                block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2, latent_channels=4,
            ) if codec else None  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip
    pipe = PerFusionPipeline(
        vae, text, build_tokenizer(_PROMPT.split(", "), shape.tokens), unet, scheduler, pan,
        guidance_scale=GUIDANCE, user_scale=GUIDANCE,
    )  # fmt: skip
    for part in (unet, pan, text, vae):
        if part is not None:
            part.requires_grad_(False).eval()
    return pipe


def arm_of(pipe: PerFusionPipeline, name: str) -> Callable[..., object]:
    """An arm's call, which takes what both pipelines call alike (num_inference_steps, output_type ...)."""
    if name == "plain":
        parts = {key: part for key, part in pipe.components.items() if key != "pan"}
        plain = StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
        plain.set_progress_bar_config(disable=True)
        side = 8 * pipe.unet.config.sample_size
        return partial(plain, _PROMPT, height=side, width=side, guidance_scale=GUIDANCE)
    user = None if name == "blind" else torch.ones(len(pipe.pan.config.cardinalities), dtype=torch.long)
    return partial(pipe, _PROMPT, user, **ARMS[name])


def flops_over_plain(name: str, options: Mapping[str, Any], steps: int, size: SizeName = "sd15") -> float:
    """FLOPs of an arm's U-Net and adaptive network, over those of a U-Net pass of twice the pictures, as many steps.

    Args:
        name: "student", "blind" and "plain" are what they say; any other is served with a user.
        options: arguments of the pipeline's call.
        steps: of a picture.
    """
    if name == "plain":
        return 1.0
    unet, pan, z, context, plain = _counted_plain(size)
    call = {**ARMS.get(name, {}), **options}
    denoise = Denoiser(
        unet, pan, context, context, None if name == "blind" else torch.empty_like(z),
        call.get("guidance_scale", GUIDANCE), call.get("user_scale", GUIDANCE), call.get("unconditional", "blind"),
        Shortcuts(**{key: value for key, value in call.items() if key in Shortcuts.__dataclass_fields__}),
    )  # fmt: skip
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter, denoise.remembering():
        for step in range(steps):
            denoise(z, 999 - 1000 * step // steps)
    return counter.get_total_flops() / (steps * plain)


@cache
def _counted_plain(size: SizeName) -> tuple[Any, Any, Tensor, Tensor, int]:
    """U-Net, adaptive network, latents and condition of a picture, which hold no memory; FLOPs of a plain step."""
    shape = SIZES[size]
    unet = shape.build_unet("meta")
    z = torch.empty(1, unet.config.in_channels, shape.latent, shape.latent, device="meta")
    context = torch.empty(1, shape.tokens, unet.config.cross_attention_dim, device="meta")
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        unet(torch.cat([z, z]), 500, torch.cat([context, context]))
    return unet, shape.build_pan(unet, "meta"), z, context, counter.get_total_flops()


def peak_on_device(size: SizeName, name: str, latent: int | None, dtype: torch.dtype, pictures: int) -> int:
    """Most bytes that an accelerator's tensors take while an arm draws whole pictures, codec and all, in two steps."""
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    pipe = build_pipeline(size, latent, "cuda", dtype, codec=True, personal=name not in ("plain", "blind"))
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    arm_of(pipe, name)(num_images_per_prompt=pictures, num_inference_steps=2, output_type="pt")
    return torch.cuda.max_memory_allocated() - before


def main() -> None:
    parser = build_parser("inference", __doc__, "drawn by a call", ARMS, PRECISIONS)
    parser.add_argument("--steps", type=int, help="of a picture")
    parser.add_argument("--arms", nargs="+", choices=ARMS, help="these beside plain; default: all")
    options = parser.parse_args()
    if options.peak is not None:
        _draw_once(options)
        return
    if options.only != "memory":
        _time(options)
    if options.only != "time" and options.size != "twin":  # whose codec is not a neural network
        _weigh(options)
    print(f"\nkept in {OUT}", file=sys.stderr)


def _time(options: argparse.Namespace) -> None:
    dtype = PRECISIONS[options.dtype or ("fp32" if options.device == "cpu" else "bf16")]
    found = arms(options.size, options.latent, options.device, dtype, options.pictures, options.steps)
    chosen = {name: run for name, run in found.work.items() if name in (BASELINE, *(options.arms or ARMS))}
    timings = measure(chosen, BASELINE, found.items, rounds=options.rounds)
    latent = options.latent or SIZES[options.size].latent
    show(f"Drawing, {options.size}, latent {latent}x{latent}, {found.items} pictures, {str(dtype)[6:]}", timings)
    counted = {name: flops_over_plain(name, {}, 6, options.size) for name in chosen}
    print("\nFLOPs over plain: " + ", ".join(f"{name} {value:.3f}" for name, value in counted.items()))
    # the twin's figures are for its own table: what the project promises is of Stable Diffusion's size
    headlines = {f"{t.arm}_over_plain": t.ratio for t in timings if t.arm in ("exact", "cached")}
    record(
        f"inference-{options.size}", timings, {"inference": headlines} if options.size == "sd15" else {},
        flops_over_plain=counted, cached=CACHED, latent=latent,
    )  # fmt: skip


def _weigh(options: argparse.Namespace) -> None:
    peaks = _peaks(options)
    ratio = peaks["exact"] / peaks["plain"]
    print("\nPeak memory: " + ", ".join(f"{name} {value / 2**30:.2f} GiB" for name, value in peaks.items()))
    record(
        f"inference-memory-{options.size}", [], {"memory": {"perfusion_over_plain": ratio}}, peak_bytes=peaks,
        pictures=options.pictures or 5,
    )  # fmt: skip


def _peaks(options: argparse.Namespace) -> dict[str, int]:
    """Peak bytes of the arms in half precision: on the device, or of a process less what its imports take."""
    names = ("plain", "full", "exact", "student")
    if options.device != "cpu":
        return {n: peak_on_device(options.size, n, options.latent, torch.float16, options.pictures or 5) for n in names}
    command = ["-m", "benchmarks.inference", "--size", options.size, "--dtype", "bf16"]
    command += ["--pictures", str(options.pictures or 5)]  # the pipeline's own number
    command += [] if options.latent is None else ["--latent", str(options.latent)]
    floor = peak_memory([*command, "--peak", "imports"])
    return {name: peak_memory([*command, "--peak", name]) - floor for name in names}


def _draw_once(options: argparse.Namespace) -> None:
    """One whole picture by one arm in this process, for `peak_memory`."""
    if options.peak == "imports":
        return
    personal = options.peak not in ("plain", "blind")
    pipe = build_pipeline(options.size, options.latent, "cpu", PRECISIONS[options.dtype], codec=True, personal=personal)
    arm_of(pipe, options.peak)(num_images_per_prompt=options.pictures, num_inference_steps=1, output_type="pt")


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


if __name__ == "__main__":
    main()
