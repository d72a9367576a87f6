"""Fast paths of sampling: what is exact equals its plain form; what is approximate borrows what it says, no more."""

from collections import Counter

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from tiny_pipeline import A, B, build, draw, seeds
from torch import nn

from perfusion.errors import ConfigError
from perfusion.generation.denoiser import Denoiser, Shortcuts, remembered_projections
from perfusion.generation.samplers import SAMPLERS, build_sampler
from perfusion.generation.split import Encoded, decode, encode, stack

STEPS = 6
#: diffusers' multistep solvers hand torch tensors to numpy
numpy_copies = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def runs(pipe, **options) -> Counter:
    """How often each part ran in one personal call of six steps, all of them with the adaptive network."""
    counts: Counter = Counter()
    pipe.pan.register_to_config(min_timestep=0)
    parts = {
        "finest": pipe.unet.down_blocks[0], "encoder": pipe.unet.mid_block, "decoder": pipe.unet.up_blocks[0],
        "output": pipe.unet.conv_out, "pan": pipe.pan.mid_block,
    }  # fmt: skip
    hooks = [part.register_forward_hook(lambda *_, name=name: counts.update([name])) for name, part in parts.items()]
    draw(pipe, "dress", A, num_inference_steps=STEPS, **options)
    for hook in hooks:
        hook.remove()
    return counts


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"finest": 6, "encoder": 6, "decoder": 6, "output": 6, "pan": 6}),
        ({"user_scale": 3.0}, {"finest": 6, "encoder": 6, "decoder": 6, "output": 6, "pan": 6}),
        ({"guidance_scale": 1.0, "user_scale": 1.0}, {"finest": 6, "encoder": 6, "decoder": 6, "output": 6, "pan": 6}),
        ({"unconditional": "personal"}, {"finest": 6, "encoder": 6, "decoder": 6, "output": 6, "pan": 12}),
        ({"pan_every": 3}, {"finest": 6, "encoder": 6, "decoder": 6, "output": 6, "pan": 2}),
        ({"encoder_every": 2}, {"finest": 3, "encoder": 3, "decoder": 6, "output": 6, "pan": 3}),
        ({"deep_every": 2}, {"finest": 6, "encoder": 3, "decoder": 3, "output": 6, "pan": 3}),
        ({"deep_every": 2, "pan_every": 3}, {"finest": 6, "encoder": 3, "decoder": 3, "output": 6, "pan": 2}),
    ],
)  # fmt: skip
def test_each_part_runs_as_often_as_it_must(options, expected):
    assert runs(build(trained=True), **options) == expected


