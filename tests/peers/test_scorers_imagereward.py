"""ImageReward against transformers' own BLIP parts, and the original package's key names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BlipConfig, BlipForImageTextRetrieval, BlipTextConfig, BlipVisionConfig

from perfusion.config import ClipConfig, ScorerWeights
from perfusion.errors import WeightsError
from perfusion.reward import twin
from perfusion.scorers.imagereward import LARGE_TEXT, LARGE_VISION, ImageRewardModel, load_imagereward, our_names

PROMPTS = ["dress, v-neck", "coat, loose-fit, long sleeves"]
VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32,
    "patch_size": 16, "initializer_range": 0.1, "layer_norm_eps": 1e-6,
}  # fmt: skip
TEXT = {
    "vocab_size": 40, "hidden_size": 24, "encoder_hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 2, "max_position_embeddings": 35, "initializer_range": 0.1, "bos_token_id": 2,
    "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0,
}  # fmt: skip


@pytest.fixture
def reference() -> BlipForImageTextRetrieval:
    torch.manual_seed(0)
    config = BlipConfig(text_config=TEXT, vision_config=VISION, image_text_hidden_size=8)
    return BlipForImageTextRetrieval(config).eval()


def original_names(reference: BlipForImageTextRetrieval, head: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The state dict that ImageReward's package would save of these weights, written from its modules' names."""
    ours, state = reference.state_dict(), {}

    def take(theirs: str, name: str) -> None:
        for kind in ("weight", "bias"):
            state[f"blip.{theirs}.{kind}"] = ours[f"{name}.{kind}"]

    state["blip.visual_encoder.cls_token"] = ours["vision_model.embeddings.class_embedding"]
    state["blip.visual_encoder.pos_embed"] = ours["vision_model.embeddings.position_embedding"]
    take("visual_encoder.patch_embed.proj", "vision_model.embeddings.patch_embedding")
    for layer in range(2):
        here, there = f"visual_encoder.blocks.{layer}", f"vision_model.encoder.layers.{layer}"
        for theirs, name in (
            ("norm1", "layer_norm1"), ("norm2", "layer_norm2"), ("attn.qkv", "self_attn.qkv"),
            ("attn.proj", "self_attn.projection"), ("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2"),
        ):  # fmt: skip
            take(f"{here}.{theirs}", f"{there}.{name}")
    take("visual_encoder.norm", "vision_model.post_layernorm")
    for name, value in ours.items():
        if name.startswith("text_encoder."):
            state[f"blip.{name}"] = value
    state["blip.text_encoder.embeddings.position_ids"] = torch.arange(35)[None]
    take("vision_proj", "vision_proj")
    take("text_proj", "text_proj")
    state |= {f"mlp.{name}": value for name, value in head.state_dict().items()}
    return state


def test_the_score_is_the_head_on_what_transformers_blip_computes(
    reference: BlipForImageTextRetrieval, tmp_path: Path
) -> None:
    vision, text = BlipVisionConfig(**VISION), BlipTextConfig(**TEXT)
    head = ImageRewardModel(vision, text).mlp
    torch.save(original_names(reference, head), tmp_path / "ImageReward.pt")
    helper = twin(PROMPTS, 32, ClipConfig(width=8, layers=1, heads=1, patch=16, projection=4))
    helper.tokenizer.save_pretrained(tmp_path / "tokenizer")
    weights = ScorerWeights(path=str(tmp_path), processor=str(tmp_path / "tokenizer"))
    scorer = load_imagereward(weights, vision, text)
    assert scorer.name == "imagereward"
    pixels = torch.randint(256, (2, 2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = scorer.score(PROMPTS, pixels)
    for row, prompt in enumerate(PROMPTS):
        tokens = helper.tokenizer(
            prompt, padding="max_length", truncation=True, max_length=35, return_tensors="pt"
        )  # fmt: skip
        for place in range(2):
            mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
            std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
            picture = (pixels[row, place].float() / 255 - mean) / std
            with torch.no_grad():
                seen = reference.vision_model(pixel_values=picture[None])[0]
                state = reference.text_encoder(
                    input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], encoder_hidden_states=seen,
                    encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long),
                )[0][:, 0]  # fmt: skip
                value = state
                for layer in head.eval().layers:
                    value = layer(value)
            expected = (value.item() - 0.16717362830052426) / 1.0333394966054072
            assert found[row, place].item() == pytest.approx(expected, abs=1e-5)


def test_every_key_of_the_original_package_finds_its_place(reference: BlipForImageTextRetrieval) -> None:
    model = ImageRewardModel(BlipVisionConfig(**VISION), BlipTextConfig(**TEXT))
    assert set(our_names(original_names(reference, model.mlp))) == set(model.state_dict())


def test_the_published_sizes_have_the_published_shapes() -> None:
    with torch.device("meta"):
        shapes = {
            name: tuple(value.shape) for name, value in ImageRewardModel(LARGE_VISION, LARGE_TEXT).state_dict().items()
        }
    assert shapes["vision.embeddings.position_embedding"] == (1, 197, 1024)
    assert shapes["text.encoder.layer.11.crossattention.self.key.weight"] == (768, 1024)
    assert shapes["text.embeddings.word_embeddings.weight"] == (30524, 768)
    assert shapes["mlp.layers.0.weight"] == (1024, 768)
    assert LARGE_TEXT.num_attention_heads == 12  # transformers' default is 8


def test_a_missing_tensor_or_tokenizer_is_named(reference: BlipForImageTextRetrieval, tmp_path: Path) -> None:
    vision, text = BlipVisionConfig(**VISION), BlipTextConfig(**TEXT)
    state = original_names(reference, ImageRewardModel(vision, text).mlp)
    torch.save(state, tmp_path / "ImageReward.pt")
    weights = ScorerWeights(path=str(tmp_path / "ImageReward.pt"), processor=str(tmp_path / "absent"))
    with pytest.raises(WeightsError, match=r"absent: no tokenizer there.*evaluate\.weights\.imagereward\.processor"):
        load_imagereward(weights, vision, text)
    del state["blip.visual_encoder.norm.bias"]
    torch.save(state, tmp_path / "ImageReward.pt")
    with pytest.raises(WeightsError, match=r"vision\.post_layernorm\.bias.*THUDM/ImageReward"):
        load_imagereward(weights, vision, text)
