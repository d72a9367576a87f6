"""Data plane: filter, split and Table 1 by column against pandas; quality rules; importing Pick-a-Pic against a read.

`python -m benchmarks.dataplane --records 1e5 1e6 1e7`. Each run is a process of its own, so that its peak memory is its
own. Records are synthetic: five candidates with random ids of 32 characters (no two alike, the worst case), eleven
records a user on average and very unequal, one record in twenty without a comparison.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.common import hardware, peak_memory, record

__all__ = ["main"]

CANDIDATES, RECORDS_PER_USER = 5, 11
CHUNK = 1 << 18
NOUNS = np.array(["dress", "top", "skirt", "coat", "trousers", "shirt", "jacket", "jumper"])
WORDS = np.array(
    ["v-neck", "long-sleeve", "midi", "floral", "cotton", "slim-fit", "puff-sleeve", "denim", "red", "black", "boho",
     "striped", "pleated", "silk", "high-waist", "oversized"]
)  # fmt: skip


def main() -> None:
    """Measure, print the tables, and keep them in work/benchmarks/."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=float, nargs="+", default=[1e5, 1e6], help="sizes")
    parser.add_argument("--pandas-up-to", type=float, default=1e6, help="largest size for pandas: 1 KiB a record, slow")
    parser.add_argument("--pairs", type=int, default=4000, help="rows of the Pick-a-Pic shards; 0 leaves them out")
    parser.add_argument("--folder", type=Path, help="scratch folder; 1e7 records take 4 GB")
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work is not None:
        what, source, out = options.work
        WORK[what](Path(source), Path(out))
        return
    with tempfile.TemporaryDirectory(prefix="perfusion-dataplane-", dir=options.folder) as scratch:
        rows = [row for size in options.records for row in split_rows(int(size), options.pandas_up_to, Path(scratch))]
        imported = import_row(options.pairs, Path(scratch)) if options.pairs else None
    ten_million = next((row for row in rows if row["records"] == 10**7 and row["arm"] == "columns"), None)
    headlines = {"seconds_1e7": ten_million["seconds"], "peak_gib_1e7": ten_million["gib"]} if ten_million else {}
    record("dataplane", [], {"data": headlines} if headlines else {}, split=rows, import_pickapic=imported)
    _show(rows, imported)


def _show(rows: list[dict[str, Any]], imported: dict[str, float] | None) -> None:
    print(f"\n### Data plane\n\n{hardware()}, {datetime.now(UTC):%Y-%m-%d}\n")
    print("| records | arm | s | s a million | CPU s | peak GiB | columns faster by |\n|---|---|---|---|---|---|---|")
    for row in rows:
        a_million = row["seconds"] / row["records"] * 1e6
        figures = [f"{value:.2f}" for value in (row["seconds"], a_million, row["cpu"], row["gib"])]
        cells = [f"{row['records']:.0e}", row["arm"], *figures, row["faster"] or ""]
        print(f"| {' | '.join(cells)} |")
    if imported:
        keys = ("pairs", "mb", "seconds", "cpu", "mb_per_s", "read_mb_per_s", "gib")
        print("\n| pairs imported | MB | s | CPU s | MB/s | a plain read, MB/s | peak GiB |")
        print("|---|---|---|---|---|---|---|")
        print(f"| {' | '.join(f'{imported[key]:.4g}' for key in keys)} |")


