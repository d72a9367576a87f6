"""SigLIP and ViLT behind CLIP's protocol: transformers' own numbers without users, and Eq. 5 with them."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pandas as pd
import pytest
import torch
from torch import Tensor

from perfusion.config import ClipConfig, OptimiserConfig, PickScoreConfig, RewardConfig
from perfusion.data import Corpus, FeatureEncoder, GroupTable
from perfusion.errors import ConfigError, WeightsError
from perfusion.evaluation.reward import blind_scorer
from perfusion.loop import TrainingRun
from perfusion.nn.injection import make_injectable
from perfusion.reward import (
    Backbone,
    PerFusionRM,
    TwoTowers,
    load_backbone,
    load_clip,
    load_towers,
    pretrain_twin,
    train_pickscore,
    train_reward,
    twin,
)
from perfusion.reward.backbones import VARIANTS
from perfusion.reward.batches import NOTHING, gather, spread
from perfusion.reward.losses import group_auc, group_loss
from perfusion.reward.pretrain_matching import belongs, other_caption
from perfusion.reward.weights import KINDS
from perfusion.scorers import PickScore
from perfusion.scorers.tables import row_scorer

PHRASES = ["dress", "coat", "red", "blue", "v-neck", "long sleeves"]
PROMPTS = ["dress, red", "coat", "long sleeves, blue, v-neck"]
USERS = torch.tensor([[1, 1, 1], [2, 2, 2], [3, 0, 3]])
OTHERS = ("siglip", "vilt")


def clip_config(kind: str, **changes: object) -> ClipConfig:
    return ClipConfig(kind=kind, width=32, layers=2, heads=4, patch=8, projection=24, **changes)


def backbone_of(kind: str) -> Backbone:
    """A twin with biases and norms that do something."""
    torch.manual_seed(0)
    backbone = twin(PHRASES, 16, clip_config(kind))
    for name, parameter in backbone.model.named_parameters():
        if parameter.ndim == 2 and not isinstance(backbone, TwoTowers):
            torch.nn.init.xavier_uniform_(parameter)
        elif name.endswith("bias") and "logit" not in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return replace(backbone, model=backbone.model.eval())


@pytest.fixture(params=OTHERS)
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return backbone_of(request.param)


@pytest.fixture
def encoder() -> FeatureEncoder:
    return FeatureEncoder.fit(
        pd.DataFrame({"user_id": ["a", "b", "c"], "style": ["x", "y", None], "size": [1.0, 2, 3]})
    )


def build(backbone: Backbone, encoder: FeatureEncoder, awake: bool = False, **changes: object) -> PerFusionRM:
    torch.manual_seed(1)
    config = RewardConfig(embedding_dim=4, adaptive_hidden=16, **changes)
    model = PerFusionRM.from_backbone(backbone, encoder.cardinalities, config, encoder).eval()
    for name, parameter in model.plugins.named_parameters():
        if awake and ".last." in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return model


def pixels(groups: int = 3, size: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(256, (groups, size, 3, 16, 16), generator=generator, dtype=torch.uint8)


@torch.no_grad()
def transformers_scores(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """(3, 4) of transformers' own forward pass, one group at a time."""
    found = []
    # ViLT draws the order of its patches; in their own order it has no freedom left.
    monkeypatch.setattr(torch, "multinomial", lambda weights, count: torch.arange(int(count)))
    for prompt, pictures in zip(PROMPTS, pixels(), strict=True):
        given = {**backbone.tokens([prompt]), "pixel_values": backbone.prepare(pictures)}
        if backbone.kind == "siglip":
            found.append(backbone.model(**given).logits_per_text[0])
        else:
            given = {name: value.expand(4, *value.shape[1:]) for name, value in given.items()}
            found.append(backbone.model(**given).logits[:, 0])
    return torch.stack(found)


def test_the_kinds_are_those_of_the_configuration():
    assert set(KINDS) == set(get_args(ClipConfig.model_fields["kind"].annotation))
    assert {kind.kind for kind in KINDS.values()} == set(KINDS)
    assert set(VARIANTS) == set(get_args(RewardConfig.model_fields["variant"].annotation))


