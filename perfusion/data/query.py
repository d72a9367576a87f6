"""Questions to parquet files of any length, answered in bounded memory: DuckDB, with what does not fit on disk."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from perfusion.errors import DataError

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["database"]

MEMORY = "2GB"
MOST_THREADS = 8  # each holds a row group in memory


@contextmanager
def database() -> Iterator[DuckDBPyConnection]:
    """An empty database that lives as long as the block; rows come out in the order of the files.

    Raises:
        DataError: a file turns out damaged, or what does not fit into memory finds no room on disk.
    """
    import duckdb

    threads = min(MOST_THREADS, len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory(prefix="perfusion-spill-") as spill:
        options: dict[str, str | int | float | list[str]] = {
            "memory_limit": MEMORY,
            "temp_directory": spill,
            "threads": threads,
        }
        offline = {"autoinstall_known_extensions": False, "autoload_known_extensions": False}
        connection = duckdb.connect(config={**options, **offline})
        try:
            yield connection
        except (duckdb.BinderException, duckdb.CatalogException, duckdb.ParserException):
            raise  # a query that is wrong is a defect of this program
        except duckdb.Error as error:
            reason = str(error).splitlines()[0]
            raise DataError(f"a table could not be read ({reason}); write its file again, or free disk space") from None
        finally:
            connection.close()
