"""Pictures of the sample marketplace: what a code says, the picture shows, and the judge reads it back."""

import numpy as np
import pytest
import torch

from perfusion.world import FAMILIES, corpus, render
from perfusion.world.garments import CODES, SIZE, all_codes
from perfusion.world.judge import read


def drawn(n: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.stack([random.integers(count, size=n) for count in CODES], axis=1)


def as_pixels(pictures: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2)


def test_all_combinations_are_34560_and_distinct():
    codes = all_codes()
    assert codes.shape == (34560, 8)
    sample = codes[::97]
    pictures = render(sample).reshape(len(sample), -1)
    assert len(np.unique(pictures, axis=0)) == len(sample)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_each_attribute_is_visible_whatever_the_others_are(family):
    place = list(FAMILIES).index(family)
    codes = drawn(400)
    changed = codes.copy()
    changed[:, place] = (codes[:, place] + 1) % CODES[place]
    difference = np.abs(render(codes).astype(int) - render(changed)).max(axis=3)  # (n, S, S)
    visible = (difference > 40).sum((1, 2))  # pixels that change by more than 40 of 255 grey levels
    assert visible.min() >= 12, (family, codes[visible.argmin()])


@pytest.mark.parametrize("pattern", range(CODES[5]))
def test_patterns_repeat_every_eight_pixels(pattern):
    pictures = render([[0, 1, 0, 1, 0, pattern, 0, 0]])[0].astype(int)
    skirt = pictures[30:40, 16:24]
    assert np.array_equal(skirt, pictures[30:40, 24:32])


def test_garments_stay_inside_the_picture():
    codes = all_codes()[::41]
    background = render(codes)[:, 0, 0]
    assert (background == background[0]).all()
    assert (render(codes)[:, -1] == background[0]).all()


def test_codes_outside_a_family_are_refused_with_its_name():
    with pytest.raises(ValueError, match="'palette' has 8 values"):
        render([[0, 0, 0, 0, 8, 0, 0, 0]])
    with pytest.raises(ValueError, match=r"want \(n, 8\)"):
        render([[0, 0]])


def test_judge_reads_every_rendered_garment():
    codes = all_codes()[np.random.default_rng(1).permutation(34560)[:500]]
    reading = read(as_pixels(render(codes)))
    assert np.array_equal(reading.codes, codes)
    assert reading.cleanness_db.min() > 58


def test_judge_is_the_nearest_of_all_renders():
    """The factored search gives the same answer as comparing with every picture."""
    every = render(all_codes()).reshape(34560, -1)
    noise = np.random.default_rng(2).normal(0, 90, size=(3, SIZE, SIZE, 3))
    seen = np.clip(render(drawn(3, 5)) * 0.5 + 60 + noise, 0, 255).astype(np.uint8)
    reading = read(as_pixels(seen))
    for picture, code in zip(seen.reshape(3, -1), reading.codes, strict=True):
        error = [np.square(part.astype(np.float32) - picture).sum(1) for part in np.array_split(every, 40)]
        assert np.array_equal(all_codes()[np.concatenate(error).argmin()], code)


def test_cleanness_is_the_signal_to_noise_ratio():
    picture = render(drawn(1)).astype(int)
    shifted = as_pixels((picture + np.where(picture > 127, -10, 10)).astype(np.uint8))
    assert read(shifted).cleanness_db == pytest.approx(20 * np.log10(255 / 10), abs=1e-6)


def test_judge_reads_pictures_of_another_size():
    codes = drawn(20, 3)
    large = torch.nn.functional.interpolate(as_pixels(render(codes)).float(), scale_factor=2, mode="nearest")
    assert np.array_equal(read(large.to(torch.uint8)).codes, codes)


def test_judge_of_nothing_is_empty():
    assert read(torch.zeros(0, 3, SIZE, SIZE, dtype=torch.uint8)).codes.shape == (0, 8)


def test_corpus_is_a_function_of_its_arguments():
    first, again, other = corpus(50, 0), corpus(50, 0), corpus(50, 1)
    assert torch.equal(first.pixels, again.pixels)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.labels, other.labels)
    assert np.array_equal(read(first.pixels).codes, first.labels.numpy())
    assert corpus(3, 0, size=64).pixels.shape == (3, 3, 64, 64)


def test_captions_say_what_the_picture_shows():
    pictures = corpus(20, 0)
    generator = torch.Generator().manual_seed(0)
    full = pictures.caption(3, generator, keep=1.0).split(", ")
    assert sorted(full) == sorted(pictures.phrases(3))
    assert len(full) == 8
    assert len(pictures.caption(3, generator, keep=0.0).split(", ")) == 1
    lengths = [len(pictures.caption(row % 20, generator, keep=0.5).split(", ")) for row in range(400)]
    assert 3.6 < np.mean(lengths) < 4.4