def test_a_new_model_scores_like_transformers_for_anyone(
    backbone: Backbone, encoder: FeatureEncoder, monkeypatch: pytest.MonkeyPatch
):
    expected = transformers_scores(backbone, monkeypatch)
    assert expected.std(dim=1).min() > 1e-3  # pictures make a difference
    model = build(backbone, encoder)
    blind = model.score(PROMPTS, pixels())
    torch.testing.assert_close(blind, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(model.score(PROMPTS, pixels(), USERS), blind)
    model = build(backbone, encoder, awake=True)
    assert torch.equal(model.score(PROMPTS, pixels()), blind)  # user-blind stays what it was
    assert not torch.allclose(model.score(PROMPTS, pixels(), USERS), blind)


@pytest.mark.parametrize("tower", ["text", "vision"])
def test_siglips_towers_told_nothing_are_transformers_bit_for_bit(tower: str):
    backbone = backbone_of("siglip")
    plain = getattr(backbone.model, f"{tower}_model")
    given = backbone.tokens(PROMPTS) if tower == "text" else {"pixel_values": backbone.prepare(pixels().flatten(0, 1))}
    expected, names = plain(**given), list(plain.state_dict())
    injected = copy.deepcopy(plain)
    make_injectable(injected.encoder.layers)
    zero = torch.zeros(len(expected.pooler_output), 2, 2, 32)
    for knowledge in (None, zero):
        found = injected(**given, knowledge=knowledge)
        assert torch.equal(found.pooler_output, expected.pooler_output)
        assert torch.equal(found.last_hidden_state, expected.last_hidden_state)
    assert list(injected.state_dict()) == names
    assert not torch.equal(injected(**given, knowledge=zero + torch.randn(32)).pooler_output, expected.pooler_output)


def test_siglips_vision_tower_as_we_run_it_is_transformers_bit_for_bit_and_its_text_tower_to_rounding():
    backbone = backbone_of("siglip")
    assert isinstance(backbone, TwoTowers)
    prepared, tokens = backbone.prepare(pixels().flatten(0, 1)), backbone.tokens(PROMPTS)
    image, text = backbone.model.get_image_features(prepared), backbone.model.get_text_features(**tokens)
    make_injectable(backbone.layers["vision"])
    for knowledge in (None, torch.zeros(12, 2, 2, 32)):
        found = backbone.picture_embeds(backbone.picture_start(prepared), knowledge)
        assert torch.equal(found, image.pooler_output)
    torch.testing.assert_close(backbone.prompt_embeds(**tokens), text.pooler_output, rtol=1e-5, atol=1e-6)


def test_vilt_told_nothing_is_transformers_bit_for_bit(encoder: FeatureEncoder, monkeypatch: pytest.MonkeyPatch):
    """Tokens of all prompts together are padded; so are transformers' here, in the same pass."""
    backbone = backbone_of("vilt")
    group, prepared = torch.arange(3).repeat_interleave(4), backbone.prepare(pixels().flatten(0, 1))
    tokens = backbone.tokens(PROMPTS)
    given = {name: tokens[name][group] for name in ("input_ids", "attention_mask")}
    torch.manual_seed(5)
    drawn = backbone.model(**given, pixel_values=prepared).logits[:, 0]  # patches in an order of chance
    monkeypatch.setattr(torch, "multinomial", lambda weights, count: torch.arange(int(count)))
    expected = backbone.model(**given, pixel_values=prepared).logits[:, 0]
    torch.testing.assert_close(drawn, expected)
    assert torch.equal(backbone.scores(tokens, prepared, group), expected)
    make_injectable(backbone.layers["joint"])
    told = {None: lambda name: None, 0: lambda name: torch.zeros(3, 2, 2, 32)}
    for knowledge in told.values():
        assert torch.equal(backbone.scores(tokens, prepared, group, knowledge), expected)
    assert torch.equal(backbone.model(**given, pixel_values=prepared).logits[:, 0], expected)


def test_knowledge_equals_a_bias_on_the_layer_norm(backbone: Backbone):
    """Adding u after the norm, before the block, is adding u to the norm's own bias (Eq. 5)."""
    group = torch.arange(3).repeat_interleave(4)
    prepared, tokens = backbone.prepare(pixels().flatten(0, 1)), backbone.tokens(PROMPTS)
    told = {name: torch.randn(1, 2, 2, 32) for name in backbone.layers}
    injected = replace(backbone, model=copy.deepcopy(backbone.model))
    for layers in injected.layers.values():
        make_injectable(layers)
    found = injected.scores(tokens, prepared, group, lambda name: told[name].expand(3, -1, -1, -1))
    norms = {"siglip": ("layer_norm1", "layer_norm2"), "vilt": ("layernorm_before", "layernorm_after")}[backbone.kind]
    with torch.no_grad():
        for name, layers in backbone.layers.items():
            for index, layer in enumerate(layers):
                for place, norm in enumerate(norms):
                    getattr(layer, norm).bias += told[name][0, index, place]
    torch.testing.assert_close(found, backbone.scores(tokens, prepared, group), rtol=1e-4, atol=1e-5)


def test_vilt_has_one_plug_in_and_says_why_there_are_no_others(encoder: FeatureEncoder):
    assert list(build(backbone_of("vilt"), encoder).plugins) == ["joint"]
    for variant in set(VARIANTS) - {"full"}:
        with pytest.raises(ConfigError, match=f"'{variant}': a vilt backbone reads prompt and picture in one encoder"):
            build(backbone_of("vilt"), encoder, variant=variant)


@pytest.mark.parametrize("variant", VARIANTS)
def test_siglip_has_all_variants(encoder: FeatureEncoder, variant: str):
    model = build(backbone_of("siglip"), encoder, awake=True, variant=variant)
    assert (model.knowledge("text", USERS) is None) == (variant == "vision_only")
    assert (model.knowledge("vision", USERS) is None) == (variant == "text_only")
    assert not torch.allclose(model.score(PROMPTS, pixels(), USERS), model.score(PROMPTS, pixels()))


def test_a_group_scores_the_same_alone_and_in_company(backbone: Backbone, encoder: FeatureEncoder):
    model = build(backbone, encoder, awake=True)
    together = model.score(PROMPTS, pixels(), USERS)
    for row in range(3):
        alone = model.score(PROMPTS[row : row + 1], pixels()[row : row + 1], USERS[row : row + 1])
        torch.testing.assert_close(alone, together[row : row + 1], rtol=1e-4, atol=1e-5)
    group = torch.arange(3).repeat_interleave(4)
    by_fives = model.score_pictures(PROMPTS, pixels().flatten(0, 1), group, USERS, batch_pictures=5).view(3, 4)
    torch.testing.assert_close(by_fives, together, rtol=1e-4, atol=1e-5)
    valid = torch.arange(12).view(3, 4) % 3 > 0
    ragged = model.score(PROMPTS, pixels(), USERS, valid)
    torch.testing.assert_close(ragged[valid], together[valid], rtol=1e-4, atol=1e-5)
    assert not ragged[~valid].any()


@pytest.mark.parametrize("scale", ["frozen", "learned", "one"])
def test_saved_and_loaded_scores_the_same(backbone: Backbone, encoder: FeatureEncoder, scale: str, tmp_path: Path):
    model = build(backbone, encoder, awake=True, scale=scale)
    model.save_pretrained(tmp_path)
    again = PerFusionRM.from_pretrained(tmp_path)
    expected = model.score(PROMPTS, pixels(), USERS)
    torch.testing.assert_close(again.score(PROMPTS, pixels(), USERS), expected, rtol=1e-6, atol=1e-6)
    assert not any(p.requires_grad for p in again.backbone.parameters())
    assert f"| backbone | {backbone.kind} |" in (tmp_path / "README.md").read_text()


def test_a_folder_of_its_own_is_read_as_what_it_is(backbone: Backbone, tmp_path: Path):
    backbone.save(tmp_path)
    again = load_backbone(tmp_path)
    assert type(again) is type(backbone)
    assert again.tokens(PROMPTS).keys() >= {"input_ids"}
    group = torch.arange(3).repeat_interleave(4)
    prepared = backbone.prepare(pixels().flatten(0, 1))
    assert torch.equal(
        again.scores(again.tokens(PROMPTS), again.prepare(pixels().flatten(0, 1)), group),
        backbone.scores(backbone.tokens(PROMPTS), prepared, group),
    )
    with pytest.raises(WeightsError, match=rf"model_type '{backbone.kind}', need 'clip' here; set clip.path"):
        load_clip(tmp_path)
    if backbone.kind == "vilt":
        with pytest.raises(WeightsError, match="need 'clip' or 'siglip'"):
            load_towers(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(WeightsError, match="model_type 'bert', need 'clip' or 'siglip' or 'vilt'"):
        load_backbone(tmp_path)


def test_siglip_reads_prompts_of_full_length_without_a_mask():
    tokens = backbone_of("siglip").tokens(PROMPTS)
    assert list(tokens) == ["input_ids"]
    assert tokens["input_ids"].shape == (3, 32)


COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 60, 230), "grey": (128, 128, 128)}
SIDES = ["left stripe", "right stripe"]


