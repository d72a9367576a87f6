"""PMG: keywords from histories, rewritten prompts, and the picture that CLIP takes."""

import json

import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from perfusion.config import ClipConfig, PmgConfig
from perfusion.data import encode_png
from perfusion.errors import WeightsError
from perfusion.evaluation import style as styles
from perfusion.evaluation.style import Style, StyledArm, build_style, describe, read_histories
from perfusion.generation.pmg import choose, keywords_by_model, keywords_by_tfidf, read_keywords, rewrite
from perfusion.reward import twin
from perfusion.scorers.embedding import picture_embeddings, prompt_embeddings

HISTORIES = {
    "a": ["dress, Red", "coat, red, dotted", "dress, red"],
    "b": ["dress, blue", "coat, blue", "dress, striped, blue"],
    "c": ["dress", "coat"],
    "empty": [],
}


def test_the_strongest_keywords_are_frequent_here_and_rare_elsewhere():
    keywords = keywords_by_tfidf(HISTORIES, 2)
    assert keywords("a") == ("red", "dress")
    assert keywords("b")[0] == "blue"
    assert keywords("empty") == ()
    assert keywords("stranger") == ()
    assert len(keywords_by_tfidf(HISTORIES, 8)("a")) == 4
    assert keywords_by_tfidf({"x": [], "y": [" , "]}, 8)("x") == ()


def test_tfidf_by_hand():
    """Weights are tf (ln((1 + n) / (1 + df)) + 1): of equals the alphabet decides."""
    keywords = keywords_by_tfidf({"a": ["x, y, y"], "b": ["x, z"], "c": ["x, b"]}, 3)
    assert keywords("a") == ("y", "x")
    assert keywords("b") == ("z", "x")
    assert keywords_by_tfidf({"a": ["q, p"], "b": ["s"]}, 1)("a") == ("p",)


def test_a_list_is_read_as_the_model_writes_it():
    assert read_keywords("1. Red\n2. floral print\n3. red", 8) == ("red", "floral print")
    assert read_keywords("1. red 2. boho 3. linen", 2) == ("red", "boho")
    assert read_keywords("1. warm colours, linen; lace", 8) == ("warm colours", "linen", "lace")
    assert read_keywords("1. - *red*\n\nThese words tell of warmth, and more.", 8) == ("red",)
    assert read_keywords("1.", 8) == ()


def test_a_language_model_names_keywords_once_for_each_user(tmp_path, monkeypatch):
    words = ["<end>", "<unknown>", "red", "lace", "shop", "1", "2", ".", ",", "-"]
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unknown>"))
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>", unk_token="<unknown>")
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(words), n_positions=512, n_embd=8, n_layer=1, n_head=2,
                                       bos_token_id=0, eos_token_id=0))  # fmt: skip
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    asked = []
    generate = GPT2LMHeadModel.generate

    def counted(self, **options):
        asked.append(tokenizer.decode(options["input_ids"][0]))
        return generate(self, **options)

    monkeypatch.setattr(GPT2LMHeadModel, "generate", counted)
    keywords = keywords_by_model(str(tmp_path), {"a": ["red lace"], "b": []}, 3)
    said = keywords("a")
    assert len(said) <= 3
    assert keywords("a") == said
    assert len(asked) == 1
    assert "red lace" in asked[0]
    assert keywords("b") == keywords("stranger") == ()
    assert len(asked) == 1


def test_an_absent_language_model_names_the_parameter(tmp_path):
    with pytest.raises(WeightsError, match=r"pmg.language_model .*nowhere: cannot load"):
        keywords_by_model(str(tmp_path / "nowhere"), HISTORIES, 8)


def test_style_words_follow_the_prompt_and_repeat_nothing_it_says():
    assert rewrite("Dress, v-neck", ["red", "dress", "lace"], 2) == "Dress, v-neck, red, lace, red, lace"
    assert rewrite("dress", ["red"], 0) == "dress"
    assert rewrite("dress", [], 2) == "dress"


def test_the_choice_weighs_style_against_target():
    style, target = torch.tensor([[0.1, 0.4], [0.2, 0.2]]), torch.tensor([[0.5, 0.2], [0.3, 0.3]])
    assert choose(style, target, 1.0).tolist() == [1, 0]
    assert choose(style, target, 0.0).tolist() == [0, 0]
    even = (style * target).sqrt()  # alpha 1/2 is the geometric mean
    assert choose(style, target, 0.5).tolist() == [int(even[0].argmax()), 0]
    assert choose(torch.tensor([[-0.5, 0.1]]), torch.tensor([[0.9, 0.9]]), 0.5).tolist() == [1]


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    return twin(["red", "blue", "dress"], 16, ClipConfig(width=16, layers=1, heads=2, patch=8, projection=8))


