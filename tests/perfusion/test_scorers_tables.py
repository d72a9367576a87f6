"""Scoring a table: the same numbers as group by group, and nothing computed twice."""

import pandas as pd
import pytest
import torch

from perfusion.config import ClipConfig, RewardConfig
from perfusion.data import FeatureEncoder, GroupTable
from perfusion.reward import PerFusionRM, frozen, twin
from perfusion.reward.clip import ClipBackbone
from perfusion.reward.model import VARIANTS
from perfusion.scorers import AestheticHead, AestheticScore, ClipScore, PersonalScore, PickScore
from perfusion.scorers.tables import row_scorer

PROMPTS = ["dress, v-neck", "coat, loose-fit", "dress, v-neck", "coat"]
USERS = pd.DataFrame({"user_id": ["a", "b"], "style": ["x", "y"]})
INDEX = torch.tensor([[3, 1, 0], [1, 5, 3], [3, 6, 1], [6, 0, 0]])
VALID = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 1, 1], [1, 0, 0]]).bool()
SHOWN = 4  # pictures 1, 3, 5, 6; picture 0 stands at padding, 2 and 4 belong to another split


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return twin(PROMPTS, 16, ClipConfig(width=32, layers=2, heads=2, patch=8, projection=16))


@pytest.fixture(scope="module")
def table() -> GroupTable:
    encoder = FeatureEncoder.fit(USERS)
    pixels = torch.randint(256, (7, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return GroupTable(
        pixels, INDEX, VALID, VALID & (torch.arange(3) == 0), torch.tensor([0, 1, 1, 0]), encoder.transform(USERS),
        PROMPTS, list("pqrs"), ["a", "b"], encoder, [f"i{row}" for row in range(7)],
    )  # fmt: skip


def personal(backbone, table: GroupTable, variant: str) -> PersonalScore:
    torch.manual_seed(1)
    config = RewardConfig(variant=variant, embedding_dim=4, adaptive_hidden=8)
    model = PerFusionRM.from_backbone(backbone, table.encoder.cardinalities, config).eval()
    for parameter in model.plugins.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return PersonalScore(model)


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("name", [*VARIANTS, "clip", "pickscore", "aesthetic"])
def test_rows_of_a_table_score_as_they_do_alone(backbone, table: GroupTable, name: str, passes: int):
    if name in VARIANTS:
        scorer = personal(backbone, table, name)
    elif name == "aesthetic":
        scorer = AestheticScore(backbone, AestheticHead(16).eval(), twin=True)
    else:
        scorer = {"clip": ClipScore, "pickscore": PickScore}[name](backbone, twin=True)
    rows = torch.arange(4)
    score = row_scorer(scorer, table, passes)
    for users in (table.features(rows), table.features(rows).flip(0)):
        expected = scorer.score(PROMPTS, table.candidates(rows), users, VALID)
        found = torch.cat([score(part, users[part]) for part in rows.split(3)])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert not found[~VALID].any()


def test_a_user_blind_scorer_looks_at_each_picture_and_prompt_once(backbone, table: GroupTable, monkeypatch):
    looked, read = [], []
    start, embeds = ClipBackbone.picture_start, ClipBackbone.prompt_embeds
    monkeypatch.setattr(ClipBackbone, "picture_start", lambda self, part: looked.append(len(part)) or start(self, part))

    def encoded(self, input_ids, attention_mask):
        read.append(len(input_ids))
        return embeds(self, input_ids, attention_mask)

    monkeypatch.setattr(ClipBackbone, "prompt_embeds", encoded)
    score = row_scorer(PickScore(backbone, twin=True), table)
    for rows in (torch.arange(2), torch.arange(2, 4), torch.arange(4)):
        score(rows, None)
    assert sum(looked) == SHOWN
    assert sum(read) == len(set(PROMPTS))


def test_what_is_looked_at_once_is_not_kept(backbone, table: GroupTable, monkeypatch):
    kept = []
    monkeypatch.setattr(
        PerFusionRM, "freeze", lambda self, pixels, prompts: kept.append(len(pixels)) or frozen.Frozen()
    )
    scorer = personal(backbone, table, "full")
    once = GroupTable(**{**vars(table), "valid": table.valid & (torch.arange(4) == 1)[:, None]})
    row_scorer(scorer, once)
    assert kept == []
    row_scorer(scorer, once, passes=2)
    row_scorer(scorer, table)  # pictures 1, 3 and 6 stand in several groups
    assert kept == [3, SHOWN]
