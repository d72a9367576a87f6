"""Looks measured from pixels, and the corpus made of a dataset's own photographs."""

import io

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from perfusion.data import dataset_corpus, read_dataset
from perfusion.data.appearance import APPEARANCE, COLOURS, appearance, colour_names, garment_mask, to_lab
from perfusion.data.photographs import noun_family
from perfusion.errors import DataError


def on_paper(colour: tuple[int, int, int], size: int = 48, paper: int = 245) -> np.ndarray:
    """A square of cloth on a light table."""
    pixels = np.full((size, size, 3), paper, np.uint8)
    pixels[size // 4 : -size // 4, size // 4 : -size // 4] = colour
    return pixels


def looks(*pictures: np.ndarray) -> list[dict[str, str | None]]:
    codes = appearance(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2))
    return [
        {
            name: values[code] if code >= 0 else None
            for (name, values), code in zip(APPEARANCE.items(), row, strict=True)
        }
        for row in codes.tolist()
    ]


@pytest.mark.parametrize(
    ("colour", "name"),
    [
        ((20, 20, 22), "black"), ((130, 130, 130), "grey"), ((252, 252, 252), "white"), ((190, 20, 30), "red"),
        ((240, 140, 30), "orange"), ((240, 210, 40), "yellow"), ((40, 130, 60), "green"), ((30, 150, 150), "teal"),
        ((50, 90, 200), "blue"), ((20, 25, 70), "navy"), ((130, 50, 160), "purple"), ((240, 140, 180), "pink"),
        ((110, 70, 40), "brown"), ((215, 195, 160), "beige"),
    ],
)  # fmt: skip
def test_plain_cloth_gets_its_colours_name(colour, name):
    paper = 60 if name == "white" else 245
    assert looks(on_paper(colour, paper=paper))[0]["colour"] == name


def test_lab_of_known_colours():
    """White is (100, 0, 0); pure red is (53.24, 80.09, 67.20) in CIELAB under D65."""
    lab = to_lab(np.array([[255, 255, 255], [255, 0, 0], [0, 0, 0]], np.uint8))
    assert lab == pytest.approx(np.array([[100, 0, 0], [53.24, 80.09, 67.20], [0, 0, 0]]), abs=0.05)


def test_mask_finds_the_cloth_and_falls_back_to_the_middle():
    found = garment_mask(to_lab(np.stack([on_paper((200, 30, 40)), np.full((48, 48, 3), 128, np.uint8)])))
    assert found[0].sum() == pytest.approx(24 * 24, rel=0.1)
    assert found[1][24, 24]
    assert not found[1][:3].any()
    assert found[1].mean() > 0.3


def test_patterns_brightness_and_colourfulness():
    striped = on_paper((20, 20, 60))
    striped[14:34:4, 12:36] = (230, 150, 40)
    plain, patterned, vivid = looks(on_paper((20, 20, 60)), striped, on_paper((220, 20, 30)))
    assert plain["pattern"] == "plain"
    assert patterned["pattern"] == "patterned"
    assert plain["brightness"] == "dark"
    assert vivid["colourfulness"] == "vivid"
    assert looks(on_paper((100, 100, 100)))[0]["colourfulness"] == "muted"


def test_size_hardly_matters():
    large, small = looks(on_paper((40, 130, 60), size=96))[0], looks(on_paper((40, 130, 60), size=32))[0]
    assert large == small


def test_one_pixel_has_looks_too():
    assert looks(np.full((4, 4, 3), (190, 20, 30), np.uint8))[0]["colour"] == "red"


def test_every_colour_name_can_come_out():
    cube = np.stack(np.meshgrid(*[np.arange(0, 256, 15)] * 3), -1).reshape(-1, 3).astype(np.uint8)
    assert set(colour_names(to_lab(cube)).tolist()) == set(range(len(COLOURS)))


def test_colours_agree_with_an_independent_measurement(shared):
    """`color_1` was measured by other code with another mask: .73 of the pictures agree, .86 when `color_2` counts too.

    Most of the rest is grey against black, white or blue, where the two masks cut the garment differently.
    """
    table = pd.read_parquet(shared / "data" / "clothing_64.parquet", columns=["img64", "color_1", "color_2"])[::3]
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in table["img64"]])
    found = np.array(COLOURS)[appearance(torch.from_numpy(pixels).permute(0, 3, 1, 2))[:, 0]]
    first = found == table["color_1"].to_numpy()
    assert first.mean() > 0.68
    assert (first | (found == table["color_2"].to_numpy())).mean() > 0.81


def test_nouns_never_share_a_prompt():
    prompts = ["dress, blue"] * 5 + ["blue, coat"] * 4 + ["coat, plain", "dress, plain", "blue, plain, hat"]
    assert noun_family(prompts) == ["coat", "dress", "hat"]


def test_free_text_has_no_nouns():
    assert noun_family([f"a picture of thing {n}, nice {n}" for n in range(300)]) == []


def test_corpus_of_the_photographs(shared):
    dataset = read_dataset(shared / "data" / "marketplace")
    groups = dataset.groups.iloc[:600]
    corpus = dataset_corpus(type(dataset)(dataset.root, dataset.users, groups, dataset.images), 32)
    assert set(corpus.families["category"]) >= {"dress", "hat", "pants", "shirt", "shoes", "skirt", "t-shirt"}
    shown = {image for ids in groups["image_ids"] for image in ids}
    assert len(corpus) == len(shown & set(dataset.images.ids()))
    assert corpus.pixels.shape[1:] == (3, 32, 32)
    labels = pd.read_parquet(shared / "data" / "clothing_64.parquet", columns=["image_id", "label"])
    truth = labels.set_index("image_id")["label"]
    named = [
        (corpus.families["category"][code], truth[image_id])
        for image_id, code in zip(sorted(shown & set(dataset.images.ids())), corpus.labels[:, 0].tolist(), strict=True)
        if code >= 0
    ]
    assert len(named) > 0.8 * len(corpus)
    assert np.mean([said == true for said, true in named]) > 0.85


def test_corpus_reads_no_picks(sample):
    dataset = read_dataset(sample[0])
    turned = dataset.groups.assign(picked=[list(map(bool, reversed(picks))) for picks in dataset.groups["picked"]])
    first = dataset_corpus(dataset, 16)
    second = dataset_corpus(type(dataset)(dataset.root, dataset.users, turned, dataset.images), 16)
    assert torch.equal(first.labels, second.labels)
    assert first.families["category"] == ["coat", "dress", "jumpsuit", "top"]
    assert (first.labels[:, 0] >= 0).all()


def test_corpus_leaves_out_what_cannot_be_decoded(tmp_path, users_of, groups_of, capsys):
    from perfusion.data import encode_png, write_dataset

    images = [("i0", encode_png(on_paper((200, 0, 0)))), ("i1", b"broken")]
    write_dataset(tmp_path / "set", users_of(), groups_of(1), images)
    assert len(dataset_corpus(read_dataset(tmp_path / "set"), 16)) == 1
    assert "1 of 2 pictures cannot be decoded" in capsys.readouterr().err
    write_dataset(tmp_path / "none", users_of(), groups_of(1), images[1:])
    with pytest.raises(DataError, match="none of 1 pictures"):
        dataset_corpus(read_dataset(tmp_path / "none"), 16)