def patches(colours: Tensor, sides: Tensor) -> Tensor:
    """Pictures (n, 3, 16, 16) of one colour each, with a white stripe on one side."""
    pictures = torch.tensor(list(COLOURS.values()), dtype=torch.uint8)[colours][:, :, None, None].repeat(1, 1, 16, 16)
    for row, side in enumerate(sides.tolist()):
        pictures[row, :, :, slice(0, 4) if side == 0 else slice(12, 16)] = 255
    return pictures


def corpus(count: int = 400) -> Corpus:
    generator = torch.Generator().manual_seed(0)
    colours, sides = torch.randint(4, (count,), generator=generator), torch.randint(2, (count,), generator=generator)
    return Corpus(patches(colours, sides), {"colour": list(COLOURS), "side": SIDES}, torch.stack([colours, sides], 1))


def test_what_belongs_together_is_known_phrase_by_phrase():
    given = replace(corpus(3), labels=torch.tensor([[0, 1], [2, -1], [-1, -1]]))
    shown, known = belongs(given, torch.arange(3), ["red", "right stripe, red", "blue, left stripe", "green"])
    assert shown.tolist() == [[True, True, False, False], [False] * 4, [False] * 4]
    assert known.tolist() == [[True] * 4, [True, True, False, True], [False] * 4]
    generator = torch.Generator().manual_seed(0)
    others = [other_caption(corpus(), 0, "red, left stripe", generator) for _ in range(60)]
    shown, known = belongs(corpus(), torch.tensor([0]), others)
    assert known.all()
    assert shown.double().mean() < 0.4  # another picture's caption may be true, an exchanged phrase may not


