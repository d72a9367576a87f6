"""Pick-a-Pic (Kirstain et al., 2023) in the dataset layout: its public parquet shards, streamed once.

Columns are judged first, without pictures; then the shards are read row group by row group, and each picture that a
sound row needs is stored once, as it came. A row is decided by its labels, never by best_image_uid: the clicked picture
stays on the screen for the next pair, so that the same picture is best in one row and worse in another.
"""

from __future__ import annotations

import glob
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from perfusion.data.importing import QUARANTINE, Bookmark, Pictures, Rule, active_records, examine, ledger
from perfusion.data.layout import GROUP_SCHEMA, ImageWriter, resumable_folder, write_rows
from perfusion.data.leakage import leakage
from perfusion.data.parquetfiles import bounded_batches, check_place
from perfusion.data.query import database
from perfusion.errors import DataError
from perfusion.paths import is_inside, stays_inside
from perfusion.progress import Progress

__all__ = ["RULES", "import_pickapic"]

_TEXT = (pa.types.is_string, pa.types.is_large_string)
_NUMBER = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
_PICTURE = (pa.types.is_binary, pa.types.is_large_binary, *_TEXT)
COLUMNS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "are_different": ("a truth value", _NUMBER),
    "best_image_uid": ("text", _TEXT),
    "caption": ("text", _TEXT),
    "created_at": ("a timestamp", (pa.types.is_timestamp,)),
    "has_label": ("a truth value", _NUMBER),
    "image_0_uid": ("text", _TEXT),
    "image_1_uid": ("text", _TEXT),
    "jpg_0": ("binary, or the paths of files", _PICTURE),
    "jpg_1": ("binary, or the paths of files", _PICTURE),
    "label_0": ("a number", _NUMBER),
    "label_1": ("a number", _NUMBER),
    "ranking_id": ("a whole number or text", (pa.types.is_integer, *_TEXT)),
    "user_id": ("a whole number or text", (pa.types.is_integer, *_TEXT)),
}
_SHARD = re.compile(r"(.+)-(\d+)-of-(\d+)(?:-[0-9a-f]+)?\.parquet")
_SAFE_ID = r"[A-Za-z0-9_]([A-Za-z0-9_\-]|\.[A-Za-z0-9_\-])*\.?"  # as `is_safe_id`: no two dots in a row
_ROWS = 64  # rows whose pictures are in memory at a time
_STREAM = 8 << 20  # bytes of a column read ahead; a row group may be larger than memory

Ties = Literal["drop", "keep"]


RULES = (
    Rule("ranking_id", "the row names its ranking", True, "ranking_id IS NULL"),
    Rule("user_id", "the row names its user", True, "user_id IS NULL OR trim(user_id::VARCHAR) = ''"),
    Rule("created_at", "the row is dated", True, "created_at IS NULL"),
    Rule("caption", "the caption has a letter or a digit", True,
         r"NOT coalesce(regexp_matches(caption, '[\pL\pN]'), false)", "caption"),
    Rule("picture_id", "both pictures have an id that can be a file name", True,
         f"NOT coalesce(regexp_full_match(image_0_uid, '{_SAFE_ID}') AND regexp_full_match(image_1_uid, '{_SAFE_ID}')"
         " AND greatest(length(image_0_uid), length(image_1_uid)) <= 200, false)",
         "concat(image_0_uid, ' ', image_1_uid)"),
    Rule("unlabelled", "the user was asked and answered (has_label)", False, "NOT coalesce(has_label::BOOLEAN, false)"),
    Rule("label", "label_0 is 0, .5 or 1, and label_1 the rest", True,
         "NOT coalesce(label_0 IN (0, 0.5, 1) AND label_0 + label_1 = 1, false)", "concat(label_0, ' ', label_1)"),
    Rule("same_picture", "the two pictures are not one", False,
         "image_0_uid = image_1_uid OR NOT coalesce(are_different::BOOLEAN, true)"),
    Rule("contradictory", "rows of one ranking and the same pictures agree on the label", True),
    Rule("repeated", "the row comes for the first time", False),
    Rule("tie", "one picture was preferred (labels .5 and .5 are a tie)", False),
    Rule("picture", "both pictures are stored whole, in this row or another", True),
    Rule("same_bytes", "the two pictures differ in their bytes", False),
)  # fmt: skip


