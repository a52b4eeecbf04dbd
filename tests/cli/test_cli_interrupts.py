"""Ctrl-C and SIGTERM at any moment: one line, exit code 1, no traceback, and nothing that keeps running."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from command import Said, User

from pipeline.cli.interrupts import goes_on

GOES_ON = "interrupted; the same command goes on from here\n"
MOMENTS = [0.0, 0.03, *(tenth / 10 for tenth in range(1, 16))]  # s after the command can hear a signal
AT_ONCE = 4  # processes side by side: what is tested is where the signal meets them, not how soon


def interrupted(user: User, folder: str, moment: float, sign: signal.Signals, *words: str) -> Said:
    """A command that gets a signal ``moment`` seconds after it began to listen to it, but for Python's own start."""
    environment = user.environment()
    pipe = subprocess.PIPE
    with subprocess.Popen(
        user.command(*words, "-o", folder), cwd=user.folder, env=environment, stdout=pipe, stderr=pipe, text=True
    ) as process:
        while not _sigterm(process.pid, "SigCgt") and process.poll() is None:
            time.sleep(0.001)
        time.sleep(moment)
        process.send_signal(sign)
        out, err = process.communicate(timeout=60)
    return Said(process.returncode, out, err)


def _sigterm(pid: int, mask: str) -> bool:
    """Whether SIGTERM is in this mask of a process: ``SigCgt``, it has a handler; ``ShdPnd``, it was not heard yet."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    found = next(line.split()[1] for line in status.splitlines() if line.startswith(mask))
    return bool(int(found, 16) >> (signal.SIGTERM - 1) & 1)


def test_only_what_goes_on_is_said_to() -> None:
    assert goes_on(["run", "job.toml"]) and goes_on(["icae", "pretrain", "job.toml"]) and goes_on(["icae", "prompts"])
    assert goes_on(["icae", "evaluate", "night", "--answers", "rows.toml"]) and goes_on(["compare", "--judge=j.toml"])
    assert not (
        goes_on(["icae", "evaluate", "night", "-t", "prose.txt"])
        or goes_on(["compare", "one", "other"])
        or goes_on(["icae", "reconstruct", "night"])
        or goes_on(["report", "run"])
        or goes_on([])
    )


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_a_run_ends_with_one_line_whenever_it_is_interrupted(user: User, sign: signal.Signals) -> None:
    """While it imports, while it reads 30,000 documents, while its server and its workers start."""
    rows = [json.dumps({"id": f"d{n}", "text": f"the text of {n} " * 50}) for n in range(30_000)]
    user.write("in.jsonl", "\n".join(rows) + "\n")

    def one(moment: float) -> Said:
        return interrupted(user, f"o{moment}", moment, sign, "run", "job.toml")

    with ThreadPoolExecutor(AT_ONCE) as pool:
        ended = dict(zip(MOMENTS, pool.map(one, MOMENTS), strict=True))
    assert ended == dict.fromkeys(MOMENTS, Said(1, "", GOES_ON))


SWALLOWED = """
import signal, weakref
from pipeline.cli import interrupts
class Thing: pass
interrupts.leave_at_once()
def in_a_library():
    try:
        signal.raise_signal(signal.SIGTERM)
    except BaseException:
        pass
def before_it_leaves_with_an_exit_code():
    in_a_library()
    raise RuntimeError  # as typer's is
def where_nothing_can_be_raised():
    thing = Thing()
    watched = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGINT))
    del thing
try:
    with interrupts.in_order():
        {how}()
except interrupts.Interrupted:
    print("raised again")
"""


@pytest.mark.parametrize(
    ("how", "ended"),
    [
        ("in_a_library", (0, "raised again\n", "")),
        ("before_it_leaves_with_an_exit_code", (0, "raised again\n", "")),
        ("where_nothing_can_be_raised", (1, "", "interrupted\n")),
    ],
)
def test_an_interrupt_that_is_swallowed_is_not_lost(how: str, ended: tuple[int, str, str]) -> None:
    """Libraries do swallow it, most of all while they are imported: a run went on to its end."""
    script = [sys.executable, "-c", SWALLOWED.replace("{how}", how)]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == ended


UNFINISHED = """
import signal, weakref
from pipeline.cli import interrupts
class Thing: pass
interrupts.leave_at_once()
def plainly():
    signal.raise_signal(signal.SIGINT)
