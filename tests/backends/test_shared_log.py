"""The promotion log in a real PostgreSQL: what the file does, and what a database must do besides."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from deploy.local import Backends
from perfusion.errors import GateError
from tasks.registry.shared_log import SharedLedger

psycopg2 = pytest.importorskip("psycopg2", reason="the extra postgres-s3 is not installed")
pytestmark = pytest.mark.slow


@pytest.fixture
def address(client: Backends) -> Iterator[str]:
    """A database of the test's own."""
    server, _, _ = client.environment["PERFUSION_PROMOTION_LOG"].rpartition("/")
    connection = psycopg2.connect(f"{server}/postgres")
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute("DROP DATABASE IF EXISTS log WITH (FORCE)")
        cursor.execute("CREATE DATABASE log")
    yield f"{server}/log"
    with connection.cursor() as cursor:
        cursor.execute("DROP DATABASE log WITH (FORCE)")
    connection.close()


def execute(address: str, statement: str) -> None:
    connection = psycopg2.connect(address)
    with connection, connection.cursor() as cursor:
        cursor.execute(statement)
    connection.close()


def written(address: str, entries: int) -> SharedLedger:
    ledger = SharedLedger(address)
    with ledger.held(5):
        for number in range(entries):
            ledger.append("commit", {"id": f"transition {number}", "said": 'ü "quoted" \n'})
    return ledger


def test_entries_come_back_as_they_were_written_and_chained(address: str) -> None:
    assert SharedLedger(address).entries() == [], "nothing was ever written, and reading makes no table"
    entries = written(address, 3).entries()
    assert entries == SharedLedger(address).entries()
    assert [entry.seq for entry in entries] == [1, 2, 3]
    assert [entry.previous for entry in entries[1:]] == [entry.hash for entry in entries[:-1]]
    assert entries[1].body == {"id": "transition 1", "said": 'ü "quoted" \n'}


@pytest.mark.parametrize(
    "statement",
    ["UPDATE promotion_log SET line = ''", "DELETE FROM promotion_log WHERE seq = 2", "TRUNCATE promotion_log"],
)
def test_the_database_refuses_to_change_what_was_written(address: str, statement: str) -> None:
    ledger = written(address, 2)
    with pytest.raises(psycopg2.errors.RaiseException, match="append-only"):
        execute(address, statement)
    assert len(ledger.entries()) == 2


def test_what_was_changed_behind_the_triggers_back_is_found_by_the_chain(address: str) -> None:
    ledger = written(address, 3)
    ledger.entries()
    execute(address, "ALTER TABLE promotion_log DISABLE TRIGGER stays; DELETE FROM promotion_log WHERE seq = 2")
    for reader in (ledger, SharedLedger(address)):
        with pytest.raises(GateError, match="line 2: entry 3 follows"):
            reader.entries()
    with pytest.raises(GateError, match="line 2"), ledger.held(5):
        ledger.append("commit", {})


def test_nobody_appends_without_the_lock(address: str) -> None:
    with pytest.raises(RuntimeError, match="whoever holds the log"):
        SharedLedger(address).append("commit", {})


def test_a_second_holder_is_refused_when_its_patience_ends(address: str) -> None:
    with SharedLedger(address).held(5):
        began = time.monotonic()
        with pytest.raises(GateError, match=r"held by another promotion or rollback for 0\.5 s"), \
                SharedLedger(address).held(0.5):  # fmt: skip
            pytest.fail("held twice")
        assert 0.4 < time.monotonic() - began < 20
    with SharedLedger(address).held(5):
        pass


RACE = """
import sys
from tasks.registry.shared_log import SharedLedger
ledger = SharedLedger(sys.argv[1])
for _ in range(int(sys.argv[2])):
    with ledger.held(60):
        before = len(ledger.entries())
        assert ledger.append("commit", {"id": sys.argv[3]}).seq == before + 1
"""
HOLD = """
import sys, time
from tasks.registry.shared_log import SharedLedger
with SharedLedger(sys.argv[1]).held(60):
    print("held", flush=True)
    time.sleep(600)
"""


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_racing_processes_write_one_chain(address: str) -> None:
    """From an empty database: the table is made once, too."""
    each = 25
    racers = [start(RACE, address, each, name) for name in ("one", "other")]
    for racer in racers:
        _, errors = racer.communicate(timeout=300)
        assert racer.returncode == 0, errors
    entries = SharedLedger(address).entries()
    assert len(entries) == 2 * each
    assert [entry.body["id"] for entry in entries].count("one") == each


def test_a_killed_holder_frees_the_lock(address: str) -> None:
    holder = start(HOLD, address)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    with SharedLedger(address).held(30):
        pass


def test_a_session_that_the_database_ends_is_told_and_writes_nothing(address: str) -> None:
    ledger = SharedLedger(address)
    ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'perfusion'"
    with ledger.held(5):
        execute(address, ended)
        with pytest.raises(GateError, match="remedy: see that the database runs"):
            ledger.append("commit", {})
    assert ledger.entries() == []
