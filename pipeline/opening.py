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


def open_database(settings: Settings, output: str | None, *, migrate: bool = False) -> tuple[Engine, Settings]:
    """The database that is set, else the SQLite file of the output folder; and the settings with its address.

    ``migrate`` makes the SQLite file where there is none and brings it up to date. Raises ``DatabaseError``.
    """
    url = address(settings, output or "runs", may_create=migrate)
    engine = open_engine(url)
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
    """What the driver said, in one line, without SQL."""
    return " ".join(str(getattr(error, "orig", None) or error).split())
