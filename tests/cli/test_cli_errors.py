"""What a user may get wrong: each is one clear sentence, the right exit code, at once."""

from __future__ import annotations

import json
import os
import re
import shlex
import sqlite3
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from command import Said, User
from servers import PostgresServer
from small_disks import small_disk

SECRET = "hunter2-secret"


WRONG = [
    (("run", "none.toml"), 2, "none.toml: No such file or directory; give the path of a job file"),
    (("run", "."), 2, ".: Is a directory; give the path of a job file"),
    (("run", "in.jsonl"), 2, "not valid TOML"),
    (("run", "job.toml", "--set", "foo"), 2, "write it as key=value"),
    (("run", "job.toml", "--set", "stages.0.seconds_per_shard=nan"), 2, "must be a finite number"),
    (("run", "job.toml", "--set", "inputs.path=2"), 2, "did you mean input?"),
    (("run", "job.toml", "-i", "none.jsonl"), 1, "none.jsonl does not exist: name a file"),
    (("run", "job.toml", "-o", "in.jsonl"), 1, "the output in.jsonl is a file: name a folder with -o"),
    (("run", "job.toml", "-o", "in.jsonl/o"), 1, "output folder in.jsonl/o cannot be made: Not a directory; name"),
    (("run", "job.toml", "-o", ""), 2, "an empty path"),
    (("run", "job.toml", "-o", "ftp://host/x"), 2, "ftp:// is not supported"),
    (("run", "job.toml", "-o", "s3://bucket/x"), 1, "set CONTEXTMILL_DATABASE_URL"),
    (("submit", "job.toml"), 2, "submit needs CONTEXTMILL_BROKER_URL"),
    (("worker",), 2, "CONTEXTMILL_BROKER_URL and CONTEXTMILL_DATABASE_URL"),
    (("worker", "--queues", "compress"), 2, "there are contextmill.publish.high"),
    (("status",), 1, "name its folder with -o"),
    (("run", "job.toml", "--bogus"), 2, "No such option"),
]  # fmt: skip
AT_ONCE = 2  # processes side by side: most of a command's time is its start


def test_a_wrong_command_says_what_is_wrong(tmp_path: Path, tiny_model: Path) -> None:
    """Exit 2 for what was typed wrong, 1 for what is wrong elsewhere; nothing on standard output."""
    servers: dict[str, Any] = {"CONTEXTMILL_BROKER_URL": "redis://127.0.0.1:1", "CONTEXTMILL_DATABASE_URL": "sqlite://"}

    def one(number: int) -> Said:
        words = WRONG[number][0]
        user = User.with_a_job(tmp_path / str(number), tiny_model)
        return user.says(*words, **(servers if "--queues" in words else {}))

    with ThreadPoolExecutor(AT_ONCE) as pool:
        outcomes = list(pool.map(one, range(len(WRONG))))
    for (words, code, said), ended in zip(WRONG, outcomes, strict=True):
        assert (ended.code, ended.out) == (code, ""), words
        assert said in ended.err, words
    assert not list(tmp_path.glob("*/ftp:"))


@pytest.mark.parametrize("command", ["run", "submit"])
def test_a_broker_that_is_away_is_said_at_once(user: User, command: str) -> None:
    """Neither waits for workers that cannot hear; no job is left behind, no password told."""
    began = time.monotonic()
    ended = user.says(command, "job.toml", CONTEXTMILL_BROKER_URL=f"redis://:{SECRET}@127.0.0.1:1/0")
    assert time.monotonic() - began < 60
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


def test_a_wrong_password_of_a_real_server_says_what_to_mend(user: User, postgres_server: PostgresServer) -> None:
    """One line, though the driver writes several."""
    postgres_server.execute("create role guarded login password 'right'")
    rules = postgres_server.folder / "data" / "pg_hba.conf"
    before = rules.read_text()
    rules.write_text(f"host all guarded 127.0.0.1/32 scram-sha-256\n{before}")
    try:
        postgres_server.execute("select pg_reload_conf()")
        url = f"postgresql://guarded:{SECRET}@127.0.0.1:{postgres_server.port}/postgres"
        ended = user.says("status", CONTEXTMILL_DATABASE_URL=url)
    finally:
        rules.write_text(before)
        postgres_server.execute("select pg_reload_conf()")
        postgres_server.execute("drop role guarded")
    assert ended.code == 1
    assert "password authentication failed" in ended.err
    assert ended.err.endswith(": mend the user or the password in CONTEXTMILL_DATABASE_URL\n")
    assert ended.err.count("\n") == 1
    assert SECRET not in ended.err


