"""Backbones: the word-level tokenizer, the geometry taught in pretraining, loading and its errors."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

from perfusion.config import ClipConfig
from perfusion.data import Corpus
from perfusion.errors import ConfigError, WeightsError
from perfusion.reward import load_clip, twin, weights_hash
from perfusion.reward.backbones import PicturePreparation
from perfusion.reward.pretrain import augment, caption_targets, phrase_codes, picture_targets
from perfusion.reward.words import build_tokenizer

CLIP = ClipConfig(width=32, layers=1, heads=2, patch=8, projection=16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    twin(["red dress", "coat"], 16, CLIP).save(tmp_path / "clip")
    return tmp_path / "clip"


def test_words_are_tokens_and_commas_only_separate(folder: Path):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(["red dress, coat", " RED,dress,coat", "zebra"], padding=True)["input_ids"]
    assert ids[0] == ids[1]
    assert tokenizer.convert_ids_to_tokens(ids[2]) == ["<start>", "<unk>", "<end>", "<pad>", "<pad>"]
    assert tokenizer.eos_token_id != 2  # transformers takes 2 for a legacy configuration
    assert build_tokenizer(["b, a"]).get_vocab() == build_tokenizer(["a", "b a"]).get_vocab()


def test_transformers_loads_the_folder_by_itself(folder: Path):
    backbone = load_clip(folder)
    again = CLIPModel.from_pretrained(folder)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in backbone.model.state_dict().items())
    pixels = torch.randint(256, (16, 16, 3), dtype=torch.uint8)
    expected = AutoImageProcessor.from_pretrained(folder)(Image.fromarray(pixels.numpy()), return_tensors="pt")
    torch.testing.assert_close(backbone.prepare(pixels.permute(2, 0, 1)[None]), expected["pixel_values"])


def test_pictures_of_another_size_are_resized_like_clip_does():
    prepare = PicturePreparation(16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    ramp = torch.linspace(0, 255, 48).round().to(torch.uint8).expand(1, 3, 48, 48)
    found = prepare(ramp)
    assert found.shape == (1, 3, 16, 16)
    image = Image.fromarray(ramp[0].permute(1, 2, 0).contiguous().numpy()).resize((16, 16), Image.Resampling.BICUBIC)
    expected = torch.tensor(list(image.convert("L").tobytes())).view(16, 16) / 127.5 - 1
    assert (found[0, 0] - expected).abs().max() < 2 / 127.5


def test_codes_are_simplices_and_families_are_orthogonal():
    codes = phrase_codes([2, 3], 8, seed=0)
    products = codes @ codes.T
    within = torch.tensor(
        [[1, -1, 0, 0, 0], [-1, 1, 0, 0, 0], [0, 0, 1, -0.5, -0.5], [0, 0, -0.5, 1, -0.5], [0, 0, -0.5, -0.5, 1]]
    )
    torch.testing.assert_close(products, within, atol=1e-6, rtol=0)
    with pytest.raises(ConfigError, match=r"clip.projection = 4: 5 phrases"):
        phrase_codes([2, 3], 4, seed=0)


def test_targets_sum_the_codes_of_what_is_known():
    codes = phrase_codes([2, 3], 8, seed=0)
    target, known = picture_targets(torch.tensor([[1, 2], [0, -1]]), [2, 3], codes)
    torch.testing.assert_close(target[0], (codes[1] + codes[4]) / 2**0.5)
    torch.testing.assert_close(target[1], codes[0] / 2**0.5)
    assert known.tolist() == [[True] * 5, [True, True, False, False, False]]
    named = dict(zip("abcde", codes, strict=True))
    torch.testing.assert_close(caption_targets(["e, b", "a"], named), torch.stack([codes[4] + codes[1], codes[0]]))


def test_augmentation_keeps_colours_and_is_off_by_default():
    pixels = torch.randint(256, (8, 3, 16, 16), dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(augment(pixels, CLIP, generator), pixels)
    flipped = augment(pixels, CLIP.model_copy(update={"flip": True}), generator)
    same = (flipped == pixels).flatten(1).all(1)
    assert 0 < same.sum() < 8
    assert torch.equal(flipped[~same], pixels[~same].flip(-1))
    plain = torch.full((2, 3, 16, 16), 77, dtype=torch.uint8)
    assert (augment(plain, CLIP.model_copy(update={"crop": 0.7}), generator) == 77).all()


def test_a_corpus_without_a_known_phrase_somewhere_still_has_targets():
    corpus = Corpus(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), {"a": ["x", "y"]}, torch.tensor([[-1], [1]]))
    target, known = picture_targets(corpus.labels, [2], phrase_codes([2], 4, 0))
    assert (target[0] == 0).all()
    assert known.tolist() == [[False, False], [True, True]]


def test_weights_are_checked_by_hash(folder: Path):
    found = weights_hash(folder)
    load_clip(folder, sha256=found.upper())
    with pytest.raises(WeightsError, match=rf"sha256 {found}, clip.sha256 asks for 00ff"):
        load_clip(folder, sha256="00ff")


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "need config.json and model.safetensors, found"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "siglip"}'), "model_type 'siglip'"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "CLIPModel .*cannot load"),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "CLIPModel .*cannot load"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"no"), "CLIPModel .*cannot load"),
    ],
)
def test_an_incomplete_folder_names_itself_and_the_remedy(folder: Path, break_it, message: str):
    break_it(folder)
    with pytest.raises(WeightsError, match=message) as error:
        load_clip(folder)
    assert str(folder) in str(error.value)
    assert "clip.path" in str(error.value) or "CLIPModel" in str(error.value)


def test_a_path_that_is_neither_folder_nor_hub_id():
    with pytest.raises(WeightsError, match=r"/no/such/folder: no such folder, and not a hub id .* train the tiny twin"):
        load_clip("/no/such/folder")


def test_a_hub_id_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=r"nobody/nothing-here: no such folder, and the hub does not give it"):
        load_clip("nobody/nothing-here")