def import_pickapic(
    source: Path | str,
    out: Path | str,
    *,
    split: Literal["record", "prompt", "user"] = "record",
    ties: Ties = "drop",
    partial: bool = False,
    replace: bool = False,
) -> dict[str, Any]:
    """Turn Pick-a-Pic v1 or v2 into a dataset; whole or not at all. An interrupted import goes on after its last shard.

    A record is a pair: image_ids [image_0, image_1], the preferred one picked. Its name is the ranking's id and the
    first eight characters of both pictures' ids. Users have no features but their id. Pictures with equal bytes are
    stored once, under the id that came first. A picture is whole if its header reads and its end is there: decoding its
    pixels is left to validation.

    Args:
        source: a folder with shards anywhere in it, one shard, or a pattern ("data/train-*.parquet").
        out: the folder to create: users.parquet, groups.parquet, images/, quarantine.parquet, import.json.
        split: how the records are meant to be split (`data.split_by`); recorded, with what each way would leak.
        ties: "drop" them, or "keep" them as groups with both pictures picked, which hold no comparison.
        partial: import what is there even if shards are missing.
        replace: put the dataset in the place of an older one.

    Returns:
        What import.json holds: source, shards, rows, rules (rule, says, quarantined, removed, left; in the order they
        are applied, the last `left` is the number of records), records, users, records_of_active_users (of users with
        ten or more), pictures, bytes, best_image_uid_disagrees, ties, split, leakage {way of splitting: see `leakage`},
        seconds, mb_per_s (bytes of the shards over seconds).

    Raises:
        DataError: shards are absent, missing or truncated, lack columns or have other types; no row is left; `out`
            holds files or is being built; the disk is full. Nothing is written then.
    """
    began = time.monotonic()
    shards = _find_shards(source, partial)
    for shard in shards:
        if Path(source).is_dir():
            check_place(shard, Path(source))
        _check_shard(shard)
    rows, disagree = _judge_columns(shards, ties)
    facts = [(str(shard.resolve()), shard.stat().st_size, shard.stat().st_mtime_ns) for shard in shards]
    with resumable_folder(out, json.dumps([facts, ties]), replace) as built:
        bookmark = Bookmark(built / "finished")
        pictures = bookmark.pictures
        with ImageWriter(built / "images", bookmark.parts) as writer:
            _store_pictures(shards, rows, bookmark, writer)
        bookmark.remove()
        rows = _judge_pictures(rows, pictures)
        removed = _removed(rows)
        kept = rows.filter(pc.is_null(rows["rule"]))
        if not len(kept):
            raise DataError(f"{source}: no row of {len(rows)} is left to import; removed by rule: {removed}")
        groups = _groups(kept, pictures.stored)
        users = pc.unique(groups["user_id"])
        write_rows(built / "groups.parquet", GROUP_SCHEMA, [groups])
        write_rows(built / "users.parquet", pa.schema([("user_id", pa.string())]), [pa.table({"user_id": users})])
        write_rows(built / "quarantine.parquet", QUARANTINE, [_quarantine(rows, shards)])
        seconds = time.monotonic() - began
        report = {
            "source": [shard.name for shard in shards],
            "shards": len(shards),
            "rows": len(rows),
            "rules": ledger(RULES, len(rows), removed),
            "records": len(groups),
            "users": len(users),
            "records_of_active_users": active_records(groups),
            "pictures": len(pictures.contents),
            "bytes": pictures.size,
            "best_image_uid_disagrees": disagree,
            "ties": ties,
            "split": split,
            "leakage": leakage(groups),
            "seconds": round(seconds, 2),
            "mb_per_s": round(sum(shard.stat().st_size for shard in shards) / 1e6 / seconds, 1),
        }
        (built / "import.json").write_text(json.dumps(report, indent=1))
    return report


