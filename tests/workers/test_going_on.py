"""Jobs that are resumed, cancelled, submitted again, or run beside each other: no document is worked on twice."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from fleet import Fleet, job_spec, wait_until, write_corpus
from odd_fleets import ODD_WORKER, gated
from outcomes import assert_each_once, fingerprint
from small_disks import small_disk
from sqlalchemy import create_engine, text

from pipeline.producer import SubmissionStoppedError, submit
from pipeline.storage.jobs import cancel_job, list_jobs, resume_job, stop_job
from schemas.tables import Usage
from workers.doorbell import CeleryDoorbell

FEW = {"kind": "copy", "seconds_per_shard": 7e-6}  # about seven short documents a shard


def names(number: int) -> list[str]:
    return [f"d{index}" for index in range(number)]


def odd_lines(folder: Path) -> Counter[str]:
    """How often each document was worked on to its end."""
    log = folder / "odd.log"
    return Counter(log.read_text().split()) if log.exists() else Counter()


def done(fleet: Fleet, job: str) -> list[Any]:
    return fleet.shards(job, "done")


def test_a_job_goes_on_where_it_was(each_fleet: Fleet, tmp_path: Path) -> None:
    """Cancelled or stopped, it hands its shards back within seconds; resumed, it does the rest and nothing again."""
    fleet = each_fleet
    how = "cancelled" if fleet.engine.dialect.name == "postgresql" else "stopped"
    fleet.start_worker()
    gate = tmp_path / "gate"
    corpus = write_corpus(tmp_path / "c.jsonl", 100, gated(100, gate, "sleep 0.05 {}"))
    job = fleet.submit(job_spec(corpus, tmp_path / "out", FEW)).job_id
    wait_until(lambda: len(done(fleet, job)) >= 3, 240, "some shards done")
    if how == "cancelled":
        assert cancel_job(fleet.engine, job)
    else:
        stop_job(fleet.engine, job, "error", "a person must mend it")
    seconds = wait_until(lambda: not fleet.shards(job, "leased"), 30, "shards handed back")
    print(f"{how}: handed back after {seconds:.1f} s")
    kept = done(fleet, job)
    assert 0 < len(kept) < len(fleet.shards(job))
    time.sleep(2.0)
    assert len(done(fleet, job)) == len(kept), "nothing goes on by itself"
    assert fleet.job(job).state == how

    before = odd_lines(tmp_path)
    gate.touch()
    assert resume_job(fleet.engine, job)
    fleet.wait(job, 240)
    assert_each_once(fleet, job, names(100))
    finished = {f"d{seq}" for shard in kept for seq in range(shard.start, shard.stop)}
    assert not finished & (odd_lines(tmp_path) - before).keys(), "what was committed is not worked on again"
    assert {shard.attempt for shard in fleet.shards(job) if shard.id in {k.id for k in kept}} == {1}


def test_a_finished_job_stays_finished(fleet: Fleet, tmp_path: Path) -> None:
    fleet.start_worker()
    spec = job_spec(write_corpus(tmp_path / "c.jsonl", 30), tmp_path / "out", FEW)
    job = fleet.submit(spec).job_id
    fleet.wait(job, 240)
    before, worked = fingerprint(fleet, job), odd_lines(tmp_path)
    assert not resume_job(fleet.engine, job)
    again = fleet.submit(spec)
    assert (again.job_id, again.created) == (job, False)
    time.sleep(2.0)
    assert fingerprint(fleet, job) == before
    assert odd_lines(tmp_path) == worked


def test_the_next_night_costs_what_is_new(fleet: Fleet, tmp_path: Path) -> None:
    """The same corpus and 1% more: 99% is taken over, 1% worked on."""
    fleet.start_worker()
    corpus = write_corpus(tmp_path / "c.jsonl", 300, "sleep 0.02 {}".format)
    stage = {"kind": "copy", "seconds_per_shard": 1e-4}
    began = time.monotonic()
    first = fleet.submit(job_spec(corpus, tmp_path / "out", stage)).job_id
    fleet.wait(first, 240)
    whole = time.monotonic() - began
    worked = odd_lines(tmp_path)
    write_corpus(tmp_path / "c.jsonl", 303, "sleep 0.02 {}".format)
    began = time.monotonic()
    second = fleet.submit(job_spec(corpus, tmp_path / "out", stage)).job_id
    fleet.wait(second, 240)
    seconds = time.monotonic() - began
    assert_each_once(fleet, second, names(303))
    assert odd_lines(tmp_path) - worked == dict.fromkeys(names(303)[300:], 1)
    assert fleet.count(Usage, Usage.job_id == second, Usage.reused_from == first) == 300
    assert fleet.count(Usage, Usage.job_id == second, Usage.reused_from.is_(None)) == 3
    assert seconds < whole, "without the first night's 6 s of work"


def test_two_jobs_at_once(fleet: Fleet, tmp_path: Path) -> None:
    fleet.start_worker()
    fleet.start_worker()
    corpora = [write_corpus(tmp_path / f"{n}.jsonl", 60, f"sleep 0.02 {n} {{}}".format) for n in range(2)]
    jobs = [fleet.submit(job_spec(corpus, tmp_path / "out", FEW)).job_id for corpus in corpora]
    for job in jobs:
        fleet.wait(job, 240)
        assert_each_once(fleet, job, names(60))
    assert set(odd_lines(tmp_path).values()) == {2}


_started: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def _no_run_left() -> Iterator[None]:
    """A run that a failed test left behind is killed; its workers and its server follow it."""
    yield
    while _started:
        with _started.pop() as process:
            process.kill()


class Run:
    """``contextmill run`` as a process, its workers and its embedded server; the stage obeys the documents."""

    def __init__(self, folder: Path, number: int, words: Callable[[int], str] | None = None) -> None:
        self.folder, self.gate = folder, folder / "gate"  # for want of other words, the last one waits for it
        corpus = folder / "c.jsonl"
        if not corpus.exists():
            write_corpus(corpus, number, words or gated(number, self.gate, "sleep 0.05 {}"))
        (folder / "job.toml").write_text(
            f'[input]\npath = "{corpus}"\n[output]\npath = "{folder / "runs"}"\n'
            '[[stages]]\nkind = "copy"\nseconds_per_shard = 7e-6\n'
        )
        self.database = folder / "runs" / "contextmill.db"

    def start(self, *words: str) -> subprocess.Popen[str]:
        # Python imports ``sitecustomize`` wherever it starts: in the workers of ``run`` and in their children too.
        (self.folder / "sitecustomize.py").write_text("import odd_worker\n")
        roots = f"{self.folder}:{ODD_WORKER.parent}:{ODD_WORKER.parent.parent.parent}"
        odd = {"ODD_LOG": str(self.folder / "odd.log"), "PYTHONPATH": roots, "OMP_NUM_THREADS": "1"}
        environment = {**os.environ, **odd}
        quick = {"RENEW": "1", "REAP": "1"}
        environment |= {f"CONTEXTMILL_{name}_SECONDS": value for name, value in quick.items()}
        command = [sys.executable, "-m", "pipeline.cli", *(words or ("run", str(self.folder / "job.toml"), "--json"))]
        pipe = subprocess.PIPE
        _started.append(subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True))
        return _started[-1]

    def shards_done(self) -> int:
        if not self.database.exists():
            return 0
        engine = create_engine(f"sqlite:///{self.database}")
        with engine.connect() as connection:
            made = connection.execute(text("select count(*) from sqlite_master where name = 'shards'")).scalar_one()
            query = text("select count(*) from shards where state = 'done'")
            count = connection.execute(query).scalar_one() if made else 0
        engine.dispose()
        return int(count)

    def under_way(self, number: int = 3) -> None:
        wait_until(lambda: self.shards_done() >= number, 240, "some shards done")

    def finished(self, process: subprocess.Popen[str], number: int) -> Fleet:
        """Wait for exit code 0; a fleet without workers to look at what came out."""
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err[-3000:]
        summary = json.loads(out)
        fleet = Fleet(self.folder, f"sqlite:///{self.database}", "redis://127.0.0.1:1/0")
        with fleet:
            assert_each_once(fleet, summary["job_id"], names(number))
        return fleet


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def named(process: subprocess.Popen[str], *words: str) -> psutil.Process:
    """A descendant whose command line holds one of these words."""
    return next(child for child in family(process) if any(word in _command(child) for word in words))


def _command(process: psutil.Process) -> str:
    """What it was started with; nothing where it has ended by now."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""


