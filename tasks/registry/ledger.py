"""An append-only, hash-chained log: one JSON object a line, each holding the hash of the line before it.

Changing, reordering or removing a line breaks the chain at that line. Cutting lines off the end leaves a valid, shorter
chain: the registry therefore keeps the head's hash in MLflow too (see `Registry.verify`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from perfusion.errors import GateError

__all__ = ["GENESIS", "Chain", "Entry", "Ledger"]

GENESIS = "0" * 64


@dataclass(frozen=True)
class Entry:
    """One line of the log.

    Attributes:
        seq: position, from 1.
        time: when it was written, ISO 8601 in UTC.
        event: "register", "evidence", "adopt", "intent", "commit", "abort" or "repair".
        body: the event's own fields, plain JSON values.
        previous: hash of the entry before, or `GENESIS`.
        hash: SHA-256 of the line's canonical JSON without this field, 64 hex digits.
    """

    seq: int
    time: str
    event: str
    body: dict[str, Any]
    previous: str
    hash: str


class Chain:
    """The log, wherever its lines are kept. Appending is for whoever holds it; reading needs no lock.

    Attributes:
        path: where the log is, to be shown.
    """

    path: Path | str

    def __init__(self) -> None:
        self._read = b""  # whole lines already checked, so that a long log is not parsed again at every step
        self._entries: list[Entry] = []

    def held(self, timeout: float) -> AbstractContextManager[None]:
        """Keep everybody else from a transition for as long as the block lasts, or as this process lives.

        Raises:
            GateError: somebody else holds it for longer than `timeout` seconds.
        """
        raise NotImplementedError

    def entries(self) -> list[Entry]:
        """Every whole line, checked; a torn last line (a crash while writing) is not an entry.

        Raises:
            GateError: a line is not what was written; names the log, the line and what is wrong.
        """
        whole = self._whole()
        known = whole.startswith(self._read)
        entries = list(self._entries) if known else []
        for line in whole[len(self._read) if known else 0 :].splitlines():
            entries.append(self._parse(len(entries) + 1, line, entries[-1].hash if entries else GENESIS))
        self._read, self._entries = whole, entries
        return list(entries)

    def append(self, event: str, body: dict[str, Any]) -> Entry:
        """Write one entry and wait until it is kept.

        Raises:
            GateError: the log as it stands does not verify; nothing is appended to a broken chain.
        """
        return self._write(event, body, self.entries())

    def _whole(self) -> bytes:
        """Every whole line, as it was written."""
        raise NotImplementedError

    def _put(self, seq: int, line: str) -> None:
        """Keep one more line, for certain."""
        raise NotImplementedError

    def _write(self, event: str, body: dict[str, Any], entries: list[Entry]) -> Entry:
        record: dict[str, Any] = {
            "seq": len(entries) + 1,
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "event": event,
            "body": body,
            "previous": entries[-1].hash if entries else GENESIS,
        }
        record["hash"] = _hash(record)
        line = _canonical(record)
        self._put(record["seq"], line)
        return Entry(**json.loads(line))

    def _parse(self, number: int, line: bytes, previous: str) -> Entry:
        where = f"{self.path}: line {number}"
        remedy = "the promotion log was altered; restore it from a backup before any transition"
        try:
            record = json.loads(line)
            entry = Entry(**record)
        except (ValueError, TypeError) as error:
            raise GateError(f"{where} is not a log entry ({error}); {remedy}") from None
        if _hash({key: value for key, value in record.items() if key != "hash"}) != entry.hash:
            raise GateError(f"{where}: its content does not give its hash {entry.hash[:12]}; {remedy}")
        if entry.previous != previous or entry.seq != number:
            raise GateError(
                f"{where}: entry {entry.seq} follows {entry.previous[:12]}, but the line before it is "
                f"entry {number - 1} with {previous[:12]}; {remedy}"
            )
        return entry


class Ledger(Chain):
    """The log in one file, with a lock file beside it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path: Path = path

    @contextmanager
    def held(self, timeout: float) -> Iterator[None]:
        """See `Chain.held`; the lock goes with the process, deleting its file frees nothing."""
        lock = FileLock(self.path.with_name("promotions.lock"), timeout=timeout)
        try:
            lock.acquire()
        except Timeout:
            raise GateError(
                f"{lock.lock_file}: held by another promotion or rollback for {timeout:g} s; wait until it ends and "
                "try again (the lock goes with its process, deleting the file frees nothing)"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def append(self, event: str, body: dict[str, Any]) -> Entry:
        """See `Chain.append`; a torn last line is dropped first, and that is logged."""
        entries = self.entries()
        whole, torn = self._split()
        if torn:
            with open(self.path, "r+b") as file:
                file.truncate(len(whole))
                os.fsync(file.fileno())
            entries.append(self._write("repair", {"dropped": torn.decode("utf-8", "replace")}, entries))
        return self._write(event, body, entries)

    def _whole(self) -> bytes:
        return self._split()[0]

    def _put(self, seq: int, line: str) -> None:
        created = not self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab", buffering=0) as file:
            file.write((line + "\n").encode())
            os.fsync(file.fileno())
        if created:
            _fsync_folder(self.path.parent)

    def _split(self) -> tuple[bytes, bytes]:
        """The whole lines and what follows the last newline."""
        data = self.path.read_bytes() if self.path.exists() else b""
        cut = data.rfind(b"\n") + 1
        return data[:cut], data[cut:]


def _canonical(record: dict[str, Any]) -> str:
    return json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _hash(record: dict[str, Any]) -> str:
    return hashlib.sha256(_canonical(record).encode()).hexdigest()


def _fsync_folder(folder: Path) -> None:
    """Make a new file's name survive a power cut, not only its content."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
