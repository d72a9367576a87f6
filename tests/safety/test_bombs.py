"""Small files that would fill the memory: refused by name while little is used.

What a case costs is measured in a process of its own whose memory is limited; the limit is held against a case that
does need more, so that a pass proves something.
"""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import imports
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from perfusion.config import DataConfig
from perfusion.data import parquetfiles, write_dataset
from perfusion.errors import DataError
from tasks.validation import validate

GIB = 1 << 30
LIMIT_MIB = 900  # of a process that has imported numpy, pandas, pyarrow and Pillow, and decodes one picture
RUN = """
import json, resource, sys
limit = {limit} << 20
from pathlib import Path
import pyarrow as pa
from perfusion.data.pictures import decode_image, stored_fault
from perfusion.errors import DataError
from tasks.validation_pictures import picture_fault
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
said = dict()
for file in sorted(Path(sys.argv[1]).iterdir()):
    data = file.read_bytes()
    try:
        told = str(decode_image(data, file.name, 25_000_000).size)
    except DataError as error:
        told = str(error)
    said[file.name] = [told, picture_fault(data, 25_000_000), stored_fault(pa.py_buffer(data), 25_000_000)]
print(json.dumps(said))
"""


def zeros(size: int) -> bytes:
    """`size` zero bytes, deflated: one MiB's stream again and again, which costs no time here."""
    packer = zlib.compressobj(9, wbits=-15)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    check = (size % 65521) << 16 | 1  # Adler-32 of zeros
    return b"\x78\x9c" + block * (size >> 20) + packer.flush() + check.to_bytes(4, "big")


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(before: bytes = b"", after: bytes = b"", pixels: bytes | None = None, side: int = 4) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    rows = zlib.compress((b"\0" + bytes(3 * side)) * side) if pixels is None else pixels
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", rows) + after + chunk(b"IEND", b"")


def webp(width: int, height: int, animated: bool) -> bytes:
    """A canvas of any size around a picture of four pixels."""
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "WEBP", lossless=True)
    inner = buffer.getvalue()[12:]
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"VP8X" + struct.pack("<I", 10) + bytes([2 if animated else 0, 0, 0, 0]) + size
    if animated:
        frame = bytes(6) + b"\3\0\0\3\0\0" + b"\x64\0\0" + b"\0" + inner
        inner = b"ANIM" + struct.pack("<I", 6) + bytes(6) + b"ANMF" + struct.pack("<I", len(frame)) + frame
    return b"RIFF" + struct.pack("<I", len(body + inner) + 4) + b"WEBP" + body + inner


