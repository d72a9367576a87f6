"""The frozen scorers: twins that equal our CLIP, weights from files, and every failing load a clear sentence."""

import hashlib
import io

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from perfusion.config import ClipConfig, EvaluateConfig, ScorerWeights
from perfusion.data.pictures import decode_pixels
from perfusion.errors import WeightsError
from perfusion.reward import twin
from perfusion.scorers import SCORERS, ScorerSources, build_scorers
from perfusion.scorers.clip_h import CLIP_H
from perfusion.scorers.embedding import cosines
from perfusion.scorers.hpsv1 import HPSV1
from perfusion.scorers.imagereward import imagereward_twin
from perfusion.scorers.open_clip_towers import open_clip_twin
from perfusion.scorers.weights import load_weights, locate, read_state

PROMPTS = ["dress, v-neck", "coat, loose-fit"]
FROZEN = ("clip_h", "imagereward", "hpsv1", "hpsv2", "hpsv2.1", "pickscore_frozen")


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    built = twin(PROMPTS, 32, ClipConfig(width=32, layers=2, heads=2, patch=16, projection=16))
    built.model.eval()
    return built


@pytest.fixture(scope="module")
def pixels():
    return torch.randint(256, (2, 3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def scorers(backbone, pixels, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    backbone.save(folder)
    ratings = torch.tensor([1.0, 9.0, 4.0, 2.0, 7.0, 3.0])
    sources = ScorerSources(folder, folder, folder, True, pixels.flatten(0, 1), ratings)
    names = (*FROZEN, "aesthetic", "clip_score", "pickscore")
    return build_scorers(EvaluateConfig(scorers=names), sources)


def test_open_clips_class_with_our_weights_gives_our_cosines(backbone, pixels):
    prompts = [*PROMPTS[:1], "v-neck, coat, nobody knows these words"]
    theirs = cosines(open_clip_twin(backbone), prompts, pixels)
    torch.testing.assert_close(theirs, cosines(backbone, prompts, pixels), rtol=0, atol=1e-5)


def test_every_frozen_scorer_is_a_twin_by_default_and_says_so(scorers, pixels):
    assert {f"{name}[twin]" for name in FROZEN} < set(scorers)
    for scorer in scorers.values():
        scores = scorer.score(PROMPTS, pixels)
        assert scores.shape == (2, 3)
        assert scores.dtype == torch.float32
        assert scores.isfinite().all()
        assert scores.unique().numel() == 6  # a judge tells pictures apart


@pytest.mark.parametrize("name", FROZEN)
def test_padding_is_left_out_and_neighbours_do_not_matter(scorers, pixels, name):
    scorer = scorers[f"{name}[twin]"]
    valid = torch.tensor([[True, False, True], [False, True, False]])
    whole, ragged = scorer.score(PROMPTS, pixels), scorer.score(PROMPTS, pixels, valid=valid)
    torch.testing.assert_close(ragged[valid], whole[valid], rtol=1e-4, atol=1e-5)
    assert not ragged[~valid].any()
    assert not scorer.score(PROMPTS, pixels, valid=torch.zeros_like(valid)).any()


def test_the_twin_of_imagereward_is_the_same_each_time_and_fits_its_ratings(backbone):
    pictures = torch.randint(256, (40, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    ratings = pictures.float().mean((1, 2, 3))
    ratings = 1 + 9 * (ratings - ratings.min()) / (ratings.max() - ratings.min())
    first, second = (imagereward_twin(backbone.tokenizer, pictures, ratings) for _ in range(2))
    scores = first.score([""], pictures[None])
    assert torch.equal(scores, second.score([""], pictures[None]))
    assert torch.corrcoef(torch.stack([scores[0], ratings]))[0, 1] > 0.8


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(image: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(image, "JPEG", exif=exif)


PICTURES = {
    "cmyk": lambda: encoded(Image.new("CMYK", (40, 30), (10, 200, 30, 0)), "JPEG"),
    "rgba": lambda: encoded(Image.new("RGBA", (20, 30), (10, 200, 30, 90)), "PNG"),
    "grey": lambda: encoded(Image.new("L", (30, 30), 99), "PNG"),
    "16 bit": lambda: encoded(Image.fromarray(np.full((9, 9), 40000, np.uint16)), "PNG"),
    "turned by EXIF": lambda: turned(Image.new("RGB", (40, 20), (10, 200, 30))),
    "one pixel": lambda: encoded(Image.new("RGB", (1, 1), (10, 200, 30)), "PNG"),
    "20 megapixels": lambda: encoded(Image.new("RGB", (5000, 4000), (10, 200, 30)), "PNG", compress_level=1),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_a_picture_as_it_comes_is_scored(scorers, kind):
    pixels = decode_pixels([(kind, PICTURES[kind]())], 1, 32)[None]
    for scorer in scorers.values():
        assert scorer.score(PROMPTS[:1], pixels).isfinite().all(), scorer.name


@pytest.mark.parametrize("prompt", ["", " ", "dress, " * 1500, "x" * 10_000, "Kleid \U0001f457, 服装"])
def test_a_prompt_as_it_comes_is_scored(scorers, pixels, prompt):
    for scorer in scorers.values():
        assert scorer.score([prompt], pixels[:1]).isfinite().all(), scorer.name


@pytest.mark.parametrize("name", ["clip_h", "imagereward", "hpsv1", "hpsv2", "hpsv2.1"])
def test_absent_weights_name_path_parameter_and_remedy(name, tmp_path):
    for path in (tmp_path, tmp_path / "absent.pt"):
        config = EvaluateConfig(weights={name: ScorerWeights(path=str(path))})
        with pytest.raises(WeightsError, match=rf"(?s){path.name}.*download .* set evaluate\.weights\.{name}"):
            SCORERS[name](config, None)


def test_a_file_is_found_by_path_and_by_folder_and_its_hash_is_checked(tmp_path):
    file = tmp_path / "hpc.pth"
    torch.save({"state_dict": {"module.a": torch.ones(2)}}, file)
    right = hashlib.sha256(file.read_bytes()).hexdigest()
    assert locate(ScorerWeights(path=str(file), sha256=right.upper()), HPSV1) == file
    assert locate(ScorerWeights(path=str(tmp_path)), HPSV1) == file
    assert torch.equal(read_state(file, HPSV1)["a"], torch.ones(2))
    with pytest.raises(WeightsError, match=r"sha256 is .* asks for 00"):
        locate(ScorerWeights(path=str(file), sha256="00"), HPSV1)


def test_safetensors_are_read_and_foreign_files_refused(tmp_path):
    save_file({"a": torch.ones(2, dtype=torch.float16)}, tmp_path / "open_clip_model.safetensors")
    path = locate(ScorerWeights(path=str(tmp_path)), CLIP_H)
    assert read_state(path, CLIP_H)["a"].dtype == torch.float32
    with pytest.raises(WeightsError, match=r"not the weights of this model .*Missing key"):
        load_weights(torch.nn.Linear(2, 2), {"a": torch.ones(2)}, path, CLIP_H)
    for content in (b"", b"not weights", b"PK\x03\x04 cut"):
        (tmp_path / "cut.pt").write_bytes(content)
        (tmp_path / "cut.safetensors").write_bytes(content)
        for name in ("cut.pt", "cut.safetensors"):
            with pytest.raises(WeightsError, match="read safely"):
                read_state(tmp_path / name, CLIP_H)
    torch.save({"step": 3}, tmp_path / "numbers.pt")
    with pytest.raises(WeightsError, match="not tensors by name"):
        read_state(tmp_path / "numbers.pt", CLIP_H)


def test_a_checkpoint_that_would_run_code_is_not_unpickled(tmp_path):
    class Sly:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"a": Sly()}, tmp_path / "sly.pt")
    with pytest.raises(WeightsError, match="read safely"):
        read_state(tmp_path / "sly.pt", CLIP_H)
    assert not (tmp_path / "ran").exists()