def test_run_outlives_its_worker_and_its_server(tmp_path: Path) -> None:
    run = Run(tmp_path, 120)
    process = run.start()
    run.under_way()
    named(process, "--name").kill()
    run.under_way(run.shards_done() + 2)
    named(process, "valkey-server", "redis-server").kill()
    run.gate.touch()
    run.finished(process, 120)


def test_run_again_makes_data_that_was_removed(tmp_path: Path) -> None:
    run = Run(tmp_path, 20, "document {}".format)
    run.finished(run.start(), 20)
    worked = odd_lines(tmp_path)
    (data,) = run.folder.glob("runs/*/data")
    shutil.rmtree(data)
    again = run.start()
    run.finished(again, 20)
    assert odd_lines(tmp_path) == worked, "no document is worked on again"


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_run_again_after_an_interruption(how: signal.Signals, tmp_path: Path) -> None:
    """Nothing it started stays behind, and the same command does the rest and nothing again."""
    run = Run(tmp_path, 90)
    process = run.start()
    run.under_way()
    started = family(process)
    process.send_signal(how)
    began = time.monotonic()
    process.communicate(timeout=60)
    run.gate.touch()
    assert process.returncode == (1 if how != signal.SIGKILL else -9)
    wait_until(lambda: not [p for p in started if p.is_running() and p.status() != "zombie"], 30, "all gone")
    print(f"{how.name}: all gone after {time.monotonic() - began:.1f} s")
    before, kept = odd_lines(tmp_path), run.shards_done()
    assert kept < 90 // 7
    run.finished(run.start(), 90)
    engine = create_engine(f"sqlite:///{run.database}")
    with engine.connect() as connection:
        rows = connection.execute(text("select start, stop, attempt from shards where id != 'publish'")).all()
    engine.dispose()
    twice = {name for name, times in odd_lines(tmp_path).items() if times > 1}
    again = {f"d{seq}" for start, stop, attempt in rows if attempt > 1 for seq in range(start, stop)}
    assert twice <= again, "only a shard that was in hand at the interruption is begun again"
    assert len(twice) <= 7 < sum(before.values())


