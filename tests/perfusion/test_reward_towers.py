"""The towers as the reward model runs them, against transformers' own forward pass: outputs, gradients, work."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPConfig, CLIPModel

from perfusion.config import ClipConfig
from perfusion.nn.injection import make_injectable
from perfusion.reward import twin
from perfusion.reward.frozen import embed_pictures, embed_prompts, start_fits, start_pictures
from perfusion.reward.towers import picture_embeds, picture_start, prompt_embeds

PROMPTS = ["dress, red", "coat", "long sleeves, blue, v-neck"]


def clip(eos: int, act: str = "gelu") -> CLIPModel:
    """Towers of unequal size; eos 2 is the legacy mark of CLIP ViT-H-14 and PickScore."""
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "hidden_act": act}
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "vocab_size": 64, "pad_token_id": 1}
    vision = {"hidden_size": 40, "intermediate_size": 80, "num_hidden_layers": 2, "image_size": 28, "patch_size": 14}
    model = CLIPModel(
        CLIPConfig(
            text_config={**sizes, **text, "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": eos},
            vision_config={**sizes, **vision},
            projection_dim=24,
        )
    ).eval()
    for part in model.modules():  # biases and norms that do something
        if getattr(part, "bias", None) is not None:
            torch.nn.init.normal_(part.bias, std=0.3)
    return model


def tokens(eos: int) -> dict[str, torch.Tensor]:
    """Two prompts, one padded; the end token is the largest id where `eos` is the legacy mark."""
    end = 63 if eos == 2 else eos
    ids = torch.tensor([[0, 9, 8, 7, end], [0, 5, end, 1, 1]])
    return {"input_ids": ids, "attention_mask": (ids != 1).long()}


@pytest.mark.parametrize(("eos", "act"), [(2, "gelu"), (3, "quick_gelu")])
def test_without_users_embeddings_are_those_of_transformers(eos: int, act: str):
    model = clip(eos, act)
    pictures = torch.randn(5, 3, 28, 28)
    image, text = picture_embeds(model, picture_start(model, pictures)), prompt_embeds(model, **tokens(eos))
    torch.testing.assert_close(image, model.get_image_features(pictures).pooler_output, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(text, model.get_text_features(**tokens(eos)).pooler_output, rtol=1e-5, atol=1e-6)


def test_gradients_of_all_weights_are_those_of_transformers():
    """PickScore tunes the whole backbone."""
    model = clip(3)
    pictures = torch.randn(5, 3, 28, 28)

    def gradients(image: torch.Tensor, text: torch.Tensor) -> dict[str, torch.Tensor]:
        model.zero_grad()
        (image.square().sum() + text.pow(3).sum()).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain = gradients(
        model.get_image_features(pictures).pooler_output, model.get_text_features(**tokens(3)).pooler_output
    )
    ours = gradients(picture_embeds(model, picture_start(model, pictures)), prompt_embeds(model, **tokens(3)))
    assert set(ours) == set(plain)
    for name, gradient in plain.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("tower", ["text", "vision"])
def test_knowledge_and_its_gradient_are_those_of_the_injected_tower(tower: str):
    model = clip(3)
    make_injectable(model.text_model.encoder.layers)
    make_injectable(model.vision_model.encoder.layers)
    rows, layers, width = (2, 3, 32) if tower == "text" else (5, 2, 40)
    pictures, knowledge = torch.randn(5, 3, 28, 28), torch.randn(rows, layers, 2, width, requires_grad=True)
    if tower == "text":
        plain = model.get_text_features(**tokens(3), knowledge=knowledge).pooler_output
        ours = prompt_embeds(model, **tokens(3), knowledge=knowledge)
    else:
        plain = model.get_image_features(pictures, knowledge=knowledge).pooler_output
        ours = picture_embeds(model, picture_start(model, pictures), knowledge)
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)
    (expected,) = torch.autograd.grad(plain.square().sum(), knowledge)
    (found,) = torch.autograd.grad(ours.square().sum(), knowledge)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert found.abs().amax(dim=(0, 2, 3)).min() > 0  # every layer is told


def test_no_knowledge_is_knowledge_of_zero_bit_for_bit():
    model = clip(3)
    make_injectable(model.vision_model.encoder.layers)
    start = picture_start(model, torch.randn(5, 3, 28, 28))
    assert torch.equal(picture_embeds(model, start), picture_embeds(model, start, torch.zeros(5, 2, 2, 40)))


def test_kept_results_are_those_computed_anew():
    torch.manual_seed(0)
    backbone = twin(PROMPTS, 16, ClipConfig(width=32, layers=2, heads=4, patch=8, projection=24))
    pixels = torch.randint(256, (300, 3, 16, 16), dtype=torch.uint8)  # more than a block
    start = picture_start(backbone.model, backbone.prepare(pixels))
    torch.testing.assert_close(start_pictures(backbone, pixels), start, rtol=1e-5, atol=1e-6)
    embedded = picture_embeds(backbone.model, start)
    torch.testing.assert_close(embed_pictures(backbone, pixels), embedded, rtol=1e-4, atol=1e-5)
    prompts = embed_prompts(backbone, [*PROMPTS, *PROMPTS])
    assert set(prompts) == set(PROMPTS)
    alone = prompt_embeds(backbone.model, **backbone.tokens(PROMPTS[:1]))[0]
    torch.testing.assert_close(prompts[PROMPTS[0]], alone, rtol=1e-4, atol=1e-6)
    assert len(embed_prompts(backbone, PROMPTS, most=2)) == 2
    assert start_fits(backbone, pixels)  # 5 tokens of 32 floats, 768 bytes a picture
    wide = twin(PROMPTS, 16, ClipConfig(width=64, layers=1, heads=4, patch=8, projection=24))
    assert not start_fits(wide, pixels)
    assert start_pictures(backbone, pixels[:0]).shape == (0, 5, 32)


@pytest.mark.parametrize(("size", "share"), [("twin", 0.793), ("clip_h", 0.974)])
def test_the_last_layer_computes_one_token(size: str, share: float):
    """Multiplications of a picture: the last of 3 (or 32) layers keeps keys and values only."""
    if size == "twin":
        config = {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 3, "num_attention_heads": 4}
        side, patch = 48, 16
    else:
        config = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16}
        side, patch = 224, 14
    text = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision = {**config, "image_size": side, "patch_size": patch}
    with torch.device("meta"):
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision))
        pictures = torch.randn(1, 3, side, side)
    plain, ours = FlopCounterMode(display=False), FlopCounterMode(display=False)
    with plain:
        model.get_image_features(pictures)
    with ours:
        picture_embeds(model, picture_start(model, pictures))
    assert ours.get_total_flops() / plain.get_total_flops() == pytest.approx(share, abs=0.001)
