"""Migrations on both databases: up, down, twice, at once, and no difference from the models."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, text

from pipeline.storage.schema import check_schema, downgrade, migrate
from pipeline.storage.sql import DatabaseError, open_engine
from schemas.tables import Base


def test_the_migrations_make_what_the_models_say(database_url: str) -> None:
    engine = open_engine(database_url)
    migrate(engine)
    check_schema(engine)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
    engine.dispose()


def test_down_to_nothing_and_up_again(database_url: str) -> None:
    engine = open_engine(database_url)
    migrate(engine)
    downgrade(engine, "base")
    assert set(inspect(engine).get_table_names()) == {"alembic_version"}
    with pytest.raises(DatabaseError, match="--migrate"):
        check_schema(engine)
    migrate(engine)
    check_schema(engine)
    engine.dispose()


def test_processes_that_migrate_at_once_wait_for_each_other(database_url: str) -> None:
    def one(_: int) -> None:
        engine = open_engine(database_url)
        migrate(engine)
        check_schema(engine)
        engine.dispose()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, range(4)))


def test_a_database_of_a_newer_version_is_refused(database_url: str) -> None:
    engine = open_engine(database_url)
    migrate(engine)
    with engine.begin() as connection:
        connection.execute(text("update alembic_version set version_num = '9999'"))
    with pytest.raises(DatabaseError, match=r"schema 9999.*newest contextmill"):
        check_schema(engine)
    engine.dispose()


def test_a_database_of_another_kind_is_refused_by_name() -> None:
    with pytest.raises(DatabaseError, match="mysql"):
        open_engine("mysql://user:secret@host/db")


def test_without_its_driver_postgresql_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(DatabaseError, match=r"pip install 'psycopg\[binary\]'"):
        open_engine("postgresql://user@host/name")