@pytest.mark.parametrize("plain_attention", [False, True])
def test_remembered_projections_change_no_bit_and_are_computed_once(plain_attention):
    pipe = build(trained=True)
    if plain_attention:
        for network in (pipe.unet, pipe.pan):
            for part in network.modules():
                if hasattr(part, "set_processor"):
                    part.set_processor(AttnProcessor())
    attention = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    before = dict(vars(attention.to_k))
    seen = []
    hook = attention.to_k.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    z = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        none, text = torch.randn(2, 8, 16), torch.randn(2, 8, 16)
        user_map = pipe.pan.user_map(torch.stack([A, B]))
        plain = [Denoiser(pipe.unet, pipe.pan, none, text, user_map, 2.0, 4.0)(z, t) for t in (900, 700, 100)]
        once = Denoiser(pipe.unet, pipe.pan, none, text, user_map, 2.0, 4.0)
        weights = Counter()
        linear = nn.functional.linear
        with once.remembering(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(nn.functional, "linear", lambda x, w, b=None: (weights.update([id(w)]), linear(x, w, b))[1])
            found = [once(z, t) for t in (900, 700, 100)]
    hook.remove()
    assert all(torch.equal(a, b) for a, b in zip(plain, found, strict=True))
    assert weights[id(attention.to_k.weight)] == 1
    assert weights[id(attention.to_q.weight)] == 3
    assert dict(vars(attention.to_k)).keys() == before.keys()


def test_other_contexts_are_projected_as_ever():
    pipe = build(trained=True)
    z, known, other = torch.randn(1, 4, 4, 4), torch.randn(1, 8, 16), torch.randn(1, 8, 16)
    with torch.no_grad():
        expected = [pipe.unet(z, 500, context).sample for context in (known, other)]
        with remembered_projections([pipe.unet], [known]):
            for _ in range(2):
                found = [pipe.unet(z, 500, context).sample for context in (known, other)]
                assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
            with pytest.raises(RuntimeError):
                pipe.unet(z, 500, torch.randn(1, 8, 3))
        pipe.unet(z, 500, other)


def test_one_call_for_several_users_equals_calls_for_each():
    pipe = build(trained=True)
    together = draw(pipe, "dress", torch.stack([A, B]), (1, 2, 3, 4))
    assert torch.allclose(together[:2], draw(pipe, "dress", A, (1, 2)), atol=1e-5)
    assert torch.allclose(together[2:], draw(pipe, "dress", B, (3, 4)), atol=1e-5)


def test_the_personal_unconditional_half_is_guidance_over_the_prompt_alone():
    """e0(user) + g (user - e0(user)), both halves from plain forwards with the adaptive network's residuals."""
    pipe = build(trained=True)
    z, t = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0)), 700
    none, text = torch.randn(2, 8, 16), torch.randn(2, 8, 16)
    with torch.no_grad():
        user_map = pipe.pan.user_map(torch.stack([A, B]))
        halves = []
        for context in (none, text):
            extra = pipe.pan(z, t, context, user_map)
            halves.append(pipe.unet(
                z, t, context, down_block_additional_residuals=extra.skips, mid_block_additional_residual=extra.mid
            ).sample)  # fmt: skip
        for w in (0.0, 2.0, 5.0):
            found = Denoiser(pipe.unet, pipe.pan, none, text, user_map, 2.0, w, unconditional="personal")(z, t)
            assert torch.allclose(found, halves[0] + 2.0 * (halves[1] - halves[0]), atol=1e-5)


@pytest.mark.parametrize("options", [{"pan_every": 3}, {"encoder_every": 3}, {"deep_every": 3}])
def test_shortcuts_are_exact_at_the_steps_that_borrow_nothing(options):
    """The first step, and with steps that see one input over and over every step."""
    pipe = build(trained=True)
    z = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    none, text = torch.randn(2, 8, 16), torch.randn(2, 8, 16)
    with torch.no_grad():
        user_map = pipe.pan.user_map(torch.stack([A, B]))

        def denoiser(**more: int) -> Denoiser:
            return Denoiser(pipe.unet, pipe.pan, none, text, user_map, 2.0, 2.0, shortcuts=Shortcuts(**more))

        short = denoiser(**options)
        for _ in range(4):
            assert torch.allclose(short(z, 700), denoiser()(z, 700), atol=1e-5)
        moved = z + 0.5 * torch.randn_like(z)
        assert torch.equal(denoiser(**options)(moved, 700), denoiser()(moved, 700))
        assert not torch.allclose(short(moved, 650), denoiser()(moved, 650), atol=1e-4)  # here it borrows


@numpy_copies
@pytest.mark.parametrize("options", [{"pan_every": 2}, {"encoder_every": 2}, {"deep_every": 2}, {"sampler": "dpm"}])
def test_a_silent_network_stays_silent_under_every_shortcut(options):
    pipe = build(trained=False)
    pipe.pan.register_to_config(min_timestep=0)  # where it falls silent on its way, a step that borrows starts anew
    assert torch.equal(draw(pipe, "dress", A, **options), draw(pipe, "dress", **options))


