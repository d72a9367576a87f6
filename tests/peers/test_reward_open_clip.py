"""PerFusionRM that knows nothing of its users yet, against open_clip's own encoders with the same weights."""

import pandas as pd
import torch
from torch.nn import functional

from perfusion.config import ClipConfig, RewardConfig
from perfusion.data import FeatureEncoder
from perfusion.reward import PerFusionRM, twin
from perfusion.scorers.open_clip_towers import open_clip_twin

PROMPTS = ["dress, red", "coat", "long sleeves, blue"]


def test_before_training_any_user_gets_open_clips_scores():
    """exp(s) times the cosine (Eq. 6); other kernels than transformers', hence to rounding and not to the bit."""
    torch.manual_seed(0)
    backbone = twin(
        ["dress", "coat", "red", "blue", "long sleeves"], 16, ClipConfig(width=32, layers=2, heads=4, patch=8)
    )
    for name, parameter in backbone.model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    users = pd.DataFrame({"user_id": ["a", "b", "c"], "style": ["x", "y", None]})
    encoder = FeatureEncoder.fit(users)
    model = PerFusionRM.from_backbone(backbone, encoder.cardinalities, RewardConfig(), encoder).eval()
    pixels = torch.randint(256, (3, 4, 3, 16, 16), dtype=torch.uint8)
    towers = open_clip_twin(backbone)
    text = torch.stack([towers.embed_prompts(PROMPTS)[prompt] for prompt in PROMPTS])
    pictures = towers.embed_pictures(pixels.flatten(0, 1)).view(3, 4, -1)
    expected = backbone.log_scale.exp() * functional.cosine_similarity(text[:, None], pictures, dim=-1)
    found = model.score(PROMPTS, pixels, encoder.transform(users))
    torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-5)
    assert found.std() > 0.01