def _find_shards(source: Path | str, partial: bool) -> list[Path]:
    place = Path(source)
    found = [place] if place.is_file() else sorted(place.rglob("*.parquet")) if place.is_dir() else []
    shards = found or sorted(map(Path, glob.glob(str(source), recursive=True)))
    if not shards:
        raise DataError(
            f"{source}: no parquet shard here; name the folder, a shard or a pattern like 'data/train-*.parquet'"
        )
    missing = [] if partial else _missing(shards)
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise DataError(
            f"{source}: {len(missing)} shards are missing: {', '.join(missing[:5])}{more}; fetch them, or import what "
            "is there with --partial"
        )
    return shards


def _missing(shards: Sequence[Path]) -> list[str]:
    """Names that the shards' own numbering asks for (train-00000-of-00645-...)."""
    series: dict[tuple[Path, str, str], set[int]] = {}
    for shard in shards:
        if named := _SHARD.fullmatch(shard.name):
            series.setdefault((shard.parent, named[1], named[3]), set()).add(int(named[2]))
    return [
        f"{prefix}-{number:0{len(total)}d}-of-{total}"
        for (_, prefix, total), numbers in series.items()
        for number in sorted(set(range(int(total))) - numbers)
    ]


def _check_shard(shard: Path) -> None:
    try:
        with pq.ParquetFile(shard) as file:
            schema = file.schema_arrow
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{shard}: not a whole parquet file ({str(error).splitlines()[0]}); fetch it again") from None
    absent = [name for name in COLUMNS if name not in schema.names]
    if absent:
        raise DataError(
            f"{shard}: columns absent: {', '.join(absent)}; Pick-a-Pic with pictures has them (it holds "
            f"{', '.join(schema.names)})"
        )
    for name, (wanted, checks) in COLUMNS.items():
        kind = schema.field(name).type
        if pa.types.is_struct(kind) and checks is _PICTURE and kind.get_field_index("bytes") >= 0:
            kind = kind.field("bytes").type
        if not any(check(kind) for check in checks):
            raise DataError(f"{shard}: column {name} is {kind}, want {wanted}; convert the column and write it again")


def _judge_columns(shards: Sequence[Path], ties: Ties) -> tuple[pa.Table, int]:
    """Every row in the order of the shards with the first rule it breaks (null: none so far), pictures not yet seen.

    Returns:
        Columns file (index of the shard), row, record_id, user_id, created_at, prompt, image_0, image_1, label_0, rule,
        value; and how many labelled rows call another picture best than their label does.
    """
    own = [rule for rule in RULES if rule.broken]
    rule = "CASE " + " ".join(f"WHEN {r.broken} THEN '{r.name}'" for r in own) + " END"
    value = "CASE " + " ".join(f"WHEN {r.broken} THEN {r.value}" for r in own) + " END"
    files = [
        f"SELECT *, {index} AS file FROM read_parquet('{_quoted(shard)}', file_row_number = true)"
        for index, shard in enumerate(shards)
    ]
    needed = ", ".join(name for name, (_, checks) in COLUMNS.items() if checks is not _PICTURE)
    with database() as query:
        query.execute("CREATE TABLE found (file INT, row BIGINT, " + ", ".join(_FOUND) + ")")
        for file in files:
            query.execute(
                f"INSERT INTO found SELECT file, file_row_number, ranking_id::VARCHAR, user_id::VARCHAR, "
                f"created_at::TIMESTAMP_MS, caption, image_0_uid, image_1_uid, label_0, best_image_uid, "
                f"{rule}, left({value}, 200) FROM (SELECT file, file_row_number, {needed} FROM ({file}))"
            )
        table = query.sql(_ACROSS_ROWS.format(tie="true" if ties == "drop" else "false")).to_arrow_table()
        [(disagree,)] = query.sql(
            "SELECT count(*) FROM found WHERE rule IS NULL AND label_0 <> 0.5 "
            "AND best_image_uid <> CASE WHEN label_0 = 1 THEN image_0 ELSE image_1 END"
        ).fetchall()
    return table, disagree