def jpeg(width: int, height: int) -> bytes:
    """A picture of 16 pixels whose header says more."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "JPEG")
    data = bytearray(buffer.getvalue())
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def gif(frames: int, frame_side: int | None = None) -> bytes:
    """Many frames, the first of any size."""
    buffer = io.BytesIO()
    more = [Image.new("RGB", (8, 8), (number % 256, 0, 0)) for number in range(frames)]
    more[0].save(buffer, "GIF", save_all=True, append_images=more[1:])
    data = buffer.getvalue()
    if frame_side is None:
        return data
    at = data.index(b"\x2c")
    return data[: at + 1] + struct.pack("<HHHH", 0, 0, frame_side, frame_side) + data[at + 9 :]


def many_frames_of_png(frames: int) -> bytes:
    buffer = io.BytesIO()
    more = [Image.new("RGB", (64, 64), (number % 256, 0, 0)) for number in range(frames)]
    more[0].save(buffer, "PNG", save_all=True, append_images=more[1:])
    return buffer.getvalue()


def test_pictures_that_expand_are_refused_within_little_memory(tmp_path: Path) -> None:
    text = zeros(GIB)
    refused = {
        "webp-animated": (webp(16383, 16383, True), "far more pixels"),
        "webp-canvas": (webp(1 << 24, 255, True), "far more pixels"),
        "webp-still": (webp(16383, 16383, False), "far more pixels"),
        "jpeg": (jpeg(65535, 65535), "far more pixels"),
        "jpeg-over-the-limit": (jpeg(7000, 7000), "49,000,000 pixels, the limit is 25,000,000"),
        "gif-frame": (gif(2, 65535), "far more pixels"),
        "png-text": (png(before=chunk(b"zTXt", b"k\0\0" + text)), "too large"),
        "png-text-behind": (png(after=chunk(b"zTXt", b"k\0\0" + text)), "too large"),
        "png-unicode": (png(before=chunk(b"iTXt", b"k\0\1\0\0\0" + text)), "too large"),
        "png-profile": (png(before=chunk(b"iCCP", b"k\0\0" + text)), "too large"),
    }
    served = {  # more than is looked at: the first frame, and as many pixels as the header says
        "gif-frames": gif(3000), "png-frames": many_frames_of_png(500), "png-pixels": png(pixels=text),
    }  # fmt: skip
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, data in {**{name: data for name, (data, _) in refused.items()}, **served}.items():
        (folder / name).write_bytes(data)
    said = json.loads(limited(RUN.format(limit=LIMIT_MIB), str(folder)).stdout)
    for name, (_, why) in refused.items():
        decoded, judged, _ = said[name]
        assert why in decoded, name
        assert name in decoded
        assert judged, name
    for name in served:
        assert said[name][0].startswith("("), name


def test_the_limit_would_be_felt() -> None:
    """What the bombs would take, the limited process does not get."""
    done = limited(f"import resource; resource.setrlimit(resource.RLIMIT_DATA, ({LIMIT_MIB} << 20,) * 2); bytes({GIB})")
    assert done.returncode != 0
    assert "MemoryError" in done.stderr


def limited(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=imports.REPOSITORY, capture_output=True, text=True, timeout=300
    )


def dataset(root: Path, **columns: object) -> Path:
    """One group of two pictures; columns replace those of groups.parquet."""
    groups = pd.DataFrame(
        {"record_id": ["r"], "user_id": ["u"], "created_at": [pd.Timestamp(2026, 1, 1)], "prompt": ["dress"],
         "image_ids": [["a", "b"]], "picked": [[True, False]]}
    )  # fmt: skip
    write_dataset(root, pd.DataFrame({"user_id": ["u"]}), groups, [("a", png()), ("b", png(side=5))])
    if columns:
        table = pa.Table.from_pandas(groups)
        for name, values in columns.items():
            table = table.set_column(table.column_names.index(name), name, pa.array(values))
        pq.write_table(table, root / "groups.parquet")
    return root


def judge(root: Path, place: Path) -> dict[str, object]:
    return validate(root, DataConfig(), None, place / "valid", place / "quarantine")


def test_a_million_candidates_are_one_line_in_quarantine(tmp_path: Path) -> None:
    many = [f"i{number % 7}" for number in range(1_000_000)]
    root = dataset(tmp_path / "set", image_ids=[many], picked=[[False] * len(many)])
    assert judge(root, tmp_path)["quarantined"] == 1
    entries = pd.read_parquet(tmp_path / "quarantine" / "groups.parquet")
    assert entries["rule"].tolist() == ["candidates"], "no line for each of the million"
    assert entries["value"].tolist() == ["1000000"]


def test_a_dictionary_that_expands_a_table_is_refused_before_it_does(tmp_path: Path) -> None:
    """One prompt of a megabyte, stored once and used 100,000 times: 100 GB."""
    root = dataset(tmp_path / "set")
    rows = 100_000
    prompts = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["x" * 1_000_000]))
    table = pa.table(
        {"record_id": [f"r{row}" for row in range(rows)], "user_id": ["u"] * rows,
         "created_at": pa.array([0] * rows, pa.timestamp("ms")), "prompt": prompts,
         "image_ids": [["a", "b"]] * rows, "picked": [[True, False]] * rows}
    )  # fmt: skip
    pq.write_table(table, root / "groups.parquet", store_schema=False)
    assert (root / "groups.parquet").stat().st_size < 3_000_000
    with pytest.raises(DataError, match=r"groups.parquet: .* bytes that expand to .*the limit is"):
        judge(root, tmp_path)


def test_pages_that_expand_are_refused_by_the_footer(tmp_path: Path) -> None:
    part = tmp_path / "part.parquet"
    column = pa.array([bytes(8 << 20)] * 8, pa.large_binary())
    pq.write_table(pa.table({"image": column}), part, compression="zstd", use_dictionary=False)
    assert part.stat().st_size < 1 << 20
    with pytest.raises(DataError, match="expand to 67,"):
        parquetfiles.read_bounded(part, limit=32 << 20)
    assert parquetfiles.read_bounded(part, limit=128 << 20).num_rows == 8


def test_lists_of_one_long_entry_are_measured_before_they_expand(tmp_path: Path) -> None:
    """An entry of 100 KB in 2,000 lists: 200 MB."""
    entries = pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), pa.array(["x" * 100_000]))
    lists = pa.ListArray.from_arrays(pa.array(range(2001), pa.int32()), entries)
    file = tmp_path / "groups.parquet"
    pq.write_table(pa.table({"image_ids": lists}), file, store_schema=False)
    assert file.stat().st_size < 300_000
    with pytest.raises(DataError, match=r"expand to 200,\d+,\d+, the limit is 52,428,800"):
        parquetfiles.read_bounded(file, limit=50 << 20)
    assert parquetfiles.read_bounded(file, limit=400 << 20).num_rows == 2000


def test_a_list_of_nothing_a_billion_times_is_refused_by_the_footer(tmp_path: Path) -> None:
    """Empty values cost nothing on disk and four bytes each in memory."""
    file = tmp_path / "groups.parquet"
    with pq.ParquetWriter(file, pa.schema([("image_ids", pa.list_(pa.string()))])) as writer:
        writer.write(pa.table({"image_ids": pa.array([[None] * 5_000_000], pa.list_(pa.string()))}))
    assert file.stat().st_size < 100_000
    with pytest.raises(DataError, match="the limit is 10,000,000"):
        parquetfiles.read_bounded(file, limit=10_000_000)


def test_dictionaries_come_back_as_they_were_written(tmp_path: Path) -> None:
    """Text, lists with gaps, structs and categories, over several row groups."""
    picture = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({
        "text": pa.array(["a", None, "b", "a", "", "b"] * 50),
        "lists": pa.array([["a", None, "b"], None, [], ["b"], ["a", "a"], [None]] * 50, pa.list_(pa.string())),
        "struct": pa.array([{"bytes": b"1", "path": "p"}, None, {"bytes": None, "path": "q"}] * 100, picture),
        "category": pa.array(["x", "y", None] * 100).dictionary_encode(),
        "number": pa.array(range(300)),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=70)
    assert parquetfiles.read_bounded(tmp_path / "t.parquet").to_pylist() == table.to_pylist()
    plain = parquetfiles.read_bounded(tmp_path / "t.parquet").schema
    stored = pq.read_schema(tmp_path / "t.parquet")
    assert plain == stored.set(stored.get_field_index("category"), pa.field("category", pa.string()))
    small = parquetfiles.read_bounded(tmp_path / "t.parquet", ["number", "text"])
    assert small.column_names == ["number", "text"]


def test_pictures_stored_once_and_used_often_are_refused(tmp_path: Path) -> None:
    """A part of 300 rows that share one picture of 16 MiB: 4.7 GiB."""
    root = dataset(tmp_path / "set")
    images = pa.DictionaryArray.from_arrays(pa.array([0] * 300, pa.int32()), pa.array([bytes(16 << 20)], pa.binary()))
    part = root / "images" / "part-00000.parquet"
    table = pa.table({"image_id": ["a", "b", *(f"x{row}" for row in range(298))], "image": images})
    pq.write_table(table, part, store_schema=False, dictionary_pagesize_limit=1 << 30)
    with pytest.raises(DataError, match=r"part-00000.parquet: .*expand to"):
        judge(root, tmp_path)
