"""The adaptive network learns, steers, is saved and loaded (Sec. 4.3.1); tests/peers holds it to diffusers' own."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from small_unet import inputs, small_unet

from perfusion.generation.noising import beta_at, error_weight, sample_timesteps, signal_to_noise
from perfusion.generation.objectives import clamp_losers, implicit_accuracy
from perfusion.generation.pan import PersonalAdaptiveNetwork, skip_channels
from perfusion.generation.split import decode, encode

CARDINALITIES = [4, 3, 9]


def test_stable_diffusion_has_twelve_encoder_blocks():
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)
    assert skip_channels(unet) == [320, 320, 320, 320, 640, 640, 640, 1280, 1280, 1280, 1280, 1280]


def test_every_parameter_moves_by_the_third_step():
    """Two zero layers in a row: output convolutions learn first, the user path last."""
    unet = small_unet(16).requires_grad_(False)  # at 8 the mid block has one token, whose attention learns nothing
    pan = PersonalAdaptiveNetwork.from_unet(unet, CARDINALITIES, embedding_dim=4, cross_layers=2, cross_norm=True)
    before = {name: value.detach().clone() for name, value in pan.named_parameters()}
    optimiser = torch.optim.AdamW(pan.parameters(), lr=1e-2, weight_decay=0.0)
    z, t, context = inputs(16)
    target = torch.randn(z.shape, generator=torch.Generator().manual_seed(4))
    users = torch.tensor([[1, 2, 8], [2, 1, 4], [3, 1, 5]])
    encoded = encode(unet, z, t, context)
    with_gradient = []
    for _ in range(3):
        optimiser.zero_grad()
        residuals = pan(z, t, context, pan.user_map(users))
        (decode(unet, encoded, residuals) - target).square().mean().backward()
        with_gradient.append({n for n, p in pan.named_parameters() if p.grad is not None and p.grad.abs().max() > 0})
        optimiser.step()
    assert all(name.startswith("leave") for name in with_gradient[0])
    assert {"enter.weight", "enter.bias"} <= with_gradient[1]
    assert "to_map.weight" not in with_gradient[1]
    still = [name for name, value in pan.named_parameters() if torch.equal(value, before[name])]
    assert not still


def test_an_open_entrance_says_nothing_at_first_and_learns_of_the_user_at_the_second_step():
    unet = small_unet(16).requires_grad_(False)
    pan = PersonalAdaptiveNetwork.from_unet(unet, CARDINALITIES, cross_norm=True, enter_gain=0.5)
    assert torch.equal(pan.enter.weight[..., 0, 0], 0.5 * torch.eye(len(pan.enter.bias)))
    z, t, context = inputs(16)
    users = torch.tensor([[1, 2, 8], [2, 1, 4], [3, 1, 5]])
    encoded = encode(unet, z, t, context)
    optimiser = torch.optim.SGD(pan.parameters(), lr=1e-2)
    target = torch.randn(z.shape, generator=torch.Generator().manual_seed(4))
    told = decode(unet, encoded, pan(z, t, context, pan.user_map(users)))
    assert torch.equal(told, decode(unet, encoded))
    (told - target).square().mean().backward()
    assert not pan.to_map.weight.grad.any()
    optimiser.step()
    (decode(unet, encoded, pan(z, t, context, pan.user_map(users))) - target).square().mean().backward()
    assert pan.to_map.weight.grad.any()
    assert pan.user.embedding.table.weight.grad.any()


def test_the_user_steers_once_trained_and_only_then():
    unet = small_unet()
    pan = PersonalAdaptiveNetwork.from_unet(unet, CARDINALITIES)
    for conv in (pan.enter, *pan.leave, pan.leave_mid):
        torch.nn.init.normal_(conv.weight, std=0.3)
    z, t, context = inputs(batch=2)
    z, t, context = z[:1].expand(2, -1, -1, -1), t[:1].expand(2), context[:1].expand(2, -1, -1)
    with torch.no_grad():
        one, other = decode(
            unet, encode(unet, z, t, context), pan(z, t, context, pan.user_map(torch.tensor([[1, 1, 1], [2, 2, 2]])))
        )
    assert (one - other).abs().max() > 1e-3


def test_unets_of_other_families_are_refused():
    with pytest.raises(NotImplementedError, match="addition_embed_type"):
        PersonalAdaptiveNetwork({**small_unet().config, "addition_embed_type": "text"}, CARDINALITIES)


def test_saved_and_loaded_it_says_the_same(tmp_path):
    unet = small_unet()
    pan = PersonalAdaptiveNetwork.from_unet(unet, CARDINALITIES, cross_norm=True, min_timestep=300)
    for parameter in pan.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    pan.save_pretrained(tmp_path)
    again = PersonalAdaptiveNetwork.from_pretrained(tmp_path)
    assert again.config.min_timestep == 300
    z, t, context = inputs()
    users = torch.tensor([[1, 2, 8], [0, 0, 0], [3, 1, 5]])
    assert torch.equal(pan(z, t, context, pan.user_map(users)).mid, again(z, t, context, again.user_map(users)).mid)


def test_noise_levels_and_weights():
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(prediction_type="sample", rescale_betas_zero_snr=True)
    t = torch.tensor([0, 500, 999])
    kept = scheduler.alphas_cumprod[t]
    assert torch.allclose(signal_to_noise(scheduler, t), kept / (1 - kept))
    assert signal_to_noise(scheduler, t)[-1] == 0.0
    assert beta_at(scheduler, t, 30.0, None, 0.15).tolist() == [30.0] * 3
    assert torch.allclose(beta_at(scheduler, t, 30.0, 0.05, 0.15)[[0, 2]], torch.tensor([30.0, 4.5]))
    assert error_weight(scheduler, t, 0.1)[0].item() == pytest.approx(10.0)
    drawn = sample_timesteps(2000, [(300, 400), (800, 1000)])
    assert ((drawn >= 300) & (drawn < 400) | (drawn >= 800) & (drawn < 1000)).all()
    assert 0.4 < (drawn < 400).float().mean() < 0.6


def test_clamped_losers_earn_nothing_more():
    gap = torch.tensor([[3.0, 3.0, 0.1]], requires_grad=True)
    clamped = clamp_losers(gap, torch.tensor([[True, False, False]]), torch.tensor([0.5]))
    assert clamped.tolist() == [[3.0, 0.5, pytest.approx(0.1)]]
    clamped.sum().backward()
    assert gap.grad is not None
    assert gap.grad.tolist() == [[1.0, 0.0, 1.0]]


def test_implicit_accuracy_counts_ties_half():
    picked, valid = torch.tensor([[True, False, False, False]]), torch.tensor([[True, True, True, False]])
    assert implicit_accuracy(torch.tensor([[0.0, 1.0, -1.0, 9.0]]), picked, valid) == 0.5
    assert implicit_accuracy(torch.zeros(1, 4), picked, valid) == 0.5
    assert implicit_accuracy(torch.tensor([[-2.0, 1.0, -1.0, 9.0]]), picked, valid) == 1.0
