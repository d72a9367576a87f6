"""The dataset layout on disk: users.parquet, groups.parquet, images/part-*.parquet.

Reading checks files, columns and types, which concern the whole dataset. What can be wrong with one record (a picture
that is absent, a duplicate id) is the validator's to find and to quarantine, so reading lets it pass.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Self

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from perfusion.data.parquetfiles import check_place, read_bounded
from perfusion.data.pictures import ImageStore, is_safe_id
from perfusion.errors import DataError

__all__ = [
    "GROUP_COLUMNS",
    "GROUP_SCHEMA",
    "Dataset",
    "ImageWriter",
    "check_groups",
    "new_folder",
    "read_dataset",
    "read_groups",
    "read_parquet",
    "read_users",
    "resumable_folder",
    "write_dataset",
    "write_rows",
    "write_table",
]

_IMAGES_PER_PART, _IMAGES_PER_GROUP = 8192, 1024
_BYTES_PER_PART = 256 << 20


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_list_of(inner: Callable[[pa.DataType], bool]) -> Callable[[pa.DataType], bool]:
    return lambda kind: (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and inner(kind.value_type)


def _is_feature(kind: pa.DataType) -> bool:
    return _is_text(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)


GROUP_COLUMNS: dict[str, str] = {
    "record_id": "string",
    "user_id": "string",
    "created_at": "timestamp",
    "prompt": "string",
    "image_ids": "list of string",
    "picked": "list of bool",
}
_STORED: dict[str, pa.DataType] = {
    "string": pa.string(),
    "timestamp": pa.timestamp("ms"),
    "list of string": pa.list_(pa.string()),
    "list of bool": pa.list_(pa.bool_()),
}
GROUP_SCHEMA = pa.schema([(name, _STORED[kind]) for name, kind in GROUP_COLUMNS.items()])
_CHECKS: dict[str, Callable[[pa.DataType], bool]] = {
    "string": _is_text,
    "timestamp": pa.types.is_timestamp,
    "list of string": _is_list_of(_is_text),
    "list of bool": _is_list_of(pa.types.is_boolean),
}


@dataclass(frozen=True)
class Dataset:
    """A dataset as read.

    Attributes:
        root: its folder.
        users: one row a user: user_id and one column a feature (strings are categories, numbers are numbers).
        groups: one row a group record: `GROUP_COLUMNS`; image_ids and picked hold Python lists, or None.
        images: the pictures, by id.
    """

    root: Path
    users: pd.DataFrame
    groups: pd.DataFrame
    images: ImageStore


def read_dataset(root: Path | str, tables: Path | str | None = None) -> Dataset:
    """Read a dataset.

    Args:
        root: its folder.
        tables: folder of users.parquet and groups.parquet to read instead of the dataset's own: what validation left.

    Raises:
        DataError: a file is absent or unreadable, a column is absent, unknown or of a wrong type, or there are no
            groups or users at all; the text names file, column, rule and remedy.
    """
    root = Path(root)
    tables = root if tables is None else Path(tables)
    users, groups = read_users(tables / "users.parquet"), read_groups(tables / "groups.parquet")
    for name, frame in (("users", users), ("groups", groups)):
        if frame.empty:
            raise DataError(f"{tables / name}.parquet: no rows; a dataset needs at least one user with one group")
    return Dataset(root, users, groups, ImageStore(root / "images"))


def read_users(path: Path | str) -> pd.DataFrame:
    """Read users.parquet: user_id and any number of feature columns (string, number or bool)."""
    path = Path(path)
    table = read_parquet(path)
    if "user_id" not in table.column_names:
        raise DataError(f"{path}: column user_id is absent (columns: {table.column_names}); it names the user of a row")
    for field in table.schema:
        if field.name == "user_id" and not _is_text(field.type):
            raise DataError(f"{path}: column user_id is {field.type}, want string; write ids as text, not numbers")
        if not _is_feature(field.type):
            raise DataError(
                f"{path}: column {field.name} is {field.type}; a feature is a string, a number or a bool: "
                "turn it into one, or leave the column out"
            )
    return table.to_pandas()


def read_groups(path: Path | str, extra: Sequence[str] = ()) -> pd.DataFrame:
    """Read groups.parquet: exactly `GROUP_COLUMNS` and the string columns named in `extra`."""
    path = Path(path)
    table = read_parquet(path)
    expected = _check_columns(path, table.schema, extra)
    frame = table.select(expected).to_pandas()
    for name in ("image_ids", "picked"):
        frame[name] = pd.Series(table.column(name).to_pylist(), dtype=object, index=frame.index)
    return frame


def check_groups(path: Path | str, extra: Sequence[str] = ()) -> None:
    """Hold the columns of groups.parquet against the layout without reading a row; the same errors as `read_groups`."""
    path = Path(path)
    _check_columns(path, _open(path).schema_arrow, extra)


def _check_columns(path: Path, schema: pa.Schema, extra: Sequence[str]) -> list[str]:
    """The columns of groups.parquet in the layout's order."""
    expected = {**GROUP_COLUMNS, **dict.fromkeys(extra, "string")}
    absent = [name for name in expected if name not in schema.names]
    if absent:
        raise DataError(f"{path}: columns absent: {', '.join(absent)}; the layout has {', '.join(expected)}")
    unknown = [name for name in schema.names if name not in expected]
    if unknown:
        raise DataError(
            f"{path}: columns unknown to the layout: {', '.join(unknown)}; drop them, or move them to users"
        )
    for name, kind in expected.items():
        actual = schema.field(name).type
        if not _CHECKS[kind](actual):
            raise DataError(f"{path}: column {name} is {actual}, want {kind}; convert it and write the file again")
    return list(expected)


