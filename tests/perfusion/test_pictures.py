"""Decoding: every mode a merchant may upload, and named errors for what cannot or must not be decoded."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from perfusion.data import ImageStore, decode_image, encode_png, is_safe_id, write_dataset
from perfusion.errors import DataError


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def gradient(size: int = 16) -> np.ndarray:
    y, x = np.mgrid[:size, :size]
    return np.stack([x * 255 // (size - 1), y * 255 // (size - 1), (x + y) * 255 // (2 * size - 2)], -1).astype(
        np.uint8
    )


def store_of(tmp_path, images: dict[str, bytes], users, groups) -> ImageStore:
    write_dataset(tmp_path / "set", users, groups, images.items())
    return ImageStore(tmp_path / "set" / "images")


def test_rgb_comes_back_bit_for_bit():
    assert np.array_equal(np.asarray(decode_image(encode_png(gradient()), "a")), gradient())


def test_transparency_lies_over_white():
    pixels = np.dstack([gradient(), np.full((16, 16), 0, np.uint8)])
    assert (np.asarray(decode_image(encoded(Image.fromarray(pixels)), "a")) == 255).all()


def test_palette_with_a_transparent_entry_lies_over_white():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    assert (np.asarray(decode_image(encoded(image, transparency=1), "a")) == 255).all()


def test_greys_of_8_and_16_bits_have_the_same_brightness():
    grey = gradient()[..., 0]
    deep = Image.fromarray((grey.astype(np.uint16) << 8) | grey)
    assert deep.mode == "I;16"
    for image in (Image.fromarray(grey), deep):
        assert np.array_equal(np.asarray(decode_image(encoded(image), "a")), np.dstack([grey] * 3))


def test_bilevel_and_cmyk_become_rgb():
    assert decode_image(encoded(Image.new("1", (3, 3), 1)), "a").getpixel((0, 0)) == (255, 255, 255)
    red = decode_image(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95), "a").getpixel((8, 8))
    assert red[0] > 240
    assert max(red[1:]) < 20


def test_floating_point_pixels_are_refused():
    with pytest.raises(DataError, match=r"'deep'.*8 bits"):
        decode_image(encoded(Image.new("F", (3, 3), 0.5), "TIFF"), "deep")


def test_exif_turns_the_picture():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    image = Image.fromarray(gradient()[:, :8])
    turned = decode_image(encoded(image, exif=exif), "a")
    assert turned.size == (16, 8)
    assert np.array_equal(np.asarray(turned), np.rot90(gradient()[:, :8], -1))


@pytest.mark.parametrize("data", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_what_is_no_picture_is_named(data):
    with pytest.raises(DataError, match=r"image 'x1': \d+ bytes"):
        decode_image(data, "x1")


def test_a_truncated_picture_is_named():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for data in (encode_png(noise), encoded(Image.fromarray(noise), "JPEG")):
        with pytest.raises(DataError, match="'cut'"):
            decode_image(data[: len(data) // 2], "cut")


def test_a_bomb_is_refused_before_it_is_decoded():
    with pytest.raises(DataError, match="far more pixels, the limit is 50,000,000"):
        decode_image(encoded(Image.new("1", (20_000, 20_000))), "bomb")
    with pytest.raises(DataError, match="60,000,000 pixels, the limit is 50,000,000"):
        decode_image(encoded(Image.new("1", (10_000, 6_000))), "bomb")


def test_twenty_megapixels_are_served(tmp_path, one_group):
    large = encoded(Image.new("RGB", (5_000, 4_000), (200, 30, 40)), "JPEG")
    store = store_of(tmp_path, {"a": large}, *one_group)
    pixels = store.pixels(["a"], 48)
    assert pixels.shape == (1, 3, 48, 48)
    assert abs(int(pixels[0, 0, 24, 24]) - 200) < 4


def test_pixels_are_resized_and_padded_in_the_borders_colour(tmp_path, one_group):
    wide = np.full((10, 40, 3), 90, np.uint8)
    dot = np.full((1, 1, 3), 7, np.uint8)
    exact = gradient()
    images = {"wide": encode_png(wide), "dot": encode_png(dot), "exact": encode_png(exact)}
    store = store_of(tmp_path, images, *one_group)
    pixels = store.pixels(["exact", "dot", "wide", "exact"], 16)
    assert pixels.dtype == torch.uint8
    assert torch.equal(pixels[0], torch.from_numpy(exact).permute(2, 0, 1))
    assert torch.equal(pixels[0], pixels[3])
    assert (pixels[1] == 7).all()
    assert (pixels[2] == 90).all()


def test_bytes_come_back_in_the_order_asked_across_parts(tmp_path, one_group, monkeypatch):
    monkeypatch.setattr("perfusion.data.layout._IMAGES_PER_PART", 3)
    monkeypatch.setattr("perfusion.data.layout._IMAGES_PER_GROUP", 3)  # a part ends with a row group
    images = {f"i{n}": bytes([n]) for n in range(20)}
    store = store_of(tmp_path, images, *one_group)
    assert len(store.files) == 7
    order = [f"i{n}" for n in (19, 0, 7, 7, 3, 12)]
    assert store.encoded(order) == [images[name] for name in order]
    assert len(store) == 20
    assert "i5" in store
    assert "i20" not in store


def test_an_absent_picture_is_named(tmp_path, one_group):
    store = store_of(tmp_path, {"a": b"x"}, *one_group)
    with pytest.raises(DataError, match="1 of 2 pictures absent, first 'gone'"):
        store.encoded(["a", "gone"])


@pytest.mark.parametrize(
    "image_id", ["../../etc/passwd", "/etc/passwd", "..", "a/b", "a\\b", ".hidden", "a..b", "", "a" * 201]
)
def test_ids_that_could_leave_their_folder_are_refused(tmp_path, one_group, image_id):
    assert not is_safe_id(image_id)
    with pytest.raises(DataError, match="cannot be a file name"):
        write_dataset(tmp_path / "set", *one_group, [(image_id, b"x")])
    assert list(tmp_path.iterdir()) == []


def test_a_store_serves_no_unsafe_id_and_says_which(tmp_path, one_group):
    import pyarrow as pa
    import pyarrow.parquet as pq

    write_dataset(tmp_path / "set", *one_group, [("a", b"x")])
    table = pa.table({"image_id": ["a", "a", "../x"], "image": pa.array([b"1", b"2", b"3"], pa.binary())})
    pq.write_table(table, tmp_path / "set" / "images" / "part-00000.parquet")
    store = ImageStore(tmp_path / "set" / "images")
    assert "../x" not in store
    assert store.encoded(["a"]) == [b"1"]
    assert set(store.problems) == {"a", "../x"}
