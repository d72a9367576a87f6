"""PerFusionRM: what it computes, its four variants, how it is saved, and that it learns through two zeros."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from perfusion.config import ClipConfig, OptimiserConfig, RewardConfig
from perfusion.data import FeatureEncoder
from perfusion.errors import ConfigError, DataError, WeightsError
from perfusion.reward import Backbone, PerFusionRM, group_loss, twin
from perfusion.reward.batches import Candidates, blind_scores
from perfusion.reward.model import VARIANTS

PHRASES = ["dress", "coat", "red", "blue", "v-neck", "long sleeves"]
PROMPTS = ["dress, red", "coat", "long sleeves, blue, v-neck"]
CLIP = ClipConfig(width=32, layers=2, heads=4, patch=8, projection=24)
REWARD = RewardConfig(optimiser=OptimiserConfig(steps=3, lr=1e-2), embedding_dim=4, adaptive_hidden=16)


@pytest.fixture
def backbone() -> Backbone:
    torch.manual_seed(0)
    return twin(PHRASES, 16, CLIP)


@pytest.fixture
def encoder() -> FeatureEncoder:
    return FeatureEncoder.fit(
        pd.DataFrame({"user_id": ["a", "b", "c"], "style": ["x", "y", None], "size": [1.0, 2, 3]})
    )


def build(backbone: Backbone, encoder: FeatureEncoder, **changes: object) -> PerFusionRM:
    torch.manual_seed(1)
    config = REWARD.model_copy(update=changes)
    return PerFusionRM.from_backbone(backbone, encoder.cardinalities, config, encoder).eval()


def content(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def awaken(model: PerFusionRM) -> PerFusionRM:
    """Give the zero last layers values, as training would."""
    torch.manual_seed(2)
    for name, parameter in model.plugins.named_parameters():
        if ".last." in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return model


def pixels(groups: int = 3, size: int = 4, side: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(256, (groups, size, 3, side, side), generator=generator, dtype=torch.uint8)


USERS = torch.tensor([[1, 1, 1], [2, 2, 2], [3, 0, 3]])  # size, style, user id


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_new_model_scores_like_its_backbone_for_anyone(backbone: Backbone, encoder: FeatureEncoder, variant: str):
    model = build(backbone, encoder, variant=variant)
    group = torch.arange(3).repeat_interleave(4)
    prepared = backbone.prepare(pixels().flatten(0, 1))
    batch = Candidates(backbone.tokens(PROMPTS), prepared, group, USERS, *[torch.ones(3, 4, dtype=torch.bool)] * 2)
    with torch.no_grad():
        expected = blind_scores(backbone, batch).view(3, 4)
    assert torch.equal(model.score(PROMPTS, pixels()), expected)
    assert torch.equal(model.score(PROMPTS, pixels(), USERS), expected)
    awaken(model)
    assert torch.equal(model.score(PROMPTS, pixels()), expected)  # user-blind stays what it was
    assert not torch.allclose(model.score(PROMPTS, pixels(), USERS), expected)


def test_scores_are_those_of_transformers_clip(backbone: Backbone, encoder: FeatureEncoder):
    model = build(backbone, encoder)
    tokens = backbone.tokens(PROMPTS[:1])
    prepared = backbone.prepare(pixels()[0])
    with torch.no_grad():
        expected = backbone.model(**tokens, pixel_values=prepared).logits_per_text
    torch.testing.assert_close(model.score(PROMPTS[:1], pixels()[:1]), expected)
    literal = build(backbone, encoder, scale="one")
    torch.testing.assert_close(literal.score(PROMPTS[:1], pixels()[:1]), expected / backbone.model.logit_scale.exp())


@pytest.mark.parametrize(("variant", "plugins"), [("full", 2), ("shared", 1), ("vision_only", 1), ("text_only", 1)])
def test_variants_differ_in_who_is_told(backbone: Backbone, encoder: FeatureEncoder, variant: str, plugins: int):
    model = awaken(build(backbone, encoder, variant=variant))
    assert len(model.plugins) == plugins
    text, vision = model.knowledge("text", USERS), model.knowledge("vision", USERS)
    assert (text is None) == (variant == "vision_only")
    assert (vision is None) == (variant == "text_only")
    if variant == "shared":
        assert torch.equal(text, vision)  # towers of equal size share every network
    if variant == "full":
        assert not torch.equal(text, vision)


def test_an_unknown_variant_is_refused(backbone: Backbone, encoder: FeatureEncoder):
    with pytest.raises(ConfigError, match="'both': known are full, shared"):
        build(backbone, encoder, variant="both")


def test_a_group_scores_the_same_alone_and_in_company(backbone: Backbone, encoder: FeatureEncoder):
    model = awaken(build(backbone, encoder))
    together = model.score(PROMPTS, pixels(), USERS)
    for row in range(3):
        alone = model.score(PROMPTS[row : row + 1], pixels()[row : row + 1], USERS[row : row + 1])
        torch.testing.assert_close(alone, together[row : row + 1], rtol=1e-4, atol=1e-5)
    group = torch.arange(3).repeat_interleave(4)
    by_fives = model.score_pictures(PROMPTS, pixels().flatten(0, 1), group, USERS, batch_pictures=5).view(3, 4)
    torch.testing.assert_close(by_fives, together, rtol=1e-4, atol=1e-5)
    assert model.score([], pixels()[:0]).shape == (0, 4)


def test_padding_scores_zero_and_changes_nothing(backbone: Backbone, encoder: FeatureEncoder):
    model = awaken(build(backbone, encoder))
    valid = torch.tensor([[True, True, False, True], [True, False, False, False], [True, True, True, True]])
    whole, ragged = model.score(PROMPTS, pixels(), USERS), model.score(PROMPTS, pixels(), USERS, valid)
    torch.testing.assert_close(ragged[valid], whole[valid], rtol=1e-4, atol=1e-5)
    assert not ragged[~valid].any()
    assert not model.score(PROMPTS, pixels(), USERS, torch.zeros_like(valid)).any()


def test_a_prompt_is_encoded_once_for_all_candidates_and_padding_costs_nothing(
    backbone: Backbone, encoder: FeatureEncoder
):
    """Work is that of the prompts plus that of the pictures that exist."""
    model = awaken(build(backbone, encoder))
    prompts = PROMPTS[:1] * 3  # of equal length

    def work(valid: torch.Tensor) -> int:
        with FlopCounterMode(display=False) as counter:
            model.score(prompts, pixels(), USERS, valid)
        return counter.get_total_flops()

    one, two, all_four = (work((torch.arange(4) < count).expand(3, 4)) for count in (1, 2, 4))
    assert all_four - two == 2 * (two - one)
    text, picture = two - 2 * (two - one), (two - one) // 3
    assert text > 0
    assert work(torch.arange(12).view(3, 4) != 5) == text + 11 * picture


def test_the_merchant_the_prompt_and_the_picture_each_change_the_score(backbone: Backbone, encoder: FeatureEncoder):
    model = awaken(build(backbone, encoder))
    base = model.score(PROMPTS, pixels(), USERS)
    assert not torch.allclose(model.score(PROMPTS, pixels(), USERS.flip(0)), base)
    assert not torch.allclose(model.score(PROMPTS[::-1], pixels(), USERS), base)
    torch.testing.assert_close(model.score(PROMPTS, pixels().flip(1), USERS), base.flip(1), rtol=1e-4, atol=1e-5)


def test_mismatched_inputs_are_named(backbone: Backbone, encoder: FeatureEncoder):
    model = build(backbone, encoder)
    with pytest.raises(DataError, match="2 prompts, pixels"):
        model.score(PROMPTS[:2], pixels(), USERS)
    with pytest.raises(DataError, match=r"valid \(3, 2\)"):
        model.score(PROMPTS, pixels(), USERS, torch.ones(3, 2, dtype=torch.bool))
    with pytest.raises(DataError, match="groups of 1 pictures"):
        model.score_pictures(PROMPTS, pixels()[0], torch.zeros(1, dtype=torch.long))
    with pytest.raises(DataError, match="out of range"):
        model.score(PROMPTS, pixels(), USERS + 99)


def test_every_parameter_learns_by_step_three_and_the_backbone_never(backbone: Backbone, encoder: FeatureEncoder):
    """Two zeros in a row (zero last layers, zero unknown rows) must not keep anything asleep."""
    model = build(backbone, encoder, scale="learned").train()
    assert not model.backbone.training
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    before = {name: p.clone() for name, p in model.backbone.named_parameters()}
    picked = torch.arange(4)[None] == torch.tensor([0, 1, 2])[:, None]
    valid = torch.ones_like(picked)
    group = torch.arange(3).repeat_interleave(4)
    prepared = backbone.prepare(pixels().flatten(0, 1))
    for step in range(3):
        optimiser.zero_grad()
        s = model(**backbone.tokens(PROMPTS), pixel_values=prepared, group=group, users=USERS)
        group_loss(s.view(3, 4), picked, valid).mean().backward()
        still = [name for name, p in model.plugins.named_parameters() if p.grad is None or not p.grad.any()]
        if step == 0:
            assert all(".last." not in name for name in still)
            assert any("embedding" in name for name in still)  # the first zero: nothing behind it moves yet
        optimiser.step()
    assert still == []
    assert model.log_scale.grad.abs() > 0
    assert all(torch.equal(p, before[name]) for name, p in model.backbone.named_parameters())
    assert all(p.grad is None for p in model.backbone.parameters())


@pytest.mark.parametrize("variant", VARIANTS)
def test_saved_and_loaded_scores_the_same(backbone: Backbone, encoder: FeatureEncoder, variant: str, tmp_path: Path):
    model = awaken(build(backbone, encoder, variant=variant, scale="learned", cross_norm=variant == "full"))
    expected = model.score(PROMPTS, pixels(), USERS)
    model.save_pretrained(tmp_path)
    assert {"config.json", "model.safetensors", "features.json", "tokenizer.json", "README.md"} <= {
        file.name for file in tmp_path.iterdir()
    }
    again = PerFusionRM.from_pretrained(tmp_path)
    assert torch.equal(again.score(PROMPTS, pixels(), USERS), expected)
    assert not any(p.requires_grad for p in again.backbone.parameters())
    assert again.encoder == encoder


def test_files_tell_nothing_of_what_was_asked_before(backbone: Backbone, encoder: FeatureEncoder, tmp_path: Path):
    """Else a training that is resumed after its last step, and asks nothing more, would write other bytes."""
    model = build(backbone, encoder)
    for asked in ("nothing", "prompts"):
        if asked == "prompts":
            backbone.tokens(PROMPTS)
            model.score(PROMPTS, pixels(), USERS)
        backbone.save(tmp_path / asked / "clip")
        model.save_pretrained(tmp_path / asked / "model")
    assert content(tmp_path / "nothing") == content(tmp_path / "prompts")


def test_loads_in_a_clean_process_from_another_folder(backbone: Backbone, encoder: FeatureEncoder, tmp_path: Path):
    model = awaken(build(backbone, encoder))
    model.save_pretrained(tmp_path / "model")
    torch.save({"pixels": pixels(), "users": USERS}, tmp_path / "inputs.pt")
    code = (
        "import json, torch; from perfusion.reward import PerFusionRM\n"
        f"given = torch.load({str(tmp_path / 'inputs.pt')!r})\n"
        f"model = PerFusionRM.from_pretrained({str(tmp_path / 'model')!r})\n"
        f"print(json.dumps(model.score({PROMPTS!r}, given['pixels'], given['users']).tolist()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    found = torch.tensor(json.loads(done.stdout.splitlines()[-1]))
    torch.testing.assert_close(found, model.score(PROMPTS, pixels(), USERS))


def test_an_absent_or_foreign_folder_is_a_clear_error(backbone: Backbone, tmp_path: Path):
    with pytest.raises(WeightsError, match=r"nowhere: no PerFusionRM here .* run the reward stage first"):
        PerFusionRM.from_pretrained(tmp_path / "nowhere")
    backbone.save(tmp_path / "clip")
    with pytest.raises(WeightsError, match="model_type 'clip'"):
        PerFusionRM.from_pretrained(tmp_path / "clip")


def test_the_card_says_who_and_how(backbone: Backbone, encoder: FeatureEncoder, tmp_path: Path):
    build(backbone, encoder).save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "size (" in card
    assert "user_id (4)" in card
    assert "frozen parameters" in card
