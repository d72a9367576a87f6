"""The promotion log for machines that share no folder: a table of PostgreSQL, and a lock of the database.

The table holds the very lines that the file would, one a row. A trigger refuses to change or remove rows, the primary
key refuses a second entry of one number, and the hash chain tells of what was done behind the database's back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, NullPool, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from perfusion.errors import ConfigError, GateError
from tasks.registry.ledger import Chain

__all__ = ["SharedLedger"]

_KEY = 0x5065724675  # "PerFu": of the advisory lock, one for each database
_LOCK_NOT_AVAILABLE = "55P03"
#: A client whose machine is gone without a word loses the lock after a minute and a half.
_SESSION = "-c tcp_keepalives_idle=60 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3"
_TABLE = """
CREATE TABLE promotion_log (seq bigint PRIMARY KEY, line text NOT NULL);
CREATE OR REPLACE FUNCTION promotion_log_stays() RETURNS trigger LANGUAGE plpgsql AS
  $$ BEGIN RAISE EXCEPTION 'promotion_log is append-only'; END $$;
CREATE TRIGGER stays BEFORE UPDATE OR DELETE OR TRUNCATE ON promotion_log
  FOR EACH STATEMENT EXECUTE FUNCTION promotion_log_stays();
"""


class SharedLedger(Chain):
    """The log in one database; not to be used by several threads at once."""

    def __init__(self, url: str) -> None:
        """Open the log at an SQLAlchemy URL of PostgreSQL; nothing is connected to yet.

        Raises:
            ConfigError: the driver is not installed.
        """
        super().__init__()
        where = make_url(url)
        self.path: str = f"{where.render_as_string(hide_password=True)}, table promotion_log"
        self._holder: Connection | None = None  # holds the lock: what goes through it, nobody else does meanwhile
        try:
            self._engine = create_engine(
                where, poolclass=NullPool, isolation_level="AUTOCOMMIT", hide_parameters=True,
                connect_args={"connect_timeout": 10, "application_name": "perfusion", "options": _SESSION},
            )  # fmt: skip
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"{self.path}: PostgreSQL's driver is not installed ({error})\n"
                "remedy: pip install the extra: perfusion[postgres-s3]"
            ) from None

    @contextmanager
    def held(self, timeout: float) -> Iterator[None]:
        """See `Chain.held`; the lock is a session's of the database and goes with the process that opened it."""
        with self._connected() as connection:
            self._acquire(connection, timeout)
            self._holder = connection
            try:
                yield
            finally:
                self._holder = None  # the session ends with this block, and the lock with it

    def _acquire(self, connection: Connection, timeout: float) -> None:
        connection.execute(text(f"SET lock_timeout = {max(1, round(timeout * 1000))}"))  # milliseconds
        try:
            connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _KEY})
        except DBAPIError as error:
            if getattr(error.orig, "pgcode", None) != _LOCK_NOT_AVAILABLE:
                raise
            raise GateError(
                f"{self.path}: held by another promotion or rollback for {timeout:g} s; wait until it ends and try "
                "again (the lock goes with the process that holds it)"
            ) from None

    def _whole(self) -> bytes:
        with self._connected() as connection:
            if not _has_table(connection):
                return b""
            lines = connection.execute(text("SELECT line FROM promotion_log ORDER BY seq")).scalars()
            return b"".join(f"{line}\n".encode() for line in lines)

    def _put(self, seq: int, line: str) -> None:
        if self._holder is None:
            raise RuntimeError(f"{self.path}: appending is for whoever holds the log")
        with self._connected() as connection:
            if not _has_table(connection):
                connection.execute(text(_TABLE))
            row = {"seq": seq, "line": line}
            try:
                connection.execute(text("INSERT INTO promotion_log (seq, line) VALUES (:seq, :line)"), row)
            except IntegrityError:
                raise GateError(
                    f"{self.path}: another process wrote entry {seq} meanwhile, so that the lock must have been lost "
                    "to it; look at `perfusion history` and try again"
                ) from None

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        """The connection that holds the lock, or one for this block.

        Raises:
            GateError: the database cannot be reached, refuses, or went away; holds its words.
        """
        try:
            if self._holder is not None:
                yield self._holder
                return
            with self._engine.connect() as connection:
                yield connection
        except DBAPIError as error:
            said = " ".join(str(error.orig).split())
            raise GateError(
                f"{self.path}: {said}\n"
                "remedy: see that the database runs and that its user may read and append; what was begun is completed "
                "or undone by the next transition"
            ) from None


def _has_table(connection: Connection) -> bool:
    return connection.execute(text("SELECT to_regclass('promotion_log')")).scalar() is not None