def as_another_error():
    try:
        signal.raise_signal(signal.SIGTERM)
    except BaseException:
        raise RuntimeError
def where_nothing_can_be_raised():
    thing = Thing()
    watched = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGINT))
    del thing
    interrupts.check()
def not_at_all():
    raise RuntimeError
try:
    with interrupts.in_order():
        with interrupts.so_far():
            {how}()
            print("went on")
        print("told")
    print("went on")
except interrupts.Interrupted:
    print("raised again")
except RuntimeError:
    print("an error")
"""


@pytest.mark.parametrize("how", ["plainly", "as_another_error", "where_nothing_can_be_raised", "not_at_all"])
def test_an_interrupt_lets_what_is_done_so_far_be_told(how: str) -> None:
    """And is one nevertheless; an error of another kind is none."""
    script = [sys.executable, "-c", UNFINISHED.replace("{how}", how)]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    expected = "an error\n" if how == "not_at_all" else "told\nraised again\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")


def test_commands_that_have_nothing_to_go_on_with_do_not_say_so(user: User) -> None:
    """And a second signal does not wait for the first."""
    assert interrupted(user, "o", 0.0, signal.SIGINT, "status") == Said(1, "", "interrupted\n")
    assert interrupted(user, "o", 0.3, signal.SIGTERM, "doctor") == Said(1, "", "interrupted\n")


def test_a_signal_that_is_ignored_stays_ignored(user: User) -> None:
    """`nohup`, and a script's `&`, mean it."""
    words = " ".join(user.command("run", "job.toml", "-o", "o", "--dry-run"))
    script = f"trap '' INT; {words} & sleep 0.3; kill -INT $!; wait $!"
    done = subprocess.run(["bash", "-c", script], cwd=user.folder, env=dict(os.environ), check=False)
    assert done.returncode == 0


@contextlib.contextmanager
def under_way(user: User, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A run into ``o`` of many small shards, of which one is done at least."""
    user.write("in.jsonl", "".join(json.dumps({"id": f"d{n}", "text": f"text {n}"}) + "\n" for n in range(20_000)))
    command = user.command("run", "job.toml", "-o", "o", "--set", "stages.0.seconds_per_shard=0.0001", *words)
    with subprocess.Popen(
        command, cwd=user.folder, env=user.environment(), stderr=subprocess.PIPE, text=True
    ) as process:
        while not list(user.folder.glob("o/t-*/_parts/*.parquet")):
            assert process.poll() is None
            time.sleep(0.05)
        yield process


def test_an_interrupted_run_goes_on_with_the_settings_of_now(user: User) -> None:
    """Those that make no other job: it may have been interrupted for their sake."""
    for words in (), ("--set", "stages.0.batch_tokens=64"):
        with under_way(user, *words) as process:
            assert process.stderr is not None
            said = process.stderr.readline() if words else ""
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=60)[1].endswith(GOES_ON)
    assert said.endswith("goes on with the new settings of the job file\n")
    with sqlite3.connect(user.folder / "o" / "contextmill.db") as connection:
        (spec,) = connection.execute("select spec from jobs").fetchone()
    assert json.loads(spec)["stages"][0]["batch_tokens"] == 64


def test_a_second_signal_does_not_wait_for_the_workers(user: User) -> None:
    """A run under way stops in order at the first; at the second it is gone, and its worker follows by itself."""
    with under_way(user) as process:
        workers = [one for one in psutil.Process(process.pid).children(recursive=True) if "valkey" not in one.name()]
        for worker in workers:
            worker.suspend()  # none hears anything: who waits for it waits for 15 s
        while any(worker.status() != psutil.STATUS_STOPPED for worker in workers):
            time.sleep(0.01)  # one that is not yet stopped would take the later signal first
        try:
            process.send_signal(signal.SIGINT)
            while not any(_sigterm(worker.pid, "ShdPnd") for worker in workers):
                assert process.poll() is None
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=60)
            # Who waits for one that hears nothing ends it after 15 s, before it goes.
            assert all(worker.is_running() and worker.status() == psutil.STATUS_STOPPED for worker in workers)
        finally:
            for worker in workers:
                with contextlib.suppress(psutil.NoSuchProcess):
                    worker.resume()
    assert (process.returncode, said.splitlines()[-1] + "\n") == (1, GOES_ON)
    gone, left = psutil.wait_procs(workers, timeout=60)
    assert len(gone) >= 2 and not left
