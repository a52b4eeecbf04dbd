"""The database engine: SQLite (WAL) on one machine, PostgreSQL for more than one, told apart only here."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Engine, Executable, Float, create_engine, event, make_url
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError, TimeoutError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from schemas.tables import Base

T = TypeVar("T")

NOTICE_DEATH = {  # of a server that went without a word: otherwise found out after some 15 minutes, or never
    "connect_timeout": 5,
    "tcp_user_timeout": 30_000,  # milliseconds, for what was sent
    "keepalives_idle": 15,  # and 15 + 3 * 5 seconds while its answer is waited for
    "keepalives_interval": 5,
    "keepalives_count": 3,
}
BUSY_SECONDS = 90  # a database locked or away for a minute delays a shard; it must not fail it


class db_now(FunctionElement[float]):  # noqa: N801  (reads as the SQL function it is)
    """Seconds since the epoch by the database's clock, at the statement (not the transaction) that asks."""

    type = Float(53)
    inherit_cache = True


@compiles(db_now, "sqlite")
def _sqlite_now(element: db_now, compiler: SQLCompiler, **kwargs: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"  # unixepoch('subsec') needs SQLite 3.42


@compiles(db_now, "postgresql")
def _postgresql_now(element: db_now, compiler: SQLCompiler, **kwargs: Any) -> str:
    return "extract(epoch from clock_timestamp())::double precision"


class DatabaseError(RuntimeError):
    """The database cannot be opened or is not at this version's schema; the text says what to do."""


def open_engine(url: str) -> Engine:
    """An engine for ``sqlite:///path`` or ``postgresql://...`` (psycopg). Creates at most the SQLite file's folder."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
        try:
            return create_engine(parsed, pool_pre_ping=True, connect_args=NOTICE_DEATH, hide_parameters=True)
        except ModuleNotFoundError as error:
            raise DatabaseError(
                "PostgreSQL needs its driver: pip install 'psycopg[binary]' (our extra 'postgres')"
            ) from error
    if parsed.get_backend_name() != "sqlite":
        raise DatabaseError(f"database {parsed.get_backend_name()!r}: use sqlite:///FILE or postgresql://...")
    if parsed.database and parsed.database != ":memory:":
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(parsed, connect_args={"timeout": BUSY_SECONDS}, hide_parameters=True)
    event.listen(engine, "connect", _sqlite_connect)
    event.listen(engine, "begin", _sqlite_begin)
    return engine


def _sqlite_connect(connection: Any, record: Any) -> None:
    connection.isolation_level = None  # we say BEGIN ourselves, see _sqlite_begin
    cursor = connection.cursor()
    _keep_a_log(cursor)
    for pragma in ("synchronous=NORMAL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _keep_a_log(cursor: sqlite3.Cursor) -> None:
    """Set the journal to WAL. While another process writes a file that is not in WAL yet, as where several make it at
    the same moment, SQLite fails at once, whatever the timeout."""
    end = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > end:  # of any kind
                raise
            time.sleep(0.01)
        else:
            return


def _sqlite_begin(connection: Connection) -> None:
    # A deferred transaction that reads, then writes, fails at once with "database is locked" when another one wrote
    # in between, whatever the timeout; taking the write lock first waits its turn instead.
    readonly = connection.get_execution_options().get("readonly", False)
    connection.exec_driver_sql("BEGIN" if readonly else "BEGIN IMMEDIATE")


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A connection for queries alone: in SQLite it takes no write lock."""
    with engine.connect().execution_options(readonly=True) as connection:
        yield connection


def insert_ignore(connection: Connection, table: type[Base], rows: list[dict[str, Any]]) -> None:
    """Insert rows; those whose key is there already are left as they are. Makes a repeated step harmless."""
    if rows:
        connection.execute(_insert(connection, table), rows)


def _insert(connection: Connection, table: type[Base]) -> Executable:
    make = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    return make(table.__table__).on_conflict_do_nothing()  # type: ignore[arg-type]


def patiently(action: Callable[[], T], *, seconds: float = BUSY_SECONDS, pause: float = 1.0) -> T:
    """Run ``action`` until the database answers, for at most ``seconds``. The action must be safe to repeat."""
    end = time.monotonic() + seconds
    while True:
        try:
            result = action()
        except SQLAlchemyError as error:
            if not _may_pass(error) or time.monotonic() + pause > end:
                raise
            time.sleep(pause)
        else:
            return result


def _may_pass(error: SQLAlchemyError) -> bool:
    """Whether the database did not answer, or was not to be had: no word about what it was asked."""
    broken = isinstance(error, DBAPIError) and error.connection_invalidated
    return broken or isinstance(error, OperationalError | InterfaceError | TimeoutError)
