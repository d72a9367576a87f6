"""Injection into CLIP towers: nothing changes without knowledge, and knowledge arrives where Eq. 5 says."""

import copy

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from perfusion.errors import ConfigError
from perfusion.nn.injection import PersonalEncoderLayer, make_injectable

TWIN = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
# The shape of PickScore (ViT-H/14: towers of unequal width and depth, gelu, a legacy end token), divided by 32.
REAL_TEXT = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2}
REAL_VISION = {"hidden_size": 40, "intermediate_size": 160, "num_hidden_layers": 4, "num_attention_heads": 2}


def clip(text: dict, vision: dict, act: str, eos: int) -> CLIPModel:
    torch.manual_seed(0)
    tokens = {
        "vocab_size": 64,
        "max_position_embeddings": 16,
        "bos_token_id": 0,
        "eos_token_id": eos,
        "pad_token_id": 1,
    }
    config = CLIPConfig(
        text_config={**text, **tokens, "hidden_act": act},
        vision_config={**vision, "image_size": 28, "patch_size": 14, "hidden_act": act},
        projection_dim=24,
    )
    return CLIPModel(config).eval()


MODELS = {
    "twin": lambda: clip(TWIN, TWIN, "gelu", eos=3),
    "pickscore": lambda: clip(REAL_TEXT, REAL_VISION, "gelu", eos=2),
    "openai": lambda: clip(TWIN, REAL_VISION, "quick_gelu", eos=3),
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> CLIPModel:
    return MODELS[request.param]()


def inputs(model: CLIPModel, tower: str) -> dict[str, torch.Tensor]:
    if tower == "vision":
        return {"pixel_values": torch.randn(6, 3, 28, 28)}
    end = model.config.text_config.eos_token_id
    ids = torch.tensor([[0, 9, 8, 7, 63 if end == 2 else end], [0, 5, 63 if end == 2 else end, 1, 1]])
    return {"input_ids": ids, "attention_mask": (ids != 1).long()}


@pytest.mark.parametrize("tower", ["text", "vision"])
def test_zero_knowledge_equals_the_untouched_tower_bit_for_bit(model: CLIPModel, tower: str):
    plain = getattr(model, f"{tower}_model")
    given = inputs(model, tower)
    expected = plain(**given)
    names = list(plain.state_dict())
    injected = copy.deepcopy(plain)
    make_injectable(injected.encoder.layers)
    rows, config = len(next(iter(given.values()))), plain.config
    zero = torch.zeros(rows, config.num_hidden_layers, 2, config.hidden_size)
    for knowledge in (None, zero):
        found = injected(**given, knowledge=knowledge)
        assert torch.equal(found.pooler_output, expected.pooler_output)
        assert torch.equal(found.last_hidden_state, expected.last_hidden_state)
    assert list(injected.state_dict()) == names  # weights keep their names: checkpoints fit
    assert not torch.equal(
        injected(**given, knowledge=zero + torch.randn(config.hidden_size)).pooler_output, expected.pooler_output
    )


@pytest.mark.parametrize("tower", ["text", "vision"])
def test_knowledge_equals_a_bias_on_the_layer_norm(model: CLIPModel, tower: str):
    """Adding u after the norm, before the block, is the same as adding u to the norm's own bias (Eq. 5)."""
    plain = getattr(model, f"{tower}_model")
    given = inputs(model, tower)
    config = plain.config
    knowledge = torch.randn(1, config.num_hidden_layers, 2, config.hidden_size)
    injected = copy.deepcopy(plain)
    make_injectable(injected.encoder.layers)
    rows = len(next(iter(given.values())))
    found = injected(**given, knowledge=knowledge.expand(rows, -1, -1, -1)).pooler_output
    with torch.no_grad():
        for index, layer in enumerate(plain.encoder.layers):
            layer.layer_norm1.bias += knowledge[0, index, 0]
            layer.layer_norm2.bias += knowledge[0, index, 1]
    torch.testing.assert_close(found, plain(**given).pooler_output)


def test_each_row_hears_only_its_own_knowledge():
    model = MODELS["twin"]()
    make_injectable(model.vision_model.encoder.layers)
    pixels = torch.randn(4, 3, 28, 28)
    knowledge = torch.randn(4, 2, 2, 32)
    together = model.vision_model(pixels, knowledge=knowledge).pooler_output
    for row in range(4):
        alone = model.vision_model(pixels[row : row + 1], knowledge=knowledge[row : row + 1]).pooler_output
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-6)


def test_activation_checkpointing_recomputes_with_the_same_knowledge():
    model = MODELS["twin"]().train()
    make_injectable(model.vision_model.encoder.layers)
    pixels, knowledge = torch.randn(3, 3, 28, 28), torch.randn(3, 2, 2, 32, requires_grad=True)

    def gradient() -> torch.Tensor:
        loss = model.vision_model(pixels, knowledge=knowledge).last_hidden_state.square().sum()
        return torch.autograd.grad(loss, knowledge)[0]

    expected = gradient()
    model.activation_checkpointing_enable()
    assert torch.equal(gradient(), expected)
    assert expected.abs().amax() > 0


def test_injection_twice_is_once_and_other_towers_are_refused():
    tower = MODELS["twin"]().text_model
    make_injectable(tower.encoder.layers)
    layers = list(tower.encoder.layers)
    make_injectable(tower.encoder.layers)
    assert all(isinstance(layer, PersonalEncoderLayer) for layer in layers)
    assert list(tower.encoder.layers) == layers
    with pytest.raises(ConfigError, match="layer 0 is a Linear; injection knows CLIPEncoderLayer, SiglipEncoderLayer"):
        make_injectable(torch.nn.ModuleList([torch.nn.Linear(2, 2)]))
