"""Prompts that nobody planned for reach the models: nothing in them, ten kilobytes, other scripts."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from perfusion.config import ClipConfig, OptimiserConfig, RewardConfig
from perfusion.data import FeatureEncoder
from perfusion.reward import PerFusionRM, twin

ODD = ["", " ", ", ,", "dress, red, " * 900, "裙" * 4000, "a\u0301 👗 ½", "\0", "<|endoftext|> dress"]


@pytest.fixture(scope="module")
def model() -> PerFusionRM:
    torch.manual_seed(0)
    backbone = twin(["dress", "red", "coat"], 16, ClipConfig(width=32, layers=2, heads=4, patch=8, projection=24))
    encoder = FeatureEncoder.fit(pd.DataFrame({"user_id": ["a", "b"], "style": ["x", "y"]}))
    config = RewardConfig(optimiser=OptimiserConfig(steps=3, lr=1e-2), embedding_dim=4, adaptive_hidden=16)
    return PerFusionRM.from_backbone(backbone, encoder.cardinalities, config, encoder).eval()


@pytest.mark.parametrize("prompt", ODD)
def test_any_prompt_has_a_score_that_its_neighbours_do_not_change(model: PerFusionRM, prompt: str) -> None:
    pixels = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    alone = model.score_pictures([prompt], pixels[:2], torch.tensor([0, 0]))
    beside = model.score_pictures(["dress, red", prompt], pixels[[2, 0, 1]], torch.tensor([0, 1, 1]))
    assert torch.isfinite(alone).all()
    torch.testing.assert_close(beside[1:], alone)
    assert alone[0] != alone[1]


def test_a_prompt_beyond_the_towers_length_is_read_from_its_beginning(model: PerFusionRM) -> None:
    pixels = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    both = [model.score_pictures([p], pixels, torch.tensor([0, 0])) for p in ("dress, " * 900, "dress, " * 1800)]
    assert torch.equal(*both)


def test_an_unknown_user_has_the_unknown_id_and_a_score(model: PerFusionRM) -> None:
    """And how many they are can be counted from the codes."""
    assert model.encoder is not None
    asked = pd.DataFrame({"user_id": ["a", "stranger", None], "style": ["x", "unheard of", None]})
    codes = model.encoder.transform(asked)
    assert (codes == 0).all(dim=1).tolist() == [False, True, True]
    pixels = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8).expand(3, -1, -1, -1)
    scores = model.score_pictures(["dress"] * 3, pixels, torch.arange(3), codes)
    assert torch.isfinite(scores).all()
    assert scores[1] == scores[2]
