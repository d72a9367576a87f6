"""PerFusionPipeline: what a call promises, and loading in a clean process from another directory."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_pipeline import A, B, build, draw, seeds

from perfusion.errors import DataError
from perfusion.generation.codec import PatchCodec
from perfusion.generation.denoiser import Denoiser
from perfusion.generation.text import build_tokenizer, embed_prompts


def test_before_training_every_user_gets_the_plain_pictures_bit_for_bit():
    pipe = build(trained=False)
    plain = draw(pipe, "dress")
    assert torch.equal(draw(pipe, "dress", A), plain)
    assert torch.equal(draw(pipe, "dress", B), plain)
    # a weight of its own makes the decoder's batch larger, which may round otherwise
    assert torch.allclose(draw(pipe, "dress", A, user_scale=4.0), plain, atol=1e-5)


def test_users_get_different_pictures_and_a_blind_call_none_of_them():
    pipe = build(trained=True)
    blind, a, b = (draw(pipe, "dress", user) for user in (None, A, B))
    assert (a - b).abs().max() > 1e-3
    assert (a - blind).abs().max() > 1e-3
    assert torch.equal(draw(build(trained=False), "dress"), blind)  # user-blind = no adaptive network
    assert torch.equal(draw(pipe, "dress", A, user_scale=0.0), blind)


def test_a_pictures_neighbours_do_not_matter():
    pipe = build(trained=True)
    both = draw(pipe, ["dress", "coat"], torch.stack([A, B]), (1, 2, 3, 4))
    assert torch.allclose(both[:2], draw(pipe, "dress", A, (1, 2)), atol=1e-5)
    assert torch.allclose(both[2:], draw(pipe, "coat", B, (3, 4)), atol=1e-5)


@pytest.mark.parametrize(
    ("guidance", "user"), [(1.0, None), (2.0, None), (2.0, 2.0), (2.0, 4.0), (1.0, 1.0), (0.0, 2.0), (0.0, 0.0)]
)
def test_the_shared_passes_are_the_formula(guidance, user):
    """e0 + g (text - e0) + w (user - text), each term from its own plain forward."""
    pipe = build(trained=True)
    z = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    t = torch.tensor(700)
    none, text = (embed_prompts(pipe.tokenizer, pipe.text_encoder, [p]).expand(2, -1, -1) for p in ("", "dress"))
    with torch.no_grad():
        user_map = pipe.pan.user_map(torch.stack([A, B]))
        residuals = pipe.pan(z, t, text, user_map)
        e0, e_text = pipe.unet(z, t, none).sample, pipe.unet(z, t, text).sample
        e_user = pipe.unet(
            z, t, text, down_block_additional_residuals=residuals.skips, mid_block_additional_residual=residuals.mid
        ).sample
        expected = e0 + guidance * (e_text - e0) + (0.0 if user is None else user * (e_user - e_text))
        found = Denoiser(
            pipe.unet, pipe.pan, none, text, None if user is None else user_map, guidance, user or 0.0
        )(z, t)  # fmt: skip
    assert torch.allclose(found, expected, atol=1e-5)


def test_users_may_come_as_columns():
    pipe = build(trained=True)
    assert torch.equal(draw(pipe, "dress", {"user_id": "a", "style": "x"}), draw(pipe, "dress", A))
    assert torch.equal(draw(pipe, "dress", {"user_id": "new", "style": "x"}), draw(pipe, "dress", torch.tensor([1, 0])))


def test_wrong_users_are_refused():
    pipe = build(trained=True)
    with pytest.raises(DataError, match="3 rows for 2 prompts"):
        pipe(["dress", "coat"], torch.stack([A, A, B]), num_images_per_prompt=1)
    pipe.features = None
    with pytest.raises(DataError, match=r"features.json"):
        pipe("dress", {"user_id": "a", "style": "x"})
    pipe.pan = None
    with pytest.raises(DataError, match="without an adaptive network"):
        pipe("dress", A)


def test_pil_pictures_are_the_tensors():
    pipe = build(trained=True)
    pictures = pipe("dress", A, num_images_per_prompt=2, generator=seeds(1, 2)).images
    tensors = draw(pipe, "dress", A)
    assert [picture.size for picture in pictures] == [(16, 16)] * 2
    assert np.array_equal(np.asarray(pictures[1]), (tensors[1] * 255).round().byte().permute(1, 2, 0).numpy())


def test_saved_it_loads_and_draws_the_same_in_a_clean_process_elsewhere(tmp_path):
    pipe = build(trained=True)
    pipe.save_pretrained(tmp_path / "pipe")
    index = json.loads((tmp_path / "pipe" / "model_index.json").read_text())
    assert index["pan"] == ["perfusion.generation.pan", "PersonalAdaptiveNetwork"]
    expected = draw(pipe, "dress", {"user_id": "b", "style": "y"})
    program = (
        "import sys, torch\n"
        "from perfusion.generation import PerFusionPipeline\n"
        "pipe = PerFusionPipeline.from_pretrained(sys.argv[1])\n"
        "seeds = [torch.Generator().manual_seed(n) for n in (1, 2)]\n"
        "user = {'user_id': 'b', 'style': 'y'}\n"
        "images = pipe('dress', user, generator=seeds, output_type='pt', num_images_per_prompt=2).images\n"
        "torch.save(images, sys.argv[2])\n"
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    subprocess.run(
        [sys.executable, "-W", "error", "-c", program, str(tmp_path / "pipe"), str(tmp_path / "out.pt")], cwd=elsewhere,
        env={"PYTHONPATH": str(Path(__file__).resolve().parents[2]), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin",
             "OMP_NUM_THREADS": str(torch.get_num_threads())},
        check=True, timeout=300,
    )  # fmt: skip
    # mapped weights lie at other addresses, which may choose another kernel: equal to rounding, not to the bit
    assert torch.allclose(torch.load(tmp_path / "out.pt", weights_only=True), expected, atol=1e-5)


def test_files_tell_nothing_of_what_was_asked_before(tmp_path):
    pipe = build(trained=True)
    written = []
    for _ in range(2):
        pipe.save_pretrained(tmp_path)
        written.append({file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()})
        draw(pipe, "dress", A)
    assert written[0] == written[1]


def test_the_order_of_a_prompts_phrases_is_only_words_to_the_tokenizer():
    tokenizer = build_tokenizer(["dress", "long sleeves"], 8)
    assert tokenizer("Dress,  long sleeves").input_ids == tokenizer("dress long sleeves").input_ids
    assert tokenizer("spaceship").input_ids[1] == tokenizer.unk_token_id


def test_the_codec_rebuilds_flat_patches_exactly():
    """As many components as a patch has numbers: the linear code loses nothing."""
    pixels = torch.randint(256, (8, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    codec = PatchCodec(2, 12, 8, 1)
    codec.fit_patches(pixels, 0.5)
    x = pixels.float() / 127.5 - 1
    z = codec.encode(x).latent_dist.mode()
    assert z.shape == (8, 12, 8, 8)
    assert z.square().mean().item() == pytest.approx(1.0, rel=1e-3)
    assert torch.allclose(codec.decode(z).sample, x, atol=1e-4)
