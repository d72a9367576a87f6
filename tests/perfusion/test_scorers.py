"""Scorers: one protocol, the real aesthetic head's fixtures, twins that say so, and a judge that reads pictures."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from perfusion.config import ClipConfig, EvaluateConfig, ScorerName
from perfusion.errors import ConfigError, WeightsError
from perfusion.reward import twin
from perfusion.reward.clip import ClipBackbone
from perfusion.scorers import (
    SCORERS,
    AestheticHead,
    AestheticScore,
    ClipScore,
    PickScore,
    ScorerSources,
    build_scorers,
    fit_head,
    load_head,
)
from perfusion.scorers.embedding import cosines, picture_embeddings, prompt_embeddings

PROMPTS = ["dress, v-neck", "coat, loose-fit", "dress, v-neck"]


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    config = ClipConfig(width=32, layers=1, heads=2, patch=16, projection=16)
    built = twin(PROMPTS, 32, config)
    built.model.eval()
    return built


@pytest.fixture(scope="module")
def pixels():
    return torch.randint(256, (3, 4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_the_registry_holds_exactly_the_names_of_the_config():
    assert set(SCORERS) == set(ScorerName.__args__)


def test_cosines_equal_the_models_own_forward_pass(backbone, pixels):
    tokens = backbone.tokens(PROMPTS[:2])
    with torch.no_grad():
        out = backbone.model(pixel_values=backbone.prepare(pixels[:2].flatten(0, 1)), **tokens)
    expected = torch.stack([out.logits_per_text[0, :4], out.logits_per_text[1, 4:]])
    scores = PickScore(backbone, twin=True).score(PROMPTS[:2], pixels[:2])
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        ClipScore(backbone, twin=True).score(PROMPTS[:2], pixels[:2]),
        100 * expected / backbone.model.logit_scale.exp().detach(),
        rtol=1e-4, atol=1e-4,
    )  # fmt: skip


def test_embeddings_have_length_one_and_batching_changes_nothing(backbone, pixels, monkeypatch):
    whole = picture_embeddings(backbone, pixels.flatten(0, 1))
    torch.testing.assert_close(whole.norm(dim=-1), torch.ones(12))
    monkeypatch.setattr("perfusion.reward.frozen._PICTURES", 5)
    torch.testing.assert_close(picture_embeddings(backbone, pixels.flatten(0, 1)), whole)
    same = prompt_embeddings(backbone, PROMPTS)
    assert torch.equal(same[0], same[2])
    assert not torch.equal(same[0], same[1])


def test_scores_do_not_depend_on_the_neighbours(backbone, pixels):
    together = cosines(backbone, PROMPTS, pixels)
    for row in range(3):
        alone = cosines(backbone, PROMPTS[row : row + 1], pixels[row : row + 1, 2:3])
        assert alone.item() == pytest.approx(together[row, 2].item(), abs=1e-5)


@pytest.mark.parametrize("family", ["clip_score", "pickscore", "aesthetic"])
def test_padding_is_not_looked_at_and_scores_zero(backbone, pixels, family, monkeypatch):
    scorer = {
        "clip_score": lambda: ClipScore(backbone, twin=True),
        "pickscore": lambda: PickScore(backbone, twin=True),
        "aesthetic": lambda: AestheticScore(backbone, AestheticHead(16).eval(), twin=True),
    }[family]()
    valid = torch.arange(12).view(3, 4) % 3 > 0
    whole = scorer.score(PROMPTS, pixels)
    looked, start = [], ClipBackbone.picture_start
    monkeypatch.setattr(ClipBackbone, "picture_start", lambda self, part: looked.append(len(part)) or start(self, part))
    ragged = scorer.score(PROMPTS, pixels, valid=valid)
    assert looked == [int(valid.sum())]
    torch.testing.assert_close(ragged[valid], whole[valid], rtol=1e-5, atol=1e-5)
    assert not ragged[~valid].any()
    assert not scorer.score(PROMPTS, pixels, valid=torch.zeros_like(valid)).any()
    with pytest.raises(ValueError, match=r"need \(3, 4\) bool"):
        scorer.score(PROMPTS, pixels, valid=valid[:, :2])


def test_aesthetic_ignores_the_prompt(backbone, pixels):
    torch.manual_seed(1)
    scorer = AestheticScore(backbone, AestheticHead(16).eval(), twin=True)
    assert scorer.name == "aesthetic[twin]"
    assert torch.equal(scorer.score(PROMPTS, pixels), scorer.score(["x", "y", "z"], pixels))


def test_a_real_scorer_carries_the_real_name(backbone):
    assert ClipScore(backbone, twin=False).name == "clip_score"
    assert PickScore(backbone, twin=True).name == "pickscore[twin]"


def test_the_fitted_head_is_the_ridge_regression_in_the_layers_of_the_real_head():
    generator = torch.Generator().manual_seed(0)
    embeddings = functional.normalize(torch.randn(400, 16, generator=generator), dim=-1)
    truth = torch.randn(16, generator=generator)
    ratings = 5 + embeddings @ truth
    head = fit_head(embeddings, ratings, ridge=1e-9)
    torch.testing.assert_close(head(embeddings), ratings, rtol=1e-3, atol=1e-3)
    assert [tuple(p.shape) for p in head.parameters() if p.ndim == 2] == [
        (1024, 16), (128, 1024), (64, 128), (16, 64), (1, 16),
    ]  # fmt: skip
    heavy = fit_head(embeddings, ratings, ridge=1e6)(embeddings)
    assert heavy.std() < 1e-3
    assert heavy.mean().item() == pytest.approx(ratings.mean().item(), abs=1e-3)
    with pytest.raises(ValueError, match="one each"):
        fit_head(embeddings, ratings[:3])


def test_the_real_head_gives_the_published_numbers(shared):
    head = load_head(shared / "weights" / "sac+logos+ava1-l14-linearMSE.pth").double()
    zero, flat = torch.zeros(1, 768, dtype=torch.float64), torch.full((1, 768), 1 / math.sqrt(768), dtype=torch.float64)
    assert head(zero).item() == pytest.approx(5.236645844819847, abs=1e-12)
    assert head(flat).item() == pytest.approx(4.883284854377318, abs=1e-12)


def test_an_absent_or_foreign_head_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="no aesthetic head"):
        load_head(tmp_path / "absent.pth")
    (tmp_path / "text.pth").write_bytes(b"not weights")
    with pytest.raises(WeightsError, match="not the weights"):
        load_head(tmp_path / "text.pth")
    torch.save({"layers.0.weight": torch.zeros(3, 5)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="not the weights"):
        load_head(tmp_path / "other.pth")


def test_a_head_that_would_run_code_is_not_unpickled(tmp_path):
    class Sly:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"layers.0.weight": Sly()}, tmp_path / "sly.pth")
    with pytest.raises(WeightsError):
        load_head(tmp_path / "sly.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("bad", ["floats", "flat", "few prompts", "few users"])
def test_a_batch_that_does_not_fit_is_refused(backbone, pixels, bad):
    prompts, users = PROMPTS, torch.zeros(3, 2, dtype=torch.int64)
    if bad == "floats":
        pixels = pixels.float()
    elif bad == "flat":
        pixels = pixels.flatten(0, 1)
    elif bad == "few prompts":
        prompts = PROMPTS[:2]
    else:
        users = users[:1]
    with pytest.raises(ValueError, match=r"pictures are|prompts"):
        ClipScore(backbone, twin=True).score(prompts, pixels, users)


def test_scorers_are_built_from_folders_and_named_as_twins(backbone, pixels, tmp_path):
    backbone.save(tmp_path)
    sources = ScorerSources(tmp_path, tmp_path, tmp_path, True, pixels[0], torch.tensor([1.0, 2.0, 3.0, 9.0]))
    config = EvaluateConfig(scorers=("aesthetic", "clip_score", "pickscore"))
    scorers = build_scorers(config, sources)
    assert list(scorers) == ["aesthetic[twin]", "clip_score[twin]", "pickscore[twin]"]
    for scorer in scorers.values():
        assert scorer.score(PROMPTS, pixels).shape == (3, 4)
    with pytest.raises(ConfigError, match="both"):
        build_scorers(EvaluateConfig(aesthetic_head="head.pth"), sources)


def test_true_utility_reads_the_picture_and_asks_the_merchant():
    from perfusion.scorers.true_utility import TrueUtility
    from perfusion.world import Truth, render

    truth = Truth(users=3, seed=0, personal=True)
    codes = np.array([[0, 0, 0, 0, 0, 0, 0, 0], [2, 1, 1, 1, 3, 4, 2, 1]])
    pixels = torch.from_numpy(render(codes)).permute(0, 3, 1, 2)
    users, prompts = ["m00000", "m00002"], ["dress, v-neck", "dress"]
    judged = TrueUtility(truth).judge(users, prompts, pixels)
    np.testing.assert_allclose(judged["true_utility"], truth.utility(users, prompts, codes).total)
    parts = judged["prompt_fit"] + judged["everybody"] + judged["personal"]
    np.testing.assert_allclose(parts, judged["true_utility"])
    assert judged["prompt_fit"][0] == 0 > judged["prompt_fit"][1]
    assert judged.loc[1, ["shows_type", "shows_palette", "shows_pattern"]].tolist() == ["coat", "blue", "gingham"]
    assert (judged["cleanness_db"] > 50).all()