_FOUND = (
    "ranking_id VARCHAR", "user_id VARCHAR", "created_at TIMESTAMP_MS", "prompt VARCHAR", "image_0 VARCHAR",
    "image_1 VARCHAR", "label_0 DOUBLE", "best_image_uid VARCHAR", "rule VARCHAR", "value VARCHAR",
)  # fmt: skip
_ACROSS_ROWS = """
    SELECT file, row, concat(ranking_id, '-', left(image_0, 8), '-', left(image_1, 8)) AS record_id, user_id,
           created_at, prompt, image_0, image_1, label_0, value,
           CASE WHEN rule IS NOT NULL THEN rule
                WHEN min(label_0) OVER copies <> max(label_0) OVER copies THEN 'contradictory'
                WHEN row_number() OVER (copies ORDER BY file, row) > 1 THEN 'repeated'
                WHEN label_0 = 0.5 AND {tie} THEN 'tie' END AS rule
    FROM found WINDOW copies AS (PARTITION BY rule IS NULL, ranking_id, image_0, image_1)
    ORDER BY file, row
"""


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")


def _store_pictures(shards: Sequence[Path], rows: pa.Table, bookmark: Bookmark, writer: ImageWriter) -> None:
    """Read the pictures of rows that may be imported, and store those not stored yet; a bookmark after each shard."""
    pictures = bookmark.pictures
    sound = rows.filter(pc.is_null(rows["rule"]))
    files = sound["file"].to_numpy()
    progress = Progress("import-pickapic", max(1, len(rows)))
    done = int(np.searchsorted(rows["file"].to_numpy(), bookmark.shards))
    progress.start = done
    with ThreadPoolExecutor(2) as pool:
        for index, shard in list(enumerate(shards))[bookmark.shards :]:
            first, last = np.searchsorted(files, [index, index + 1])
            part = sound.slice(first, last - first)
            ids = [part["image_0"].to_pylist(), part["image_1"].to_pylist()]
            numbers = part["row"].to_numpy()
            for start, batch in _picture_batches(shard, numbers, ids, pictures.stored):
                low, high = np.searchsorted(numbers, [start, start + batch.num_rows])
                for side, column in enumerate(batch.columns):
                    places = numbers[low:high] - start
                    _store_batch(column, shard.parent, places, ids[side][low:high], pictures, writer, pool)
                progress.show(done + start + batch.num_rows, {"pictures": len(pictures.contents)})
            writer.end_part()
            bookmark.finish(writer.parts)
            done += int(pc.sum(pc.equal(rows["file"], index)).as_py() or 0)
            progress.show(done, {"pictures": len(pictures.contents)})