def write_table(path: Path | str, frame: pd.DataFrame) -> None:
    """Write users or groups as parquet with the layout's types, whole or not at all."""
    table = pa.Table.from_pandas(frame, schema=_schema(frame), preserve_index=False)
    write_rows(path, table.schema, table.to_batches(max_chunksize=1 << 20))


def write_rows(path: Path | str, schema: pa.Schema, batches: Iterable[pa.RecordBatch | pa.Table]) -> None:
    """Write a parquet file as its rows come, a row group a batch, whole or not at all.

    Raises:
        DataError: the disk is full or the folder cannot be written to.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with pq.ParquetWriter(temporary, schema) as writer:
            for batch in batches:
                writer.write(batch)
        os.replace(temporary, path)
    except OSError as error:
        raise _disk_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_dataset(
    root: Path | str,
    users: pd.DataFrame,
    groups: pd.DataFrame,
    images: Iterable[tuple[str, bytes]],
    *,
    beside: Mapping[str, bytes] | None = None,
    replace: bool = False,
) -> None:
    """Write a dataset whole or not at all: it is built beside `root` and then put in its place in one move.

    Args:
        root: the folder to create.
        users: see `Dataset`.
        groups: see `Dataset`.
        images: (image_id, encoded bytes), streamed.
        beside: further small files to put into the folder, by name.
        replace: put the new dataset in the place of an older one; without it, a non-empty folder is refused.

    Raises:
        DataError: `root` holds files already, an image id cannot be a file name, or the disk is full.
    """
    with new_folder(root, replace) as built:
        write_table(built / "users.parquet", users)
        write_table(built / "groups.parquet", groups)
        with ImageWriter(built / "images") as writer:
            for batch in _batched(images):
                writer.write(batch)
        for name, data in (beside or {}).items():
            (built / name).write_bytes(data)


@contextmanager
def new_folder(root: Path | str, replace: bool = False) -> Iterator[Path]:
    """A folder to build a dataset in, moved to `root` in one step if the block ends well, and removed if not.

    Raises:
        DataError: `root` holds files already and is not to be replaced, or the disk is full.
    """
    root = Path(root).absolute()
    _check_free(root, replace)
    built = root.with_name(f".{root.name}.{os.getpid()}.part")
    shutil.rmtree(built, ignore_errors=True)
    try:
        built.mkdir(parents=True)
        yield built
        _put_in_place(built, root)
    except OSError as error:
        raise _disk_error(root, error) from error
    finally:
        shutil.rmtree(built, ignore_errors=True)


@contextmanager
def resumable_folder(root: Path | str, key: str, replace: bool = False) -> Iterator[Path]:
    """As `new_folder`, but what an interrupted process left is there again for the next one with the same key.

    An error removes it, as nothing could be built on it; Ctrl-C, a signal or a crash of the machine do not.

    Args:
        root: the dataset's folder.
        key: says what is being built, from what; another key starts anew.
        replace: put the new dataset in the place of an older one.

    Raises:
        DataError: as `new_folder`, or another process is building the same folder.
    """
    root = Path(root).absolute()
    _check_free(root, replace)
    built = root.with_name(f".{root.name}.unfinished")
    root.parent.mkdir(parents=True, exist_ok=True)
    with built.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{root}: another process is building it; wait for it, or choose another folder") from None
        try:
            mark = built / "key"
            if not mark.is_file() or mark.read_text() != key:
                shutil.rmtree(built, ignore_errors=True)
                built.mkdir()
                mark.write_text(key)
            yield built
            mark.unlink()
            _put_in_place(built, root)
        except Exception as error:
            shutil.rmtree(built, ignore_errors=True)
            if isinstance(error, OSError):
                raise _disk_error(root, error) from error
            raise
        finally:
            Path(lock.name).unlink(missing_ok=True)


def _check_free(root: Path, replace: bool) -> None:
    if root.exists() and (not root.is_dir() or any(root.iterdir())) and not replace:
        raise DataError(f"{root}: holds files already; choose an empty folder, or ask for the dataset to be replaced")


def _put_in_place(built: Path, root: Path) -> None:
    if not root.exists():
        built.rename(root)
        return
    old = root.with_name(f".{root.name}.{os.getpid()}.old")
    root.rename(old)
    try:
        built.rename(root)
    except OSError:
        old.rename(root)
        raise
    shutil.rmtree(old)


class ImageWriter:
    """Writes images/part-*.parquet as pictures come; a part ends after 8192 pictures or 256 MiB.

    Args:
        folder: to write into; made unless parts are there.
        parts: whole parts that are there already; files beyond them, of a writer that was interrupted, are removed.

    Attributes:
        parts: parts begun.
    """

    schema = pa.schema([("image_id", pa.string()), ("image", pa.binary())])

    def __init__(self, folder: Path, parts: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in sorted(folder.glob("part-*.parquet"))[parts:]:
            stale.unlink()
        self._folder = folder
        self.parts = parts
        self._rows = self._bytes = 0
        self._file: pq.ParquetWriter | None = None

    def write(self, batch: pa.RecordBatch) -> None:
        """Add pictures: columns image_id and image, a row group."""
        if self._file is None:
            # encoded pictures do not compress again
            path = self._folder / f"part-{self.parts:05d}.parquet"
            self._file = pq.ParquetWriter(path, self.schema, compression="none", use_dictionary=False)
            self.parts, self._rows, self._bytes = self.parts + 1, 0, 0
        self._file.write_batch(batch)
        self._rows += batch.num_rows
        self._bytes += batch.nbytes
        if self._rows >= _IMAGES_PER_PART or self._bytes >= _BYTES_PER_PART:
            self.end_part()

    def end_part(self) -> None:
        """Close the part that is being written; the next picture begins another."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.parts == 0 and error[0] is None:
            self.write(pa.RecordBatch.from_pylist([], schema=self.schema))
        self.end_part()


