"""What a user may get wrong: each is one clear sentence, the right exit code, at once."""

from __future__ import annotations

import sqlite3
import time

import pytest
from command import User

SECRET = "hunter2-secret"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("run", "none.toml"), 2, "none.toml: No such file"),
        (("run", "in.jsonl"), 2, "not valid TOML"),
        (("run", "job.toml", "--set", "foo"), 2, "write it as key=value"),
        (("run", "job.toml", "--set", "inputs.path=2"), 2, "did you mean input?"),
        (("run", "job.toml", "-i", "none.jsonl"), 1, "none.jsonl does not exist"),
        (("run", "job.toml", "-o", "in.jsonl"), 1, "in.jsonl"),
        (("run", "job.toml", "-o", "ftp://host/x"), 2, "ftp:// is not supported"),
        (("run", "job.toml", "-o", "s3://bucket/x"), 1, "set CONTEXTMILL_DATABASE_URL"),
        (("submit", "job.toml"), 2, "submit needs CONTEXTMILL_BROKER_URL"),
        (("worker",), 2, "CONTEXTMILL_BROKER_URL and CONTEXTMILL_DATABASE_URL"),
        (("status",), 1, "name its folder with -o"),
        (("run", "job.toml", "--bogus"), 2, "No such option"),
    ],
)  # fmt: skip
def test_a_wrong_command_says_what_is_wrong(user: User, words: tuple[str, ...], code: int, said: str) -> None:
    """Exit 2 for what was typed wrong, 1 for what is wrong elsewhere; nothing on standard output."""
    ended = user.says(*words)
    assert (ended.code, ended.out) == (code, "")
    assert said in ended.err
    assert not (user.folder / "ftp:").exists()


@pytest.mark.parametrize("rate", ["0", "2", "nan", '"x"'])
def test_a_wrong_rate_is_told_once_with_its_line(user: User, rate: str) -> None:
    """The same key under another table, and what only follows from the error, mislead nobody."""
    text = '[input]\npath = "in.jsonl"\n[target]\nmodel = "x"\n[[stages]]\nkind = "compress"\nmodel = "y"\n'
    user.write("rate.toml", f"{text}rate = {rate}\n")
    ended = user.says("run", "rate.toml")
    assert ended.code == 2
    assert "rate.toml:8: stages.0.rate: " in ended.err
    assert "stages: " not in ended.err


def test_a_line_is_found_under_its_own_table(user: User) -> None:
    """``model`` stands in [target] too."""
    text = '[input]\npath = "i"\n[target]\nmodel = "x"\n[[stages]]\nkind = "compress"\nrate = 0.5\nmodel = 5\n'
    user.write("model.toml", text)
    assert "model.toml:8: stages.0.model" in user.says("run", "model.toml").err


@pytest.mark.parametrize("command", ["run", "submit"])
def test_a_broker_that_is_away_is_said_at_once(user: User, command: str) -> None:
    """Neither waits for workers that cannot hear; no job is left behind, no password told."""
    began = time.monotonic()
    ended = user.says(command, "job.toml", CONTEXTMILL_BROKER_URL=f"redis://:{SECRET}@127.0.0.1:1/0")
    assert time.monotonic() - began < 15
    assert ended.code == 1
    assert "no broker answers at 127.0.0.1:1" in ended.err
    assert SECRET not in ended.err + ended.out
    assert not (user.folder / "runs").exists()


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://u:{SECRET}@127.0.0.1:1/x",
        f"postgresql://u:{SECRET}@odd:{SECRET}@127.0.0.1/x",
        f"mysql://u:{SECRET}@127.0.0.1/x",
        f"{SECRET} is no address",
    ],
)
def test_a_database_that_cannot_be_opened_tells_no_password(user: User, url: str) -> None:
    """Not even a piece of one, where the address cannot be read."""
    for words in (("run", "job.toml"), ("status",)):
        ended = user.says(*words, CONTEXTMILL_DATABASE_URL=url)
        assert ended.code == 1
        assert "database" in ended.err + ended.out
        assert SECRET not in ended.err + ended.out


def test_a_database_of_another_version_names_the_command(user: User) -> None:
    """Also one from the future, which no migration here knows; and a file that is none."""
    assert user.says("run", "job.toml", "-i", "none", "-o", "o").code == 1  # makes the database, then fails
    with sqlite3.connect(user.folder / "o" / "contextmill.db") as connection:
        connection.execute("update alembic_version set version_num = 'ffff'")
    for words in (("run", "job.toml", "-o", "o"), ("status", "-o", "o")):
        ended = user.says(*words)
        assert ended.code == 1
        assert "contextmill doctor --migrate" in ended.err
    user.write("p/contextmill.db", b"this is no database" * 100)
    assert "p/contextmill.db: file is not a database" in user.says("status", "-o", "p").err
