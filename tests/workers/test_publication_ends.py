"""The last shard of a job: cancelled while it is at work, told to leave, asked for again when its files are gone."""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from by_hand import do, do_all, open_shards, take
from fleet import Fleet, job_spec, wait_until, write_corpus
from outcomes import assert_each_once
from sqlalchemy import Engine, delete, insert, select

from pipeline.storage import shards
from pipeline.storage.jobs import cancel_job, find_job, resume_job
from pipeline.storage.parts import write_tables
from pipeline.storage.reaping import expire, open_publications
from pipeline.storage.shards import PUBLISH
from schemas.records import REJECTION
from schemas.tables import Shard, Usage


def shard_row(engine: Engine, job: str, shard: str) -> Any:
    with engine.connect() as connection:
        return connection.execute(select(Shard).where(Shard.job_id == job, Shard.id == shard)).one()


def seqs(engine: Engine, job: str) -> list[int]:
    found: list[int] = pq.read_table(Path(find_job(engine, job).output) / "data")["seq"].to_pylist()
    return found


def test_what_was_cancelled_while_it_was_published_stays_cancelled(engine: Engine, job: str) -> None:
    """Its publication is handed back at once, uncharged, and done when the job is resumed."""
    do_all(engine, job)
    claim = take(engine, job, PUBLISH)
    assert cancel_job(engine, job)
    assert do(engine, claim) == "lost"
    assert find_job(engine, job).state == "cancelled"
    row = shard_row(engine, job, PUBLISH)
    assert (row.state, row.owner, row.attempt_limit - row.attempt) == ("pending", None, 3)
    assert resume_job(engine, job)
    assert do(engine, take(engine, job, PUBLISH)) == "done"
    assert find_job(engine, job).state == "done"
    assert seqs(engine, job) == list(range(40))