def test_an_output_that_cannot_be_written_says_so(user: User) -> None:
    """Before and after there is a database in it; nobody's override of permissions counts."""
    assert user.says("run", "job.toml", "-i", "none", "-o", "o").code == 1  # makes the database, then fails
    output = user.folder / "o"
    for file in output.iterdir():
        file.chmod(0o444)
    output.chmod(0o555)
    wrapped = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"] if os.geteuid() == 0 else []
    try:
        old = user.says("run", "job.toml", "-o", "o", prefix=wrapped)
        new = user.says("run", "job.toml", "-o", "o/new", prefix=wrapped)
    finally:
        output.chmod(0o755)
    assert (old.code, new.code) == (1, 1)
    assert "must be writable" in old.err
    assert "output folder o/new cannot be made: Permission denied; name another with -o" in new.err


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.jsonl", b"", "the corpus is empty"),
        ("blank.jsonl", b"\n  \n", "the corpus is empty"),
        ("packed.jsonl", b"\x1f\x8b\x08\0\0\0\0\0", "expected JSONL, found gzip; rename it to end in .gz"),
        ("columns.csv", b"a,b\n1,2\n", "there are: a, b. Name the columns under [input.columns] of a job file"),
        ("n" * 300 + ".jsonl", None, "File name too long"),
    ],
    ids=["empty", "blank", "packed", "columns", "long"],
)
def test_a_corpus_that_is_none_stops_the_job_before_it_is_made(
    user: User, name: str, content: bytes | None, said: str
) -> None:
    """One sentence, exit 1, and no job in the database."""
    if content is not None:
        user.write(name, content)
    ended = user.says("run", "job.toml", "-o", "o", "-i", name)
    assert (ended.code, ended.out) == (1, "")
    assert said in ended.err
    with sqlite3.connect(user.folder / "o" / "contextmill.db") as connection:
        assert connection.execute("select count(*) from jobs").fetchone() == (0,)


def test_a_reader_that_leaves_or_is_not_there_makes_no_traceback(user: User) -> None:
    """`| head -1`, `>&-`, `> /dev/full`, and a terminal of another alphabet."""
    assert user.says("run", "job.toml", "-i", "none", "-o", "o").code == 1
    words = " ".join(map(shlex.quote, user.command("status", "-o", "o")))
    json_words = f"{words} --json"
    for shell, code, said in (
        (f"{words} | true; exit ${{PIPESTATUS[0]}}", None, ""),
        (f"{json_words} | true; exit ${{PIPESTATUS[0]}}", None, ""),
        (f"{json_words} >&-", 0, ""),
        (f"{words} > /dev/full", 1, "No space left on device"),
        (f"PYTHONIOENCODING=ascii {words}", 0, ""),
    ):
        done = subprocess.run(
            ["bash", "-c", shell], cwd=user.folder, env=user.environment(), capture_output=True, text=True, check=False
        )
        assert "Traceback" not in done.stderr, (shell, done.stderr)
        assert "Exception ignored" not in done.stderr, (shell, done.stderr)
        assert done.returncode in ((0, 1) if code is None else (code,)), (shell, done.stderr)
        assert said in done.stderr


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


def test_a_device_that_is_not_there_stops_a_job_that_goes_on_with_another(user: User, tiny_model: Path) -> None:
    """The device is no part of what makes a job another: the same job has to take it from the job file."""
    stage = 'kind = "compress"\nmethod = "random"\nrate = 0.5\ndevice = "cuda:99"\n'
    user.write("job.toml", f'[input]\npath = "in.jsonl"\n[target]\nmodel = "{tiny_model}"\n[[stages]]\n{stage}')
    stopped = user.says("run", "job.toml")
    assert stopped.code == 1
    assert "device 'cuda:99': this machine shows" in stopped.out
    assert "dead 0   pending 3" in stopped.out
    assert "then run the job file again, or, if it and its input are as they were: contextmill resume" in stopped.out
    again = user.says("run", "job.toml")
    assert again.code == 1
    assert "had stopped and goes on" in again.err, "what stopped it may be mended: the same command tries"
    assert "device 'cuda:99': this machine shows" in again.out
    mended = user.says("run", "job.toml", "--set", "stages.0.device=cpu")
    assert mended.code == 0, mended.err
    assert "goes on, with the new settings of the job file" in mended.err
    assert "done 3" in mended.out


def test_a_full_disk_is_named_with_the_file_and_the_same_command_goes_on(user: User) -> None:
    """While the corpus is read: there are no workers yet that could stop the job."""
    rows = [{"id": str(number), "text": os.urandom(2_000).hex()} for number in range(1200)]
    user.write("large.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    words = "run", "job.toml", "-i", "large.jsonl", "-o", "small/o"
    with small_disk(user.folder / "small", "2m") as disk:
        full = user.says(*words)
        assert full.code == 1
        assert re.search(r"No space left on device: \S+/small/o/t-\w+/_input/\S+; make room there, then", full.err)
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        assert user.says(*words).code == 0
