"""Claim, renew and finish among many who want the same shard: one wins, and who lost writes nothing."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from by_hand import Silent, do, open_shards
from fleet import job_spec, write_corpus
from sqlalchemy import Engine, func, select

from pipeline.producer import submit
from pipeline.storage import shards
from pipeline.storage.reaping import expire, lead
from pipeline.storage.schema import migrate
from pipeline.storage.shards import Claim
from pipeline.storage.sql import open_engine
from schemas.tables import Part, Usage

T = TypeVar("T")
CROWD = 12


def at_once(action: Callable[[int], T]) -> list[T]:
    """What ``action`` gives to a crowd that starts together."""
    start = threading.Barrier(CROWD)

    def go(number: int) -> T:
        start.wait()
        return action(number)

    with ThreadPoolExecutor(CROWD) as pool:
        return list(pool.map(go, range(CROWD)))


def rows(engine: Engine, table: type[Part] | type[Usage], *where: object) -> int:
    with engine.connect() as connection:
        return int(connection.scalar(select(func.count()).select_from(table).where(*where)) or 0)  # type: ignore[arg-type]


def test_of_many_who_claim_one_shard_one_gets_it(engine: Engine, job: str) -> None:
    for shard in open_shards(engine, job):
        claims = [claim for claim in at_once(lambda n, s=shard: shards.claim(engine, job, s, f"w{n}", 60)) if claim]  # type: ignore[misc]
        assert len(claims) == 1
        assert claims[0].attempt == 1


def test_of_many_who_claim_an_expired_lease_one_gets_it(engine: Engine, job: str) -> None:
    shard = open_shards(engine, job)[0]
    first = shards.claim(engine, job, shard, "first", 0.01)
    time.sleep(0.05)
    claims = [claim for claim in at_once(lambda n: shards.claim(engine, job, shard, f"w{n}", 60)) if claim]
    assert [claim.attempt for claim in claims] == [2]
    assert first is not None
    assert not shards.renew(engine, first, 60, 0, 0)
    assert not shards.release(engine, first, error=None)


def test_the_reaper_and_a_late_renewal_never_both_win(engine: Engine, job: str) -> None:
    for shard in open_shards(engine, job):
        claim = shards.claim(engine, job, shard, "slow", 0.01)
        assert claim is not None
        time.sleep(0.05)
        kept, freed = False, 0
        barrier = threading.Barrier(2)

        def renew(claim: Claim = claim, barrier: threading.Barrier = barrier) -> bool:
            barrier.wait()
            return shards.renew(engine, claim, 60, 0, 0)

        with ThreadPoolExecutor(1) as pool:
            renewal = pool.submit(renew)
            barrier.wait()
            freed = expire(engine)
            kept = renewal.result()
        assert kept != bool(freed)


def test_one_of_many_finishes_and_the_rest_write_nothing(engine: Engine, job: str, tmp_path: Path) -> None:
    """Twelve hold what they take for the same claim, as after a partition: one commit, one part."""
    shard = open_shards(engine, job)[0]
    claim = shards.claim(engine, job, shard, "one", 60)
    assert claim is not None
    assert sorted(at_once(lambda _: do(engine, claim))) == ["done"] + ["lost"] * (CROWD - 1)
    assert rows(engine, Part, Part.job_id == job, Part.stage == 0) == 1
    assert rows(engine, Usage, Usage.job_id == job) == claim.stop - claim.start
    assert len(list(tmp_path.glob("out/*/_parts/*"))) == 1


def test_who_lost_the_fence_writes_nothing_and_takes_its_part_away(engine: Engine, job: str, tmp_path: Path) -> None:
    shard = open_shards(engine, job)[0]
    late = shards.claim(engine, job, shard, "late", 0.01)
    time.sleep(0.05)
    prompt = shards.claim(engine, job, shard, "prompt", 60)
    assert late is not None
    assert prompt is not None
    assert do(engine, late) == "lost"
    assert rows(engine, Part, Part.job_id == job, Part.stage == 0) == 0
    assert not list(tmp_path.glob("out/*/_parts/*"))
    assert do(engine, prompt) == "done"
    assert do(engine, late) == "lost"
    assert len(list(tmp_path.glob("out/*/_parts/*"))) == rows(engine, Part, Part.job_id == job, Part.stage == 0) == 1
    assert rows(engine, Usage, Usage.job_id == job) == prompt.stop - prompt.start


def test_one_of_many_leads(engine: Engine) -> None:
    assert sum(at_once(lambda n: lead(engine, "reaper", f"w{n}", 60))) == 1
    assert sum(at_once(lambda n: lead(engine, "reaper", f"v{n}", 60))) == 0


def test_a_commit_whose_answer_is_lost_keeps_its_part(postgres_url: str, tmp_path: Path) -> None:
    """The server commits, the line breaks before it says so: the worker must not take that for a lost fence."""
    direct = open_engine(postgres_url)
    migrate(direct)
    corpus = write_corpus(tmp_path / "corpus.jsonl", 10)
    job = submit(direct, job_spec(corpus, tmp_path / "out"), Silent()).job_id
    shard = open_shards(direct, job)[0]
    claim = shards.claim(direct, job, shard, "unlucky", 60)
    assert claim is not None
    with swallowing_commits(direct.url.port or 0) as (port, swallow):
        through = open_engine(str(direct.url.set(port=port)))
        swallow.set()  # the next commit that passes, which is that of ``finish``: nothing before it writes
        ending = do(through, claim)
        through.dispose()
    assert not swallow.is_set()
    assert ending == "done"
    parts = list(tmp_path.glob("out/*/_parts/*"))
    assert len(parts) == rows(direct, Part, Part.job_id == job, Part.stage == 0) == 1
    direct.dispose()


@contextmanager
def swallowing_commits(server: int) -> Iterator[tuple[int, threading.Event]]:
    """A proxy before PostgreSQL. With the event set, it passes the next COMMIT on and cuts the line then."""
    armed, listening = threading.Event(), socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                client, _ = listening.accept()
            except OSError:
                return
            upstream = socket.create_connection(("127.0.0.1", server))
            threading.Thread(target=up, args=(client, upstream), daemon=True).start()
            threading.Thread(target=down, args=(client, upstream), daemon=True).start()

    def up(client: socket.socket, upstream: socket.socket) -> None:
        while data := _read(client):
            if armed.is_set() and b"COMMIT" in data:
                armed.clear()
                client.shutdown(socket.SHUT_RDWR)
            upstream.sendall(data)
        time.sleep(0.2)  # let the server end what it was told
        upstream.close()
        client.close()

    def down(client: socket.socket, upstream: socket.socket) -> None:
        try:
            while data := _read(upstream):
                client.sendall(data)
        except OSError:
            return

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield int(listening.getsockname()[1]), armed
    finally:
        listening.close()


def _read(one: socket.socket) -> bytes:
    try:
        return one.recv(65536)
    except OSError:
        return b""
