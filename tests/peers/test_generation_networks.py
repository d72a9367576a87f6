"""PAN and the adapters against diffusers' own networks: U-Net, ControlNet, DDIM."""

import pytest
import torch
from diffusers import ControlNetModel, DDIMScheduler
from small_unet import inputs, small_unet

from perfusion.generation.lora import LowRankLinear, add_lora, merge_lora, without_lora
from perfusion.generation.pan import PersonalAdaptiveNetwork
from perfusion.generation.split import Residuals, decode, encode
from perfusion.generation.spo import ddim_step, log_density

CARDINALITIES = [4, 3, 9]
COPIED = ("conv_in.", "time_embedding.", "down_blocks.", "mid_block.")


@pytest.mark.parametrize("size", [8, 12])  # 12 is not divisible by 8: sizes are forced on the way up
def test_the_two_halves_are_the_whole_forward_and_backward(size):
    unet = small_unet(size)
    z, t, context = inputs(size)
    whole = unet(z, t, context).sample
    halves = decode(unet, encode(unet, z, t, context))
    assert torch.equal(halves, whole)
    parameters = list(unet.parameters())
    expected = torch.autograd.grad(whole.square().sum(), parameters)
    found = torch.autograd.grad(halves.square().sum(), parameters)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_residuals_are_what_diffusers_adds():
    unet = small_unet()
    z, t, context = inputs()
    encoded = encode(unet, z, t, context)
    generator = torch.Generator().manual_seed(2)
    extra = Residuals(
        tuple(torch.randn(skip.shape, generator=generator) for skip in encoded.skips),
        torch.randn(encoded.mid.shape, generator=generator),
    )
    expected = unet(
        z, t, context, down_block_additional_residuals=extra.skips, mid_block_additional_residual=extra.mid
    ).sample
    assert torch.equal(decode(unet, encoded, extra), expected)


def test_at_initialisation_the_output_is_the_plain_unets_bit_for_bit():
    unet = small_unet()
    pan = PersonalAdaptiveNetwork.from_unet(unet, CARDINALITIES, embedding_dim=4, cross_layers=2)
    z, t, context = inputs()
    users = torch.tensor([[1, 2, 8], [0, 0, 0], [3, 1, 5]])
    residuals = pan(z, t, context, pan.user_map(users))
    assert len(residuals.skips) == 12
    assert torch.equal(decode(unet, encode(unet, z, t, context), residuals), unet(z, t, context).sample)


def test_the_copy_is_the_part_of_the_unet_that_controlnet_copies():
    unet = small_unet()
    pan, control = PersonalAdaptiveNetwork.from_unet(unet, CARDINALITIES), ControlNetModel.from_unet(unet)
    ours = {key: value for key, value in pan.state_dict().items() if key.startswith(COPIED)}
    theirs = {key: value for key, value in control.state_dict().items() if key.startswith(COPIED)}
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_beyond_the_copy_pan_and_controlnet_differ_in_their_way_in_alone():
    """Out: the same zero 1x1 convolutions. In: a user's map before conv_in, where ControlNet has a picture's after."""
    unet = small_unet()
    pan, control = PersonalAdaptiveNetwork.from_unet(unet, CARDINALITIES), ControlNetModel.from_unet(unet)
    ways_out = {"controlnet_down_blocks": "leave", "controlnet_mid_block": "leave_mid"}
    leave = {
        key.replace(theirs, name): value
        for key, value in control.state_dict().items() for theirs, name in ways_out.items() if key.startswith(theirs)
    }  # fmt: skip
    ours = {key: value for key, value in pan.state_dict().items() if key.startswith("leave")}
    assert ours.keys() == leave.keys()
    assert all(torch.equal(ours[key], leave[key]) for key in ours)
    assert all(not value.any() for value in ours.values())
    rest = {key.split(".")[0] for key in pan.state_dict() if not key.startswith((*COPIED, "leave"))}
    assert rest == {"user", "to_map", "enter"}
    rest = {key.split(".")[0] for key in control.state_dict() if not key.startswith((*COPIED, *ways_out))}
    assert rest == {"controlnet_cond_embedding"}


def test_adapters_change_nothing_at_first():
    unet, plain = small_unet(), small_unet()
    add_lora(unet, 4)
    args = inputs()
    assert torch.equal(unet(*args).sample, plain(*args).sample)
    trained = {name for name, parameter in unet.named_parameters() if parameter.requires_grad}
    attentions = sum(name.endswith(".to_q") for name, _ in plain.named_modules())
    assert len(trained) == 2 * 4 * attentions
    assert all(name.endswith(("down.weight", "up.weight")) for name in trained)
    merge_lora(unet)
    assert not any(isinstance(module, LowRankLinear) for module in unet.modules())
    assert all(torch.equal(value, unet.state_dict()[key]) for key, value in plain.state_dict().items())


def test_merged_adapters_say_what_they_said_and_silenced_ones_nothing():
    unet, plain = small_unet(), small_unet()
    add_lora(unet, 4)
    for module in unet.modules():
        if isinstance(module, LowRankLinear):
            torch.nn.init.normal_(module.up.weight, std=0.3)
    args = inputs()
    said = unet(*args).sample
    assert (said - plain(*args).sample).abs().max() > 1e-3
    with without_lora(unet):
        assert torch.equal(unet(*args).sample, plain(*args).sample)
    assert torch.equal(unet(*args).sample, said)
    merge_lora(unet)
    assert torch.allclose(unet(*args).sample, said, atol=1e-5)
    assert unet.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("eta", [0.3, 0.98])
def test_a_step_taken_apart_is_the_schedulers(kind, eta):
    scheduler = DDIMScheduler(
        prediction_type=kind, rescale_betas_zero_snr=kind != "epsilon", timestep_spacing="trailing", clip_sample=False
    )
    scheduler.set_timesteps(10)
    generator = torch.Generator().manual_seed(3)
    prediction, z, fresh = torch.randn(3, 2, 4, 8, 8, generator=generator)
    for t in scheduler.timesteps.tolist():
        theirs = scheduler.step(prediction, t, z, eta=eta, variance_noise=fresh)
        clean, mean, std = ddim_step(scheduler, prediction, t, z, eta)
        assert torch.allclose(clean, theirs.pred_original_sample, rtol=1e-4, atol=1e-5)
        assert torch.allclose(mean + std * fresh, theirs.prev_sample, rtol=1e-4, atol=1e-5)
    assert std == 0.0  # the last step leads to the clean latent


def test_the_density_is_torchs():
    x, mean = torch.randn(2, 5, 4, 8, 8, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    theirs = torch.distributions.Normal(mean, 0.7).log_prob(x).mean(dim=(1, 2, 3))
    assert torch.allclose(log_density(x, mean, 0.7), theirs)
