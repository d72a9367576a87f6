"""CLIP-H and HPS against open_clip's own encoders, bit for bit, through files as they are published."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch
from torch.nn import functional

from perfusion.errors import WeightsError
from perfusion.scorers.clip_h import CLIP_H, ClipHScore
from perfusion.scorers.hpsv1 import HPSV1, HpsV1Score
from perfusion.scorers.hpsv2 import HPSV2, HpsV2Score
from perfusion.scorers.open_clip_towers import towers_of

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
PROMPTS = ["a dress, v-neck", ""]


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.randint(256, (2, 3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def model(quick: bool) -> open_clip.CLIP:
    torch.manual_seed(1)
    return open_clip.CLIP(**TINY, quick_gelu=quick).eval()


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("scorer", [ClipHScore, HpsV2Score])
def test_scores_are_those_of_open_clips_encoders(tmp_path: Path, pixels: torch.Tensor, scorer, quick: bool) -> None:
    theirs = model(quick)
    torch.save({"state_dict": theirs.state_dict(), "epoch": 3}, tmp_path / "weights.pt")
    towers = towers_of({**TINY, "quick_gelu": quick}, tmp_path / "weights.pt", CLIP_H)
    mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN)[:, None, None]
    std = torch.tensor(open_clip.OPENAI_DATASET_STD)[:, None, None]
    with torch.no_grad():
        pictures = theirs.encode_image((pixels.flatten(0, 1).float() / 255 - mean) / std)
        text = theirs.encode_text(open_clip.SimpleTokenizer()(PROMPTS))
    assert torch.equal(towers.embed_pictures(pixels.flatten(0, 1)), pictures)
    found = towers.embed_prompts(PROMPTS)
    assert torch.equal(torch.stack([found[prompt] for prompt in sorted(PROMPTS)]), text[[1, 0]])
    expected = functional.cosine_similarity(text[:, None], pictures.view(2, 3, -1), dim=-1)
    torch.testing.assert_close(scorer(towers, twin=False).score(PROMPTS, pixels), expected, rtol=0, atol=1e-6)


def test_a_file_as_hps_v1_and_openai_write_it_is_read(tmp_path: Path, pixels: torch.Tensor) -> None:
    theirs = model(quick=True)
    state = {name: value.half() for name, value in theirs.state_dict().items()}
    numbers = {name: torch.tensor(224) for name in ("input_resolution", "context_length", "vocab_size")}
    torch.save({"state_dict": {**state, **numbers}}, tmp_path / "hpc.pth")
    towers = towers_of({**TINY, "quick_gelu": True}, tmp_path / "hpc.pth", HPSV1)
    whole = HpsV1Score(towers, twin=False)
    assert whole.name == "hpsv1"
    halved = model(quick=True)
    halved.load_state_dict({name: value.float() for name, value in state.items()})
    assert all(torch.equal(value, halved.state_dict()[name]) for name, value in towers.model.state_dict().items())
    assert whole.score(PROMPTS, pixels).abs().max() <= 1


def test_the_real_architectures_are_those_of_the_published_weights() -> None:
    from perfusion.scorers import clip_h, hpsv1, hpsv2

    large, huge = (open_clip.get_model_config(name) for name in (hpsv1.ARCHITECTURE, hpsv2.ARCHITECTURE))
    assert clip_h.ARCHITECTURE == hpsv2.ARCHITECTURE
    assert (large["embed_dim"], large["vision_cfg"]["layers"], large["quick_gelu"]) == (768, 24, True)
    assert (huge["embed_dim"], huge["vision_cfg"]["layers"], huge.get("quick_gelu", False)) == (1024, 32, False)


def test_weights_of_another_model_are_refused_with_the_remedy(tmp_path: Path) -> None:
    torch.save({"state_dict": model(quick=False).state_dict()}, tmp_path / "HPS_v2_compressed.pt")
    larger = {**TINY, "embed_dim": 24}
    with pytest.raises(WeightsError, match=r"not the weights of this model .*download HPS_v2_compressed\.pt of xswu"):
        towers_of(larger, tmp_path / "HPS_v2_compressed.pt", HPSV2)
