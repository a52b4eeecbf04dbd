"""Real servers for the tests, each on a free port in a folder of its own: redis-server and PostgreSQL.

They are stopped by process id, and die with the thread that started them (in a test run: the main one). ``kill`` is
SIGKILL; ``start`` after it brings the server back on the same port with what it had written.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

import psycopg
import pytest
import redis

START_SECONDS = 60.0
PORTS = random.SystemRandom()  # whatever seed a test sets: test runs lie beside each other


def free_port() -> int:
    """A TCP port of localhost that nothing listens on right now.

    None of those that the kernel hands out by itself: somebody's connection could take it while its server is killed.
    """
    with contextlib.closing(socket.socket()) as probe:
        while True:
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", PORTS.randrange(15_000, 32_000)))
                port: int = probe.getsockname()[1]
                return port


def binary(*names: str) -> str:
    """The path of an installed program, or a failed run: a missing server is never a skipped test."""
    for name in names:
        newest = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]))
        if found := shutil.which(name) or next((str(path) for path in reversed(newest)), None):
            return found
    pytest.fail(f"{names[0]} is not installed; `make test` installs it (.ci/install-servers)", pytrace=False)


def _dies_with_us(stop: str) -> list[str]:
    """Words before a command that have the kernel stop it should pytest itself be killed (util-linux)."""
    return ["setpriv", f"--pdeathsig={stop}"] if shutil.which("setpriv") else []


class Server(ABC):
    """A server process: ``start``, ``stop`` (orderly), ``kill`` (SIGKILL), and ``start`` again on the same port."""

    STOP: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    @abstractmethod
    def url(self) -> str: ...

    @abstractmethod
    def command(self) -> list[str]: ...

    @abstractmethod
    def answers(self) -> bool: ...

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Start unless it runs, and return once it answers."""
        give_up = time.monotonic() + START_SECONDS
        while not (self.running and self.answers()):
            if not self.running:  # again: after a kill, its children may hold the port for a moment
                with (self.folder / "server.log").open("ab") as log:
                    self.process = subprocess.Popen(self.command(), stdout=log, stderr=log, cwd=self.folder)
            if time.monotonic() > give_up:
                log_end = (self.folder / "server.log").read_text(errors="replace")[-2000:]
                self.kill()
                raise RuntimeError(f"{self.command()[0]} gave no answer in {START_SECONDS:.0f} s:\n{log_end}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Let it finish what it does and write its data."""
        self._end(self.STOP)

    def kill(self) -> None:
        """As a crash would."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(timeout=START_SECONDS)
            self.process = None


class RedisServer(Server):
    """redis-server with the durability that a deployment is told to use: AOF every second, no eviction."""

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def command(self) -> list[str]:
        settings = {"port": self.port, "bind": "127.0.0.1", "dir": self.folder, "save": "", "appendonly": "yes"}
        settings |= {"appendfsync": "everysec", "maxmemory-policy": "noeviction", "daemonize": "no"}
        words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
        return [*_dies_with_us("KILL"), binary("redis-server"), *words]

    def answers(self) -> bool:
        try:
            with redis.Redis(port=self.port, socket_timeout=5) as client:
                return bool(client.ping())
        except redis.RedisError:  # not there yet, or still reading its data
            return False

    def flush(self) -> None:
        """Forget all keys."""
        with redis.Redis(port=self.port, socket_timeout=5) as client:
            client.flushall()


class PostgresServer(Server):
    """PostgreSQL with one superuser and no password, for localhost only. root's tests run it as another user."""

    STOP = signal.SIGINT  # "fast": ends its clients' sessions instead of waiting for them

    def __init__(self) -> None:
        # Not below pytest's folder: that one is closed to the user the server runs as.
        super().__init__(Path(tempfile.mkdtemp(prefix="contextmill-postgres-")))
        self._as_user: list[str] = []
        if os.geteuid() == 0:
            user = next(entry for entry in pwd.getpwall() if entry.pw_name in ("postgres", "nobody"))
            os.chown(self.folder, user.pw_uid, user.pw_gid)
            self._as_user = [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        self._run("initdb", "--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync")

    def _words(self, program: str, *words: str) -> list[str]:
        user = [*(_dies_with_us("INT") or ["setpriv"]), *self._as_user] if self._as_user else _dies_with_us("INT")
        return [*user, binary(program), "-D", str(self.folder / "data"), *words]

    def _run(self, program: str, *words: str) -> None:
        done = subprocess.run(
            self._words(program, *words), cwd=self.folder, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{program} failed: {done.stderr.strip()}")

    @property
    def url(self) -> str:
        return self.url_of("postgres")

    def url_of(self, database: str) -> str:
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/{database}"

    def command(self) -> list[str]:
        # No fsync: it guards against a power cut, not against a killed process, and costs the tests minutes.
        settings = {"port": self.port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off"}
        words = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        return self._words("postgres", *words)

    def answers(self) -> bool:
        try:
            self.execute("select 1")
        except psycopg.OperationalError:
            return False
        return True

    def execute(self, statement: str) -> None:
        """Run one statement as the superuser, outside a transaction."""
        address = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        with psycopg.connect(address, autocommit=True, connect_timeout=5) as connection:
            connection.execute(statement.encode())

    def remove(self) -> None:
        """Stop it and take its folder away."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
