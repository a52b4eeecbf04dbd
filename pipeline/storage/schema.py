"""Bring a database to this version's schema, or say that it is not there. Needs no checkout: migrations ship inside."""

from __future__ import annotations

from importlib.resources import files

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, text
from sqlalchemy.engine import Connection

from pipeline.storage.sql import DatabaseError, reading

LOCK = 0x636D696C6C  # any number all our processes agree on: PostgreSQL's advisory lock for migrating


def config(connection: Connection | None = None) -> Config:
    """Alembic's configuration, made in code: there is no ini file to find."""
    made = Config()
    made.set_main_option("script_location", str(files("migrations")))
    made.set_main_option("path_separator", "os")
    made.attributes["connection"] = connection
    return made


def migrate(engine: Engine, revision: str = "head") -> None:
    """Upgrade the schema. Several processes may do so at once: the second waits, then finds nothing to do."""
    with engine.begin() as connection:  # SQLite: BEGIN IMMEDIATE keeps others out
        if connection.dialect.name == "postgresql":
            connection.execute(text("select pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
        command.upgrade(config(connection), revision)


def downgrade(engine: Engine, revision: str) -> None:
    """Take the schema back to ``revision`` (``base``: to nothing)."""
    with engine.begin() as connection:
        command.downgrade(config(connection), revision)


def check_schema(engine: Engine) -> None:
    """Raise ``DatabaseError`` unless the database stands at exactly this version's schema."""
    head = ScriptDirectory.from_config(config()).get_current_head()
    with reading(engine) as connection:
        current = MigrationContext.configure(connection).get_current_revision()
    if current != head:
        raise DatabaseError(
            f"the database is at schema {current or 'none'}, this version needs {head}: run contextmill doctor "
            "--migrate with the newest contextmill that uses this database"
        )