@pytest.fixture
def shop(tmp_path):
    """Three users' groups, and their pictures; record r3 is not for training."""
    pixels = torch.randint(256, (8, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    (tmp_path / "images").mkdir()
    images = [encode_png(picture.permute(1, 2, 0).numpy()) for picture in pixels]
    names = [f"i{n}" for n in range(8)]
    pd.DataFrame({"image_id": names, "image": images}).to_parquet(tmp_path / "images/part-0.parquet")
    groups = pd.DataFrame({
        "record_id": ["r0", "r1", "r2", "r3"], "user_id": ["a", "a", "b", "b"], "split": ["train"] * 3 + ["test"],
        "created_at": pd.to_datetime(["2026-01-02", "2026-01-01", "2026-01-01", "2026-01-03"]),
        "prompt": ["dress", "coat", "top", "jumpsuit"],
        "image_ids": [names[i : i + 2] for i in range(0, 8, 2)], 
        "picked": [[True, False], [True, True], [False, True], [True, False]],
    })  # fmt: skip
    return tmp_path, groups, pixels


def test_history_is_the_latest_training_records_and_no_others(shop, clip):
    data, groups, _ = shop
    assert read_histories(data, groups, clip, PmgConfig(), 16) == {"a": ["coat", "dress"], "b": ["top"]}
    assert read_histories(data, groups, clip, PmgConfig(history=1), 16) == {"a": ["dress"], "b": ["top"]}
    assert read_histories(data, groups, clip, PmgConfig(), 16, users=["b"]) == {"b": ["top"]}


def test_with_a_vocabulary_history_says_what_the_picked_pictures_show(shop, clip):
    data, groups, pixels = shop
    config = PmgConfig(vocabulary=("red", "blue", "dress"), phrases_per_picture=1)
    found = read_histories(data, groups, clip, config, 16)
    shown = torch.stack([pixels[0], pixels[2], pixels[3], pixels[5]])  # i0; i2, i3; i5
    said = describe(clip, shown, config.vocabulary, 1)
    assert found == {"a": [f"{said[1]}, {said[2]}", said[0]], "b": [said[3]]}
    fit = picture_embeddings(clip, shown) @ prompt_embeddings(clip, list(config.vocabulary)).T
    assert said[0] == config.vocabulary[int((fit[0] - fit.mean(0)).argmax())]


class Painter:
    """Draws a flat picture for each prompt, by how often it says a word."""

    def __init__(self):
        self.calls = []

    def __call__(self, prompts, users, seeds):
        self.calls.append((list(prompts), list(seeds)))
        level = torch.tensor([40 * prompt.count("red") for prompt in prompts], dtype=torch.uint8)
        return level[:, None, None, None].expand(-1, 3, 16, 16)


def test_the_arm_draws_each_prompt_with_each_weight_and_keeps_one(clip, monkeypatch):
    painter = Painter()
    style = Style(lambda user: {"a": ("red",)}.get(user, ()), clip, PmgConfig(repeats=(0, 1, 2), alpha=0.75))
    users = pd.DataFrame({"user_id": ["a", "stranger"]})
    asked = []

    def cosines(backbone, prompts, pixels):
        asked.append(prompts)
        return pixels[:, :, 0, 0, 0].float() / 100  # the redder the better

    monkeypatch.setattr(styles, "cosines", cosines)
    drawn = StyledArm(painter, style)(["dress", "coat"], users, [5, 6])
    assert [call[0] for call in painter.calls] == [
        ["dress", "coat"],
        ["dress, red", "coat"],
        ["dress, red, red", "coat"],
    ]
    assert all(call[1] == [5, 6] for call in painter.calls)
    assert asked == [["red", "coat"], ["dress", "coat"]]
    assert drawn[:, 0, 0, 0].tolist() == [80, 0]
    assert drawn.shape == (2, 3, 16, 16)


def test_a_style_is_built_from_a_split(shop, clip):
    data, groups, _ = shop
    style = build_style(data, groups, clip, PmgConfig(), 16)
    assert set(style.keywords("a")) == {"coat", "dress"}
    assert json.dumps(style.keywords("b")) == '["top"]'