def split_rows(records: int, pandas_up_to: float, scratch: Path) -> Iterator[dict[str, Any]]:
    """Filter, split and Table 1 of `records` group records, by each arm that fits; the arms' counts must be equal."""
    data = scratch / "data"
    write_records(data, records)
    arms = ["columns"] + ["pandas"] * (records <= pandas_up_to)
    found = {arm: in_a_process(arm, data, scratch / "out") for arm in arms}
    rules = in_a_process("rules", data, scratch / "out")
    shutil.rmtree(data)
    if len({json.dumps(run["result"], sort_keys=True) for run in found.values()}) > 1:
        raise RuntimeError(f"{records} records: the arms disagree: {[run['result'] for run in found.values()]}")
    for arm, run in found.items():
        faster = run["seconds"] / found["columns"]["seconds"] if arm == "pandas" else None
        yield {"records": records, "arm": arm, "seconds": run["seconds"], "cpu": run["cpu"], "gib": run["gib"],
               "faster": None if faster is None else f"{faster:.1f}"}  # fmt: skip
    yield {"records": records, "arm": "rules", **{key: rules[key] for key in ("seconds", "cpu", "gib")}, "faster": None}


def import_row(pairs: int, scratch: Path) -> dict[str, float]:
    """Importing shards of pictures of real size, against reading the same files in a row."""
    shards = scratch / "shards"
    write_shards(shards, pairs)
    size = sum(path.stat().st_size for path in shards.iterdir()) / 1e6
    plain = in_a_process("read", shards, scratch / "out")
    run = in_a_process("import", shards, scratch / "out")
    return {
        "pairs": pairs, "mb": size, **{key: run[key] for key in ("seconds", "cpu", "gib")},
        "mb_per_s": size / run["seconds"], "read_mb_per_s": size / plain["seconds"],
    }  # fmt: skip


def in_a_process(what: str, source: Path, out: Path) -> dict[str, Any]:
    """Run one arm by itself: {"result", "seconds", "cpu" (imports left out), "gib" (peak, imports included)}."""
    peak = peak_memory(["-m", "benchmarks.dataplane", "--work", what, str(source), str(out)])
    run = json.loads((out / "run.json").read_text())
    shutil.rmtree(out)
    print(f"{what} {source.name}: {run['seconds']:.1f} s, {peak / 2**30:.2f} GiB", file=sys.stderr, flush=True)
    return {**run, "gib": peak / 2**30}


def _columns(source: Path, out: Path) -> dict[str, Any]:
    from perfusion.config import DataConfig
    from perfusion.data import split_dataset

    return _timed(out, lambda: split_dataset(source, DataConfig(), out))


def _pandas(source: Path, out: Path) -> dict[str, Any]:
    from benchmarks.pandas_reference import split_dataset
    from perfusion.config import DataConfig

    return _timed(out, lambda: split_dataset(source, DataConfig(), out))


def _rules(source: Path, out: Path) -> dict[str, Any]:
    from perfusion.config import DataConfig
    from perfusion.data.quality import count_faults

    out.mkdir()
    return _timed(out, lambda: count_faults(source, DataConfig()))


def _import(source: Path, out: Path) -> dict[str, Any]:
    from perfusion.data.pickapic import import_pickapic

    return _timed(out, lambda: import_pickapic(source, out))


def _read(source: Path, out: Path) -> dict[str, Any]:
    def read() -> int:
        total = 0
        for path in sorted(source.iterdir()):
            with path.open("rb", buffering=0) as file:
                while chunk := file.read(8 << 20):
                    total += len(chunk)
        return total

    out.mkdir()
    return _timed(out, read)


WORK = {"columns": _columns, "pandas": _pandas, "rules": _rules, "import": _import, "read": _read}


def _timed(out: Path, work: Any) -> dict[str, Any]:
    began, used = time.perf_counter(), time.process_time()
    result = work()
    run = {"seconds": time.perf_counter() - began, "cpu": time.process_time() - used, "result": result}
    (out / "run.json").write_text(json.dumps(run))
    return run


