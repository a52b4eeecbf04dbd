"""What a database says, and what is logged about it, repeats neither its password nor what was written into it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from servers import PostgresServer
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from pipeline.storage.sql import DatabaseError, open_engine

SECRET = "hunter2-secret"


def test_an_error_and_the_log_leave_out_what_was_written(database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """Prompts and answers go into statements as parameters; the log of a worker is read by more people than these."""
    with caplog.at_level(logging.DEBUG):
        engine = open_engine(database_url)
        with engine.connect() as connection, pytest.raises(SQLAlchemyError) as caught:
            connection.execute(text("insert into nowhere values (:prompt)"), {"prompt": SECRET})
        engine.dispose()
    assert "nowhere" in str(caught.value)
    assert SECRET not in str(caught.value) + repr(caught.value) + caplog.text


@pytest.mark.parametrize("address", ["postgresql://me:{}@127.0.0.1:{}/none", "postgres://me:{}@127.0.0.1:{}/none"])
def test_an_error_and_the_engine_leave_out_the_password(
    postgres_server: PostgresServer, caplog: pytest.LogCaptureFixture, address: str
) -> None:
    with caplog.at_level(logging.DEBUG), pytest.raises((SQLAlchemyError, DatabaseError)) as caught:
        engine = open_engine(address.format(SECRET, postgres_server.port))
        assert SECRET not in repr(engine) + str(engine.url)
        with engine.connect():
            pass
    assert SECRET not in str(caught.value) + repr(caught.value) + caplog.text


def test_a_database_file_that_is_none_is_named_without_its_content(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_text(SECRET * 100)
    engine = open_engine(f"sqlite:///{tmp_path}/a.db")
    with pytest.raises(SQLAlchemyError, match="not a database") as caught, engine.connect():
        pass
    engine.dispose()
    assert SECRET not in str(caught.value)
