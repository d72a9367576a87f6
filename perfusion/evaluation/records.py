"""Tables that people hand in, CSV or parquet: every cell is read as text and judged; bad rows are set aside by rule."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from perfusion.data.layout import read_parquet
from perfusion.errors import DataError

__all__ = ["numbers", "read_records", "set_aside"]

_UNREADABLE = (pd.errors.ParserError, pd.errors.EmptyDataError, pd.errors.ParserWarning)


def read_records(path: Path | str, columns: Sequence[str]) -> pd.DataFrame:
    """A table as text, "" where a cell is empty; indexed by the row's number below the header, from 1.

    Args:
        path: a .csv file (UTF-8, commas) or a .parquet file. Names of columns are read without case and outer spaces.
        columns: those that are needed; others are left out.

    Raises:
        DataError: the file is absent, unreadable or of another kind, has no row, or lacks a column.
    """
    path = Path(path)
    if path.suffix not in (".csv", ".parquet"):
        raise DataError(f"{path}: neither .csv nor .parquet; save the table as one of them")
    frame = _read_csv(path) if path.suffix == ".csv" else _as_text(read_parquet(path).to_pandas())
    frame.columns = [str(name).strip().lower() for name in frame.columns]
    absent = [name for name in columns if name not in frame.columns]
    if absent:
        raise DataError(
            f"{path}: columns absent: {', '.join(absent)}; the table has {', '.join(frame.columns)}, and needs "
            f"{', '.join(columns)}, separated by commas"
        )
    if frame.columns.duplicated().any():
        twice = frame.columns[frame.columns.duplicated()][0]
        raise DataError(f"{path}: column {twice} is there twice; keep the one that is meant")
    if frame.empty:
        raise DataError(f"{path}: no rows below the header; nothing to evaluate")
    frame.index = pd.RangeIndex(1, len(frame) + 1, name="row")
    return frame[list(columns)].apply(lambda cells: cells.str.strip())


def numbers(cells: pd.Series) -> pd.Series:
    """Cells as floats, NaN where a cell holds no finite number."""
    found = pd.to_numeric(cells, errors="coerce").astype(float)
    return found.where(found.abs() < float("inf"))


def set_aside(
    frame: pd.DataFrame, broken: Mapping[str, pd.Series], values: Mapping[str, pd.Series]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Part sound rows from bad ones.

    Args:
        frame: the rows.
        broken: rule -> which rows break it; a row counts under the first rule it breaks.
        values: rule -> the cell to show.

    Returns:
        The sound rows, and one row for each bad one: index `row`, columns rule and value.
    """
    rule = pd.Series("", index=frame.index, dtype=object)
    value = rule.copy()
    for name, where in broken.items():
        first = where & (rule == "")
        rule[first], value[first] = name, values[name][first].astype(str).str.slice(0, 200)
    bad = rule != ""
    return frame[~bad], pd.DataFrame({"rule": rule[bad], "value": value[bad]})


def _read_csv(path: Path) -> pd.DataFrame:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # cells beyond the header would be dropped
            found = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False)
        return found.fillna("")  # a row that ends early
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (
        pd.errors.ParserError,
        pd.errors.EmptyDataError,
        UnicodeDecodeError,
        OSError,
        pd.errors.ParserWarning,
    ) as error:
        said = str(error).strip().splitlines()[0]
        raise DataError(f"{path}: not a readable CSV file ({said}); save it as UTF-8 with commas") from None


def _as_text(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.apply(lambda cells: cells.astype(object).map(lambda cell: "" if pd.isna(cell) else str(cell)))
