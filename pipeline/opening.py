"""Find and open a job's database for the command line, and say in a sentence what is wrong where that fails."""

from __future__ import annotations

from pathlib import Path

from alembic.util.exc import CommandError
from pydantic import SecretStr
from sqlalchemy import Engine
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from pipeline.storage.filesystem import is_local, resolve_path
from pipeline.storage.schema import check_schema
from pipeline.storage.schema import migrate as upgrade
from pipeline.storage.sql import DatabaseError, open_engine
from schemas.settings import Settings

HINTS = {
    "disk is full": "make room where the output goes; the same command then goes on from here",
    "readonly database": "its file and its folder must be writable",
    "unable to open database file": "its folder must be writable",
    "file is not a database": "name another output folder with -o",
    "database is locked": "another process holds it; the same command then goes on from here",
    "password authentication failed": "mend the user or the password in CONTEXTMILL_DATABASE_URL",
    "no password supplied": "CONTEXTMILL_DATABASE_URL lacks it",
    "Connection refused": "start it, or mend CONTEXTMILL_DATABASE_URL",
    "connection failed": "mend CONTEXTMILL_DATABASE_URL",
    "failed to resolve host": "mend CONTEXTMILL_DATABASE_URL",
    "timeout expired": "is it reachable from here? See CONTEXTMILL_DATABASE_URL",
    "server closed the connection": "the same command goes on from here once it is back",
    "the connection is closed": "the same command goes on from here once it is back",
}
"""Part of what a driver says -> what to do about it; the first that fits."""


def open_database(settings: Settings, output: str | None, *, migrate: bool = False) -> tuple[Engine, Settings]:
    """The database that is set, else the SQLite file of the output folder; and the settings with its address.

    ``migrate`` makes the SQLite file where there is none and brings it up to date. Raises ``DatabaseError``.
    """
    output = "runs" if output is None else output
    url = address(settings, output, may_create=migrate)
    try:
        engine = open_engine(url)
    except FileExistsError as error:
        raise DatabaseError(f"the output {output} is a file: name a folder with -o") from error
    except OSError as error:
        raise DatabaseError(f"output folder {output} cannot be made: {error.strerror}; name another with -o") from error
    try:
        if migrate and engine.dialect.name == "sqlite":
            bring_up_to_date(engine)
        check_schema(engine)
    except SQLAlchemyError as error:
        raise DatabaseError(f"database {shown(engine)}: {reason(error)}") from error
    return engine, settings.model_copy(update={"database_url": SecretStr(url)})


def address(settings: Settings, output: str, *, may_create: bool) -> str:
    """The database's URL, password and all. Raises ``DatabaseError``, ``PathError``."""
    if settings.database_url is not None:
        return _checked(settings.database_url.get_secret_value())
    filesystem, folder = resolve_path(output)
    if not is_local(filesystem):
        raise DatabaseError("output on s3 needs a database elsewhere: set CONTEXTMILL_DATABASE_URL")
    file = Path(folder) / "contextmill.db"
    if not may_create and not file.exists():
        raise DatabaseError(f"no database at {file}: name its folder with -o, or set CONTEXTMILL_DATABASE_URL")
    return f"sqlite:///{file}"


def _checked(url: str) -> str:
    try:
        make_url(url)
    except (SQLAlchemyError, ValueError):  # their texts repeat pieces of the address, the password's among them
        raise DatabaseError(
            "CONTEXTMILL_DATABASE_URL is not a database address: write postgresql://USER:PASSWORD@HOST/NAME or "
            "sqlite:///FILE, with signs like @ : / in the password as %40 %3A %2F"
        ) from None
    return url


def bring_up_to_date(engine: Engine) -> None:
    """Migrate; a database that a newer version made is refused with ``DatabaseError``."""
    try:
        upgrade(engine)
    except CommandError:  # its revision is not ours: the check says so better
        check_schema(engine)
        raise


def shown(engine: Engine) -> str:
    """Where an engine points, without its password."""
    return engine.url.render_as_string(hide_password=True)


def reason(error: Exception) -> str:
    """What the driver said, in one line, without SQL, and what to do about it."""
    said = " ".join(str(getattr(error, "orig", None) or error).split())
    said = said.partition(" Multiple connection attempts failed")[0].partition(" - Multiple connection attempts")[0]
    return f"{said}{next((f': {hint}' for part, hint in HINTS.items() if part in said), '')}"
