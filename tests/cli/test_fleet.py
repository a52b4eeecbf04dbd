"""Workers that stay from one job of a command to the next, and those that do not."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from command import User

from pipeline.cli.fleet import Fleet
from pipeline.cli.running import work_until_done
from pipeline.jobfile import load_job
from pipeline.producer import submit
from pipeline.storage.jobs import cancel_job
from pipeline.storage.schema import migrate
from pipeline.storage.sql import open_engine
from schemas.settings import Settings
from workers.embedded import Embedded


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Those of the tests themselves, afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Unheard:
    """A doorbell that nobody hears."""

    def ring(self, *bell: Any) -> None:
        """Nothing."""


def there(embedded: Embedded) -> bool:
    assert embedded.settings.broker_url is not None
    try:
        with redis.Redis.from_url(embedded.settings.broker_url.get_secret_value()) as client:
            return bool(client.ping())
    except redis.ConnectionError:
        return False


def test_workers_stay_for_the_same_model_and_place_alone(tmp_path: Path) -> None:
    """Another model would have to find room beside the first, and another place would have no log."""
    here, elsewhere = str(tmp_path / "here"), str(tmp_path / "elsewhere")
    started: list[Embedded] = []
    with Fleet(Settings(), 0) as fleet:
        for output, model, new in (
            (here, "a", True), (here, "a", False), (here, "b", True), (elsewhere, "b", True), (elsewhere, None, True),
            (elsewhere, None, True),
        ):  # fmt: skip
            found = fleet.started(output, model)
            assert (found not in started) == new and there(found) and found.log_dir == Path(output) / "logs"
            assert [there(one) for one in started if one is not found] == [False] * (len(started) - (not new))
            started += [found] if new else []
        fleet.stop()
        assert not there(started[-1])
        last = fleet.started(here, "a")
    assert not there(last)


def test_whoever_works_on_a_job_that_was_stopped_does_so_no_longer_when_it_is_told(user: User) -> None:
    """What they commit would be missing from the summary, and there for the same command afterwards."""
    spec = load_job(
        user.folder / "job.toml", [f'output.path="{user.folder}/o"', f'input.path="{user.folder}/in.jsonl"']
    )
    engine = open_engine(f"sqlite:///{user.folder}/contextmill.db")
    migrate(engine)
    settings = Settings(database_url=f"sqlite:///{user.folder}/contextmill.db")
    job_id = submit(engine, spec, Unheard()).job_id
    assert cancel_job(engine, job_id)
    with Fleet(settings, 0) as fleet:
        started = fleet.started(spec.output.path, "a")
        work_until_done(engine, fleet, job_id, spec.output.path, json_=True, model="a")
        assert not there(started)
    engine.dispose()