def write_records(folder: Path, records: int) -> None:
    """A dataset's tables as validation leaves them; no pictures."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    users = max(1, records // RECORDS_PER_USER)
    names = _names("user-", np.arange(users), 8)
    pq.write_table(
        pa.table({"user_id": names, "style": pa.array(NOUNS[rng.integers(0, 8, users)])}), folder / "users.parquet"
    )
    with pq.ParquetWriter(folder / "groups.parquet", _groups(0, 0, users, rng).schema) as writer:
        for start in range(0, records, CHUNK):
            writer.write_table(_groups(start, min(CHUNK, records - start), users, rng))


def _groups(start: int, count: int, users: int, rng: np.random.Generator) -> pa.Table:
    rows = np.arange(start, start + count)
    words = rng.integers(0, len(WORDS), (count, 4))
    prompt = pc.binary_join_element_wise(
        pa.array(NOUNS[rng.integers(0, len(NOUNS), count)], pa.string()),
        *(pa.array(WORDS[words[:, i]], pa.string()) for i in range(4)), ", ",
    )  # fmt: skip
    picked = np.zeros((count, CANDIDATES), bool)
    picked[np.arange(count), rng.integers(0, CANDIDATES, count)] = True
    picked[rng.random(count) < 0.06, 0] = True
    picked[rng.random(count) < 0.05] = False
    ends = pa.array(np.arange(0, count * CANDIDATES + 1, CANDIDATES, dtype=np.int32))
    text = rng.bytes(16 * count * CANDIDATES).hex().encode()
    offsets = np.arange(0, 32 * count * CANDIDATES + 1, 32, dtype=np.int32)
    ids = pa.StringArray.from_buffers(count * CANDIDATES, pa.py_buffer(offsets), pa.py_buffer(text))
    return pa.table(
        {
            "record_id": _names("record-", rows, 9),
            "user_id": _names("user-", (rng.random(count) ** 1.35 * users).astype(np.int64), 8),
            "created_at": pa.array(1_700_000_000_000 + rows * 1000, pa.timestamp("ms")),
            "prompt": prompt,
            "image_ids": pa.ListArray.from_arrays(ends, ids),
            "picked": pa.ListArray.from_arrays(ends, pa.array(picked.reshape(-1))),
        }
    )


def _names(prefix: str, numbers: np.ndarray, width: int) -> pa.Array:
    return pc.binary_join_element_wise(prefix, pc.utf8_lpad(pa.array(numbers).cast(pa.string()), width, "0"), "")


def write_shards(folder: Path, pairs: int, a_shard: int = 1000) -> None:
    """Pick-a-Pic shards of JPEG pictures of 150 kB, about what the public ones weigh; the clicked one stays."""
    folder.mkdir()
    pictures = [_jpeg(seed) for seed in range(64)]

    def picture(number: int) -> bytes:  # equal in size, unlike in bytes: a comment says which it is
        data = pictures[number % len(pictures)]
        return data[:2] + b"\xff\xfe\x00\x0a" + f"{number:08d}".encode() + data[2:]

    for shard, start in enumerate(range(0, pairs, a_shard)):
        rows = range(start, min(start + a_shard, pairs))
        uids = [[f"{row + side:08x}-{row + side:08x}" for row in rows] for side in (0, 1)]
        count = len(rows)
        table = pa.table(
            {
                "are_different": [True] * count, "best_image_uid": uids[1],
                "caption": [f"a fox {r // 4}" for r in rows],
                "created_at": pa.array([1_674_000_000 * 10**9 + r for r in rows], pa.timestamp("ns")),
                "has_label": [True] * count, "image_0_uid": uids[0], "image_1_uid": uids[1],
                "jpg_0": pa.array([picture(r) for r in rows], pa.binary()),
                "jpg_1": pa.array([picture(r + 1) for r in rows], pa.binary()),
                "label_0": [0.0] * count, "label_1": [1.0] * count, "ranking_id": list(rows),
                "user_id": [r // 40 for r in rows],
            }
        )  # fmt: skip
        name = f"train-{shard:05d}-of-{-(-pairs // a_shard):05d}.parquet"
        pq.write_table(table, folder / name, row_group_size=100)


def _jpeg(seed: int) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (512, 512, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG", quality=73)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