def test_a_job_cancelled_while_it_was_submitted_is_submitted_to_its_end(fleet: Fleet, tmp_path: Path) -> None:
    """Its later documents are in no shard yet: ``resume`` reads on where the submission was cut off."""
    number = 6_000
    run = Run(tmp_path, number, "document {}".format)
    run.database.parent.mkdir()
    with Fleet(tmp_path, f"sqlite:///{run.database}", fleet.broker_url) as other:
        spec = job_spec(tmp_path / "c.jsonl", tmp_path / "runs", {"kind": "copy", "seconds_per_shard": 1e-3})

        def cancel(documents: int) -> None:
            cancel_job(other.engine, list_jobs(other.engine)[0].id)

        with pytest.raises(SubmissionStoppedError, match="cancelled"):
            submit(other.engine, spec, CeleryDoorbell(other.app), progress=cancel)
        job = list_jobs(other.engine)[0]
        assert (job.state, job.submitted_at) == ("cancelled", None)
    run.finished(run.start("resume", job.id, "-o", str(tmp_path / "runs"), "--json"), number)


def test_a_run_whose_whole_disk_is_full_ends_and_says_so(tmp_path: Path) -> None:
    """Its database lies on that disk as well and may or may not be told. With room again, the same command goes on."""
    draw = random.Random(0)
    write_corpus(tmp_path / "c.jsonl", 300, lambda number: f"sleep 0.02 {number} {draw.randbytes(6_000).hex()}")
    run = Run(tmp_path, 300)
    with small_disk(tmp_path / "runs", "5m") as disk:
        text = (tmp_path / "job.toml").read_text()
        (tmp_path / "job.toml").write_text(text.replace("7e-6", "1e-4"))
        process = run.start()
        _, err = process.communicate(timeout=240)
        assert process.returncode == 1
        assert "no space left" in err.lower()
        subprocess.run(["mount", "-o", "remount,size=60m", str(disk)], check=True)
        run.finished(run.start(), 300)
