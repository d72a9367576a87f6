"""A stage's live log: one JSON object a line, written by the stage, followed by whoever shows or keeps it.

Lines are of four kinds, told apart by a key:
    {"key": ...}                                           the first line: which run of the stage this is
    {"run": ..., "step": ..., "of": ..., "metrics": {...}}  numbers of a training step, of `of` in all
    {"run": ..., "step": ..., "image": ..., "name": ...}    a picture file, relative to the workspace
    {"error": ..., "message": ..., "expected": ...}        the last line of a stage that failed
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from perfusion.checkpoint import atomic_write

__all__ = ["LiveLog", "LogTail", "append_record", "read_log"]

Record = dict[str, Any]


class LiveLog:
    """Writes a stage's log. A resumed stage keeps the lines up to the step from which it goes on."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def begin(cls, path: Path, key: str, resumed: Mapping[str, int]) -> Self:
        """Begin the log of the run named by `key`, or go on with it.

        Args:
            path: the file.
            key: the stage's run key; a log of another key is begun anew.
            resumed: by training run, the step from which it goes on; later lines were written before a crash, and the
                steps they tell of are about to be taken again.
        """
        old = [record for record in read_log(path) if "error" not in record] if resumed else []
        if not old or old[0].get("key") != key:
            old = [{"key": key}]
        kept = [record for record in old if record.get("step", 0) <= resumed.get(record.get("run", ""), 0)]
        atomic_write(path, "".join(_line(record) for record in kept).encode())
        return cls(path)

    def write(self, **record: Any) -> None:
        """Append one line."""
        append_record(self.path, **record)


def append_record(path: Path, **record: Any) -> None:
    """Append one line in one write.

    Raises:
        OSError: there is no space for all of it; then nothing of it is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    line = _line({**record, "time": round(time.time(), 3)}).encode()
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        written = os.write(file, line)
        if written < len(line):
            os.ftruncate(file, os.fstat(file).st_size - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    finally:
        os.close(file)


class LogTail:
    """Reads what was appended to a log since the last look; notices when the log was begun anew."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: tuple[int, int] | None = None
        self._offset = 0

    def poll(self) -> list[Record]:
        """New whole lines, oldest first."""
        try:
            with open(self.path, "rb") as file:
                status = os.fstat(file.fileno())
                if (status.st_dev, status.st_ino) != self._file or status.st_size < self._offset:
                    self._file, self._offset = (status.st_dev, status.st_ino), 0
                file.seek(self._offset)
                content = file.read()
        except FileNotFoundError:
            return []
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        return list(_records(whole.decode()))


def read_log(path: Path) -> list[Record]:
    """All records of a log; none when there is no log. A last line that a kill has torn is no record."""
    text = path.read_text() if path.exists() else ""
    return list(_records(text[: text.rfind("\n") + 1]))


def _records(text: str) -> Iterator[Record]:
    for line in text.splitlines():
        record = json.loads(line)
        if not isinstance(record, dict):
            raise ValueError(f"not a log record: {line[:200]}")
        yield record


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, default=float) + "\n"
