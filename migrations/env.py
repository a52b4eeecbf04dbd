"""Alembic's entry point: runs the migrations on the connection that ``pipeline.storage.schema`` hands over."""

from __future__ import annotations

from alembic import context
from sqlalchemy.engine import Connection

from schemas.tables import Base


def run(connection: Connection) -> None:
    """Run the asked-for migrations. SQLite alters a table by copying it: batch mode."""
    context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True, compare_type=True)
    with context.begin_transaction():
        context.run_migrations()


run(context.config.attributes["connection"])