def test_a_network_that_falls_silent_is_not_asked_for_what_was_borrowed():
    """min_timestep 300 lies between the steps: the prompt's own prediction is then new, and computed whole."""
    pipe = build(trained=True)
    pictures = draw(pipe, "dress", A, num_inference_steps=STEPS, deep_every=6)
    assert pictures.isfinite().all()
    assert not torch.equal(pictures, draw(pipe, "dress", num_inference_steps=STEPS, deep_every=6))


def test_shortcuts_that_make_no_sense_are_refused():
    pipe = build(trained=True)
    with pytest.raises(ConfigError, match="pan_every is 0"):
        pipe("dress", A, pan_every=0)
    with pytest.raises(ConfigError, match="unconditional 'both': known are blind, personal"):
        pipe("dress", A, unconditional="both")
    with pytest.raises(ConfigError, match="encoder_every 2 and deep_every 3"):
        pipe("dress", A, encoder_every=2, deep_every=3)


def test_stacked_halves_are_one_batch():
    pipe = build(trained=True)
    z, t, context = torch.randn(3, 4, 4, 4), 500, torch.randn(3, 8, 16)
    with torch.no_grad():
        whole = encode(pipe.unet, z, t, context)
        again: Encoded = stack([whole.rows(slice(0, 1)), whole.rows(slice(1, 3))])
        assert torch.equal(decode(pipe.unet, again), decode(pipe.unet, whole))


@numpy_copies
@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_every_sampler_takes_clean_predictions_from_pure_noise(name):
    """A denoiser that knows the picture: whatever the solver, its last state is the picture."""
    scheduler = build_sampler(name, build(trained=False).scheduler.config)
    scheduler.set_timesteps(8)
    picture = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    z = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    for t in scheduler.timesteps:
        z = scheduler.step(picture, t, z, return_dict=False)[0]
    assert scheduler.timesteps[0] == 999
    assert torch.allclose(z, picture, atol=1e-4)


@numpy_copies
@pytest.mark.parametrize("name", ["dpm", "unipc"])
def test_a_sampler_of_few_steps_is_nearer_the_exact_path_than_ddim(name):
    """Pictures N(m, s^2): the best denoiser is linear and the path from noise x ends exactly at m + s x."""
    own = build(trained=False).scheduler
    m, s = 0.3, 0.5

    def end(scheduler) -> torch.Tensor:
        scheduler.set_timesteps(20)
        x = z = torch.linspace(-2, 2, 9).reshape(1, 1, 3, 3)
        for t in scheduler.timesteps:
            a = own.alphas_cumprod[t] ** 0.5
            clean = m + s**2 * a * (z - a * m) / (s**2 * a**2 + 1 - a**2)
            z = scheduler.step(clean, t, z, return_dict=False)[0]
        return (z - m - s * x).abs().max()

    assert end(build_sampler(name, own.config)) < 0.5 * end(own)


def test_unfit_samplers_are_refused():
    pipe = build(trained=True)
    with pytest.raises(ConfigError, match="sampler 'euler': known are dpm"):
        pipe("dress", A, sampler="euler")
    with pytest.raises(ConfigError, match="pure noise"):
        build_sampler("dpm", {**pipe.scheduler.config, "prediction_type": "epsilon"})


def test_half_precision_starts_from_the_same_noise_and_draws_nearly_the_same():
    pipe = build(trained=True)
    exact = draw(pipe, "dress", A)
    half = draw(pipe.to(torch.bfloat16), "dress", A)
    assert half.dtype == torch.float32
    assert (half - exact).abs().mean() < 0.02


def test_latents_are_what_the_codec_reads():
    pipe = build(trained=True)
    latents = pipe("dress", A, num_images_per_prompt=2, generator=seeds(1, 2), output_type="latent").images
    with torch.no_grad():
        pictures = (pipe.vae.decode(latents).sample / 2 + 0.5).clamp(0, 1)
    assert torch.equal(pictures, draw(pipe, "dress", A))