def _picture_batches(
    shard: Path, wanted: np.ndarray, ids: Sequence[Sequence[str]], stored: Mapping[str, str]
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """(row of its first row, jpg_0 and jpg_1 of a few rows) of the row groups that hold a picture not stored yet."""
    try:
        metadata = pq.read_metadata(shard)
        start = 0
        for group in range(metadata.num_row_groups):
            end = start + metadata.row_group(group).num_rows
            low, high = np.searchsorted(wanted, [start, end])
            if any(image_id not in stored for side in ids for image_id in side[low:high]):
                for batch in bounded_batches(shard, ["jpg_0", "jpg_1"], _ROWS, groups=[group], buffer=_STREAM):
                    yield start, batch.select(["jpg_0", "jpg_1"])
                    start += batch.num_rows
            start = end
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{shard}: broken while it was read ({str(error).splitlines()[0]}); fetch it again") from None


def _store_batch(
    column: pa.Array, folder: Path, places: np.ndarray, ids: Sequence[str], pictures: Pictures, writer: ImageWriter,
    pool: ThreadPoolExecutor,
) -> None:  # fmt: skip
    """Store those of the pictures `ids`, found at `places` of the column, whose bytes are new."""
    waiting: dict[str, list[int]] = {}
    for image_id, place in zip(ids, places.tolist(), strict=True):
        if image_id not in pictures.stored:
            waiting.setdefault(image_id, []).append(place)
    while waiting:  # a picture that is broken in one row may be whole in another
        data = _encoded(column.take(pa.array([rows.pop(0) for rows in waiting.values()])), folder)
        found = pool.map(examine, (value.as_buffer() for value in data))
        fresh = [pictures.add(image_id, *facts) for image_id, facts in zip(waiting, found, strict=True)]
        if any(fresh):
            batch = pa.record_batch([pa.array(list(waiting), pa.string()), data], schema=ImageWriter.schema)
            writer.write(batch.filter(pa.array(fresh)))
        waiting = {name: rows for name, rows in waiting.items() if rows and name not in pictures.stored}


def _encoded(column: pa.Array, folder: Path) -> pa.Array:
    """Pictures as bytes, which stand in the column, in the field `bytes` of a struct, or in the file of a path.

    Paths start from the folder of the shard; one that leaves it, or leads nowhere, gives null.
    """
    if pa.types.is_struct(column.type):
        data = pc.struct_field(column, "bytes").cast(pa.binary())
        if not data.null_count or column.type.get_field_index("path") < 0:
            return data
        paths = pc.struct_field(column, "path").to_pylist()
        known = zip(data, paths, strict=True)
        return pa.array([byte.as_py() or _file(folder, path) for byte, path in known], pa.binary())
    if any(is_text(column.type) for is_text in _TEXT):
        return pa.array([_file(folder, path) for path in column.to_pylist()], pa.binary())
    return column.cast(pa.binary())


def _file(folder: Path, path: str | None) -> bytes | None:
    """The bytes of a shard's picture file; None where there is none, or it is not in the shard's folder."""
    if path is None or not is_inside(path):
        return None
    file = folder / path
    return file.read_bytes() if file.is_file() and stays_inside(file, folder) else None


def _judge_pictures(rows: pa.Table, pictures: Pictures) -> pa.Table:
    """The same rows; those whose pictures turned out to be broken or one and the same have a rule now."""
    rules, values = rows["rule"].to_pylist(), rows["value"].to_pylist()
    ids = zip(rows["image_0"].to_pylist(), rows["image_1"].to_pylist(), strict=True)
    for row, (rule, pair) in enumerate(zip(rules, ids, strict=True)):
        if rule is None:
            broken = [image_id for image_id in pair if image_id not in pictures.stored]
            if broken:
                rules[row] = "picture"
                values[row] = "; ".join(f"{image_id}: {pictures.faults[image_id]}" for image_id in broken)[:200]
            elif pictures.stored[pair[0]] == pictures.stored[pair[1]]:
                rules[row] = "same_bytes"
    known = rows.drop_columns(["rule", "value"])
    return known.append_column("rule", pa.array(rules, pa.string())).append_column(
        "value", pa.array(values, pa.string())
    )


def _groups(kept: pa.Table, stored: Mapping[str, str]) -> pa.Table:
    """Rows as group records of two candidates."""
    sides = [[stored[image_id] for image_id in kept[name].to_pylist()] for name in ("image_0", "image_1")]
    label = kept["label_0"].to_numpy()
    ends = pa.array(np.arange(0, 2 * len(kept) + 1, 2, dtype=np.int32))
    candidates = pa.array([image_id for pair in zip(*sides, strict=True) for image_id in pair], pa.string())
    picked = pa.array(np.stack([label >= 0.5, label <= 0.5], axis=1).reshape(-1))
    columns = [
        *(kept[name] for name in ("record_id", "user_id", "created_at", "prompt")),
        pa.ListArray.from_arrays(ends, candidates),
        pa.ListArray.from_arrays(ends, picked),
    ]
    return pa.table(columns, schema=GROUP_SCHEMA)


def _quarantine(rows: pa.Table, shards: Sequence[Path]) -> pa.Table:
    """Faulty rows: shard, row in it, record, rule, value."""
    bad = rows.filter(pc.is_in(rows["rule"], pa.array([rule.name for rule in RULES if rule.quarantined])))
    names = pa.array([shard.name for shard in shards], pa.string()).take(bad["file"].combine_chunks())
    columns = [names, bad["row"], bad["record_id"], bad["rule"], bad["value"].fill_null("")]
    return pa.table(columns, schema=QUARANTINE)


def _removed(rows: pa.Table) -> dict[str, int]:
    counts = rows["rule"].drop_null().value_counts().to_pylist()
    found = {item["values"]: item["counts"] for item in counts}
    return {rule.name: found.get(rule.name, 0) for rule in RULES}