def _batched(images: Iterable[tuple[str, bytes]]) -> Iterator[pa.RecordBatch]:
    rows = iter(images)
    while chunk := list(islice(rows, _IMAGES_PER_GROUP)):
        for image_id, _ in chunk:
            if not is_safe_id(image_id):
                raise DataError(
                    f"image id {image_id[:80]!r} cannot be a file name; use letters, digits, '_', '-' and '.'"
                )
        ids, data = zip(*chunk, strict=True)
        yield pa.record_batch({"image_id": pa.array(ids), "image": pa.array(data, pa.binary())}, ImageWriter.schema)


def _schema(frame: pd.DataFrame) -> pa.Schema:
    """The layout's types for known columns, what pyarrow infers for the rest (features)."""
    # a feature of users may carry the name of a groups' column, and keeps its own type
    fixed = GROUP_COLUMNS if set(GROUP_COLUMNS) <= set(frame.columns) else {"record_id": "string", "user_id": "string"}
    inferred = pa.Schema.from_pandas(frame, preserve_index=False)
    return pa.schema(
        [(field.name, _STORED[fixed[field.name]] if field.name in fixed else _plain(field.type)) for field in inferred]
    )


def _plain(kind: pa.DataType) -> pa.DataType:
    return pa.string() if pa.types.is_large_string(kind) or pa.types.is_null(kind) else kind


def read_parquet(path: Path) -> pa.Table:
    """A parquet file, whatever its columns."""
    _open(path).close()
    try:
        return read_bounded(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: not a readable parquet file ({error})") from None


def _open(path: Path) -> pq.ParquetFile:
    if not path.exists():
        raise DataError(
            f"{path}: no such file; a dataset folder holds users.parquet, groups.parquet, images/part-*.parquet"
        )
    check_place(path, path.parent)
    try:
        return pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: not a readable parquet file ({error})") from None


def _disk_error(path: Path, error: OSError) -> DataError:
    remedy = "free some disk space" if error.errno == errno.ENOSPC else "check the folder's permissions"
    return DataError(f"{path}: nothing was written: {error.strerror or error}; {remedy} and try again")