def test_who_cancels_between_the_look_at_the_job_and_its_commit_comes_too_late(
    engine: Engine, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    do_all(engine, job)
    claim = take(engine, job, PUBLISH)
    settle = shards._settle_documents
    with ThreadPoolExecutor(1) as pool:
        cancels: list[Future[bool]] = []

        def cancelled_meanwhile(*of: Any) -> None:
            cancels.append(pool.submit(cancel_job, engine, job))
            wait(cancels, 0.5)  # it is held up until the commit; else it would have gone through by then
            settle(*of)

        monkeypatch.setattr(shards, "_settle_documents", cancelled_meanwhile)
        assert do(engine, claim) == "done"
        assert [cancel.result() for cancel in cancels] == [False]
    assert find_job(engine, job).state == "done"


@pytest.mark.parametrize("gone", ["all of it", "one file"])
def test_data_that_was_removed_is_made_again(engine: Engine, job: str, gone: str) -> None:
    do_all(engine, job)
    assert do(engine, take(engine, job, PUBLISH)) == "done"
    assert not resume_job(engine, job), "nothing is missing"
    data = Path(find_job(engine, job).output) / "data"
    before = {path.name: path.read_bytes() for path in data.iterdir()}
    assert len(before) > 1
    if gone == "all of it":
        shutil.rmtree(data)
    else:
        (data / "part-00001.parquet").unlink()
    assert resume_job(engine, job)
    assert not open_shards(engine, job), "no document is worked on again"
    assert open_publications(engine, 3) == 1
    assert do(engine, take(engine, job, PUBLISH)) == "done"
    assert find_job(engine, job).state == "done"
    assert {path.name: path.read_bytes() for path in data.iterdir()} == before


def test_results_that_are_gone_for_good_are_said_to_be(engine: Engine, job: str) -> None:
    do_all(engine, job)
    assert do(engine, take(engine, job, PUBLISH)) == "done"
    root = Path(find_job(engine, job).output)
    shutil.rmtree(root / "data")
    shutil.rmtree(root / "_parts")
    assert resume_job(engine, job)
    open_publications(engine, 3)
    assert do(engine, take(engine, job, PUBLISH)) == "halted"
    stopped = find_job(engine, job)
    assert stopped.state == "stopped"
    assert "a part of the results is gone" in stopped.error
    assert "another output folder" in stopped.error


def test_a_commit_the_database_refuses_is_a_failure_with_its_reason(engine: Engine, job: str) -> None:
    """It is tried again and, should it last, told: not taken for a worker that died."""
    shard = open_shards(engine, job)[0]
    first = take(engine, job, shard)
    odd = {"job_id": job, "stage": 0, "seq": first.start, "stage_hash": "", "content_hash": "", "part": "", "row": 0}
    with engine.begin() as connection:
        connection.execute(insert(Usage), [{**odd, "tokens_in": 0, "tokens_out": 0, "seconds": 0.0}])
    assert do(engine, first) == "failed"
    row = shard_row(engine, job, shard)
    assert (row.state, row.owner) == ("pending", None)
    assert "IntegrityError" in row.error
    with engine.begin() as connection:
        connection.execute(delete(Usage))
    expire(engine, ["test"])
    wait_until(lambda: (row := shard_row(engine, job, shard)).state == "pending" and bool(row.not_before), 30)
    wait_until(lambda: _done(engine, job, shard), 30, "the shard's second try")


def _done(engine: Engine, job: str, shard: str) -> bool:
    claim = shards.claim(engine, job, shard, "test", 60.0)
    return claim is not None and do(engine, claim) == "done"


def test_sigterm_while_publishing(fleet: Fleet, tmp_path: Path) -> None:
    """The publication is handed back between two files, uncharged; nothing half made is left; another ends it."""
    job = fleet.submit(
        job_spec(write_corpus(tmp_path / "c.jsonl", 60), tmp_path / "out", {"kind": "copy", "seconds_per_shard": 7e-6})
    ).job_id
    first = fleet.start_worker(timings={"soft_shutdown_seconds": 6.0}, ODD_LINK_SECONDS="1")
    wait_until(lambda: any(shard.id == PUBLISH for shard in fleet.shards(job, "leased")), 240, "the publication")
    root = Path(fleet.job(job).output)
    wait_until(lambda: any(root.glob(".data-*/*")), 30, "its first file")
    seconds = first.terminate(30)
    print(f"SIGTERM while publishing: left after {seconds:.1f} s")
    assert seconds < 6.0 + 15.0
    (row,) = [shard for shard in fleet.shards(job) if shard.id == PUBLISH]
    assert (row.state, row.owner, row.attempt_limit - row.attempt) == ("pending", None, 3)
    assert fleet.job(job).state == "running"
    assert not [path.name for path in root.iterdir() if path.name == "data" or path.name.startswith(".")]
    fleet.start_worker()
    fleet.wait(job, 240)
    assert_each_once(fleet, job, [f"d{number}" for number in range(60)])


def test_rejections_are_written_one_batch_at_a_time(tmp_path: Path) -> None:
    alive: list[weakref.ref[pa.Table]] = []

    def tables(broken: bool) -> Iterator[pa.Table]:
        for number in range(20):
            columns = [pa.array([f"{field.name} {number}"] * 50, field.type) for field in REJECTION]
            table = pa.Table.from_arrays(columns, schema=REJECTION)
            alive.append(weakref.ref(table))
            assert sum(ref() is not None for ref in alive) <= 2
            yield table
            if broken and number == 10:
                raise OSError(28, "No space left on device")

    path = tmp_path / "made" / "rejections.parquet"
    with pytest.raises(OSError, match="No space"):
        write_tables(pafs.LocalFileSystem(), str(path), tables(True), REJECTION)
    assert not list(path.parent.iterdir())
    write_tables(pafs.LocalFileSystem(), str(path), tables(False), REJECTION)
    whole = pq.read_table(path)
    assert whole.schema.equals(REJECTION)
    assert whole["source"].to_pylist() == [f"source {number}" for number in range(20) for _ in range(50)]
    before = path.read_bytes()
    with pytest.raises(OSError, match="No space"):
        write_tables(pafs.LocalFileSystem(), str(path), tables(True), REJECTION)
    assert path.read_bytes() == before