@pytest.fixture(scope="module", params=OTHERS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp(request.param)
    optimiser = OptimiserConfig(steps=150, lr=3e-3, warmup=5)
    config = clip_config(request.param, optimiser=optimiser, batch_images=64, batch_captions=16)
    metrics = pretrain_twin(corpus(), config, out, TrainingRun("clip", 0))
    assert metrics["zero_shot"] > 0.9
    return out


def test_an_interrupted_pretraining_resumes_bit_for_bit(backbone: Backbone, tmp_path: Path):
    optimiser = OptimiserConfig(steps=6, lr=3e-3, warmup=2, checkpoint_seconds=1e-9, log_every=1)
    config = clip_config(backbone.kind, optimiser=optimiser, batch_images=16, batch_captions=8)

    class Killed(Exception):
        pass

    def kill(step: int, metrics: dict[str, float]) -> None:
        if step == 4:
            raise Killed

    pretrain_twin(corpus(60), config, tmp_path / "whole", TrainingRun("clip", 0))
    state = tmp_path / "state"
    with pytest.raises(Killed):
        pretrain_twin(corpus(60), config, tmp_path / "again", TrainingRun("clip", 0, state, "key", on_metrics=kill))
    pretrain_twin(corpus(60), config, tmp_path / "again", TrainingRun("clip", 0, state, "key"))
    whole, again = (load_backbone(tmp_path / name).model.state_dict() for name in ("whole", "again"))
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def market() -> dict[str, GroupTable]:
    """Merchants of style x pick red, of style y blue, whatever the prompt; groups of 2 to 4, padded."""
    generator = torch.Generator().manual_seed(1)
    users = pd.DataFrame({"user_id": [f"m{i}" for i in range(12)], "style": ["x", "y"] * 6})
    encoder = FeatureEncoder.fit(users)

    def table(count: int) -> GroupTable:
        owner = torch.randint(12, (count,), generator=generator)
        index = torch.stack([torch.randperm(4, generator=generator) for _ in range(count)])
        favourite = torch.where(owner % 2 == 0, 0, 2)
        size = torch.randint(2, 5, (count,), generator=generator)
        size = size.maximum((index == favourite[:, None]).int().argmax(1) + 1)
        valid = torch.arange(4)[None] < size[:, None]
        return GroupTable(
            patches(torch.arange(4), torch.zeros(4)), index, valid, (index == favourite[:, None]) & valid, owner,
            encoder.transform(users), ["grey"] * count, [f"r{i}" for i in range(count)], users["user_id"].tolist(),
            encoder, [f"i{i}" for i in range(4)],
        )  # fmt: skip

    return {"train": table(160), "valid": table(40)}


def test_both_stages_learn_from_picks_and_their_scorers_serve(trained: Path, tmp_path: Path):
    tables, picks = market(), tmp_path / "pickscore"
    optimiser = OptimiserConfig(steps=20, lr=1e-3, warmup=3)
    train_pickscore(
        tables, trained, PickScoreConfig(optimiser=optimiser, batch_groups=16, evaluate_every=10), picks,
        TrainingRun("pickscore", 0),
    )  # fmt: skip
    config = RewardConfig(
        optimiser=OptimiserConfig(steps=60, lr=1e-2, warmup=5), batch_groups=16, embedding_dim=4, adaptive_hidden=16,
        evaluate_every=20, unknown_dropout=0.2, vision_lr_factor=0.5,
    )  # fmt: skip
    metrics = train_reward(tables, picks, config, tmp_path / "reward", TrainingRun("reward", 0))
    assert metrics["valid_gauc"] > 0.95
    table, rows = tables["valid"], torch.arange(40)
    model = PerFusionRM.from_pretrained(tmp_path / "reward")
    told = model.score(table.prompts, table.candidates(rows), table.features(rows), table.valid)
    assert group_auc(told, table.picked, table.valid).nanmean().item() == pytest.approx(metrics["valid_gauc"], abs=1e-6)
    blind = model.score(table.prompts, table.candidates(rows), None, table.valid)
    assert group_auc(blind, table.picked, table.valid).nanmean() < metrics["valid_gauc"] - 0.1
    scorer = blind_scorer(PickScore, picks, twin=True)
    assert scorer.name in ("pickscore[twin]", "vilt[twin]")
    found = row_scorer(scorer, table)(rows, None)
    auc = [group_auc(s, table.picked, table.valid) for s in (found, blind)]
    torch.testing.assert_close(auc[0], auc[1], equal_nan=True)  # SigLIP's bias ranks nothing


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_kept_of_frozen_encoders_changes_neither_scores_nor_gradients(kind: str):
    table, rows = market()["train"], torch.arange(8)
    model = build(backbone_of(kind), table.encoder, awake=True)
    wide = replace(table, pixels=torch.nn.functional.interpolate(table.pixels, scale_factor=2))
    results = []
    for kept in (NOTHING, model.freeze(wide.pixels, table.prompts)):
        batch = gather(wide, rows, table.prompts[:8], table.features(rows), model.blind, kept)
        assert batch.image.ndim == (4 if kept is NOTHING else 3)
        loss = group_loss(spread(model.score_candidates(batch), batch.valid), batch.picked, batch.valid).sum()
        model.zero_grad()
        loss.backward()
        results.append((loss.detach(), {name: p.grad.clone() for name, p in model.plugins.named_parameters()}))
    (plain, gradients), (cached, cached_gradients) = results
    torch.testing.assert_close(cached, plain)
    for name, gradient in gradients.items():
        torch.testing.assert_close(cached_gradients[name], gradient, rtol=1e-4, atol=1e-5)


def test_embeddings_are_refused_where_there_are_none():
    backbone = backbone_of("vilt")
    with pytest.raises(ConfigError, match="vilt reads prompt and picture together and has no embeddings"):
        backbone.scores(torch.zeros(1, 4), torch.zeros(1, 5, 32), torch.zeros(1, dtype=torch.long))
