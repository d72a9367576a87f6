"""What merchants really upload: every kind of picture, prompts of any length, tables whose columns or parts moved."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from perfusion.data import ImageStore
from perfusion.errors import DataError

SIZE = 16
RED = (200, 30, 40)


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned() -> bytes:
    """A camera held upright: twice as wide as high as stored, red on the right, to be turned clockwise."""
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.full((20, 40, 3), 255, np.uint8)
    pixels[:, 20:] = RED
    return saved(Image.fromarray(pixels), exif=exif)


def deep(channels: str) -> bytes:
    grey = Image.fromarray(np.full((20, 20), 0x7F7F, np.uint16))
    return saved(grey) if channels == "grey" else saved(Image.merge("LA", [Image.new("L", (20, 20), 127)] * 2))


# what is uploaded -> the encoded bytes and the colour at the middle of the picture that models see
UPLOADS: dict[str, tuple[Callable[[], bytes], tuple[int, int, int]]] = {
    "CMYK": (lambda: saved(Image.new("CMYK", (20, 20), (0, 255, 255, 0)), "JPEG", quality=95), (254, 0, 0)),
    "RGBA": (lambda: saved(Image.new("RGBA", (20, 20), (*RED, 0))), (255, 255, 255)),
    "palette": (lambda: saved(Image.new("RGB", (20, 20), RED).quantize(4)), RED),
    "grey": (lambda: saved(Image.new("L", (20, 20), 90)), (90, 90, 90)),
    "grey with alpha": (lambda: deep("alpha"), (191, 191, 191)),
    "16-bit grey": (lambda: deep("grey"), (127, 127, 127)),
    "black and white": (lambda: saved(Image.new("1", (20, 20), 1)), (255, 255, 255)),
    "WebP": (lambda: saved(Image.new("RGB", (20, 20), RED), "WEBP", lossless=True), RED),
    "one pixel": (lambda: saved(Image.new("RGB", (1, 1), RED)), RED),
    "a line": (lambda: saved(Image.new("RGB", (300, 1), RED)), RED),
    "20 megapixels": (lambda: saved(Image.new("RGB", (5_000, 4_000), RED), "JPEG"), RED),
}


def test_every_kind_of_picture_passes_and_is_seen_as_it_looks(market: Any) -> None:
    for row, (make, _) in enumerate(UPLOADS.values()):
        market.images["image"][row] = make()
    assert market.run().report["quarantined"] == 0
    names = [f"i{row}" for row in range(len(UPLOADS))]
    pixels = ImageStore(market.root / "images").pixels(names, SIZE)
    assert pixels.shape == (len(UPLOADS), 3, SIZE, SIZE)
    for picture, (name, (_, colour)) in zip(pixels, UPLOADS.items(), strict=True):
        seen = picture[:, SIZE // 2, SIZE // 2].int().tolist()
        assert np.abs(np.subtract(seen, colour)).max() <= 4, (name, seen)


def test_a_picture_taken_upright_is_judged_and_seen_upright(market: Any) -> None:
    """Turned clockwise, what was on the right lies below."""
    market.images["image"][0] = turned()
    assert market.run().report["quarantined"] == 0
    [seen] = ImageStore(market.root / "images").pixels(["i0"], SIZE)
    middle = seen[:, :, SIZE // 2].int()
    assert middle[:, 2].tolist() == [255, 255, 255]
    assert np.abs(np.subtract(middle[:, -3].tolist(), RED)).max() <= 4


def test_pictures_without_an_agreed_brightness_are_set_aside(market: Any) -> None:
    market.images["image"][5] = saved(Image.new("F", (20, 20), 0.5), "TIFF")
    result = market.run()
    [entry] = result.quarantine("images").to_dict("records")
    assert (entry["record_id"], entry["rule"]) == ("i5", "image_decodes")
    assert "8 bits a channel" in entry["value"]
    assert result.rules() == {"r1": {"image_readable"}}


@pytest.mark.parametrize("limit", [2000, 20_000])
def test_prompts_of_ten_kilobytes_pass_where_the_limit_lets_them(market: Any, limit: int) -> None:
    prompt = "dress, slim-fit, " * 640
    assert len(prompt) > 10_240
    market.groups["prompt"][2] = prompt
    result = market.run(max_prompt_chars=limit)
    if limit > len(prompt):
        assert result.valid().set_index("record_id")["prompt"]["r2"] == prompt
    else:
        assert result.rules() == {"r2": {"prompt_length"}}


def test_a_missing_part_costs_the_groups_that_need_it_and_nothing_else(market: Any) -> None:
    """The first 48 of 96 pictures are there: groups 0 to 11 of 24."""
    market.write()
    part = market.root / "images" / "part-00000.parquet"
    pq.write_table(pq.read_table(part)[:48], part)
    market.write = lambda: market.root
    result = market.run()
    assert (result.report["groups_in"], result.report["valid"], result.report["quarantined"]) == (24, 12, 12)
    assert set(result.quarantine()["rule"]) == {"image_stored"}
    assert list(result.valid()["record_id"]) == [f"r{row}" for row in range(12)]
    with pytest.raises(DataError, match="1 of 2 pictures absent, first 'i48'"):
        ImageStore(market.root / "images").pixels(["i0", "i48"], SIZE)


def test_columns_may_stand_in_another_order(market: Any) -> None:
    """In every file, and in one part of several: columns are read by name."""
    plain = market.run(out="plain")
    for name in ("users", "groups"):
        path = market.root / f"{name}.parquet"
        table = pq.read_table(path)
        pq.write_table(table.select(table.column_names[::-1]), path)
    part = market.root / "images" / "part-00000.parquet"
    table = pq.read_table(part)
    pq.write_table(table[:48], part)
    pq.write_table(table[48:].select(["image", "image_id"]), part.with_name("part-00001.parquet"))
    market.write = lambda: market.root
    moved = market.run(out="moved")
    for name in ("users", "groups"):
        pd.testing.assert_frame_equal(moved.valid(name), plain.valid(name), check_like=True)
    assert ImageStore(market.root / "images").encoded(["i0", "i95"]) == [market.images["image"][n] for n in (0, 95)]


def test_columns_whose_contents_were_swapped_are_named(market: Any) -> None:
    """The names stayed, the values moved: the type tells."""
    market.write()
    part = market.root / "images" / "part-00000.parquet"
    table = pq.read_table(part)
    pq.write_table(table.rename_columns(["image", "image_id"]), part)
    market.write = lambda: market.root
    with pytest.raises(DataError, match=r"images/part-00000.parquet.*image_id"):
        market.run()
    with pytest.raises(DataError, match="column image_id is binary, want string"):
        ImageStore(market.root / "images")
