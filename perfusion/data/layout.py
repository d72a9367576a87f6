"""The dataset layout on disk: users.parquet, groups.parquet, images/part-*.parquet.

Reading checks files, columns and types, which concern the whole dataset. What can be wrong with one record (a picture
that is absent, a duplicate id) is the validator's to find and to quarantine, so reading lets it pass.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from perfusion.data.pictures import ImageStore, is_safe_id
from perfusion.errors import DataError

__all__ = [
    "GROUP_COLUMNS",
    "Dataset",
    "read_dataset",
    "read_groups",
    "read_parquet",
    "read_users",
    "write_dataset",
    "write_table",
]

_IMAGES_PER_PART = 8192


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
    expected = {**GROUP_COLUMNS, **dict.fromkeys(extra, "string")}
    absent = [name for name in expected if name not in table.column_names]
    if absent:
        raise DataError(f"{path}: columns absent: {', '.join(absent)}; the layout has {', '.join(expected)}")
    unknown = [name for name in table.column_names if name not in expected]
    if unknown:
        raise DataError(
            f"{path}: columns unknown to the layout: {', '.join(unknown)}; drop them, or move them to users"
        )
    for name, kind in expected.items():
        actual = table.schema.field(name).type
        if not _CHECKS[kind](actual):
            raise DataError(f"{path}: column {name} is {actual}, want {kind}; convert it and write the file again")
    frame = table.select(list(expected)).to_pandas()
    for name in ("image_ids", "picked"):
        frame[name] = pd.Series(table.column(name).to_pylist(), dtype=object, index=frame.index)
    return frame


def write_table(path: Path | str, frame: pd.DataFrame) -> None:
    """Write users or groups as parquet with the layout's types, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        pq.write_table(pa.Table.from_pandas(frame, schema=_schema(frame), preserve_index=False), temporary)
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
    root = Path(root).absolute()
    if root.exists() and (not root.is_dir() or any(root.iterdir())) and not replace:
        raise DataError(f"{root}: holds files already; choose an empty folder, or ask for the dataset to be replaced")
    built = root.with_name(f".{root.name}.{os.getpid()}.part")
    shutil.rmtree(built, ignore_errors=True)
    try:
        write_table(built / "users.parquet", users)
        write_table(built / "groups.parquet", groups)
        _write_images(built / "images", images)
        for name, data in (beside or {}).items():
            (built / name).write_bytes(data)
        _put_in_place(built, root)
    except OSError as error:
        raise _disk_error(root, error) from error
    finally:
        shutil.rmtree(built, ignore_errors=True)


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


def _write_images(folder: Path, images: Iterable[tuple[str, bytes]]) -> None:
    folder.mkdir(parents=True)
    schema = pa.schema([("image_id", pa.string()), ("image", pa.binary())])
    ids: list[str] = []
    data: list[bytes] = []
    part = 0

    def flush() -> None:
        # encoded pictures do not compress again
        table = pa.table({"image_id": ids, "image": data}, schema=schema)
        pq.write_table(table, folder / f"part-{part:05d}.parquet", compression="none", row_group_size=1024)

    for image_id, encoded in images:
        if not is_safe_id(image_id):
            raise DataError(f"image id {image_id[:80]!r} cannot be a file name; use letters, digits, '_', '-' and '.'")
        ids.append(image_id)
        data.append(encoded)
        if len(ids) == _IMAGES_PER_PART:
            flush()
            part, ids, data = part + 1, [], []
    if ids or part == 0:
        flush()


def _schema(frame: pd.DataFrame) -> pa.Schema:
    """The layout's types for known columns, what pyarrow infers for the rest (features)."""
    known = {
        "string": pa.string(),
        "timestamp": pa.timestamp("ms"),
        "list of string": pa.list_(pa.string()),
        "list of bool": pa.list_(pa.bool_()),
    }
    # a feature of users may carry the name of a groups' column, and keeps its own type
    fixed = GROUP_COLUMNS if set(GROUP_COLUMNS) <= set(frame.columns) else {"record_id": "string", "user_id": "string"}
    inferred = pa.Schema.from_pandas(frame, preserve_index=False)
    return pa.schema(
        [(field.name, known[fixed[field.name]] if field.name in fixed else _plain(field.type)) for field in inferred]
    )


def _plain(kind: pa.DataType) -> pa.DataType:
    return pa.string() if pa.types.is_large_string(kind) or pa.types.is_null(kind) else kind


def read_parquet(path: Path) -> pa.Table:
    """A parquet file, whatever its columns."""
    if not path.exists():
        raise DataError(
            f"{path}: no such file; a dataset folder holds users.parquet, groups.parquet, images/part-*.parquet"
        )
    try:
        return pq.ParquetFile(path).read()
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: not a readable parquet file ({error})") from None


def _disk_error(path: Path, error: OSError) -> DataError:
    remedy = "free some disk space" if error.errno == errno.ENOSPC else "check the folder's permissions"
    return DataError(f"{path}: nothing was written: {error.strerror or error}; {remedy} and try again")
