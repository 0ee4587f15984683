"""A PostgreSQL server of one's own in a temporary folder, on a Unix socket only.

It runs as the user `postgres` when we are root, since PostgreSQL refuses to run as root.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

#: seconds that a start, a stop or `initdb` may take
PATIENCE_S = 60


@dataclass
class PostgresServer:
    """A running server; databases are made in it by name."""

    folder: Path
    settings: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://postgres@/{database}?host={self.folder}"

    def database(self, name: str, *, like: str = "template1") -> str:
        """Make a database as a copy of another, empty by default; return its address."""
        with self._connect() as connection:
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{like}"')
        return self.url(name)

    def drop(self, name: str) -> None:
        with self._connect() as connection:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')

    def end_sessions(self) -> None:
        """End every other session, as an administrator may."""
        with self._connect() as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            )

    def size_bytes(self, name: str) -> int:
        with self._connect() as connection:
            row = connection.execute("SELECT pg_database_size(%s)", (name,)).fetchone()
        assert row is not None
        return int(str(row[0]))

    def start(self) -> None:
        """Start the server and wait until it answers."""
        command = [
            str(_binary("postgres")),
            f"-D{self.folder}/data",
            f"-k{self.folder}",
            "-clisten_addresses=",
            *(f"-c{setting}" for setting in self.settings),
        ]
        log = (self.folder / "log").open("ab")
        self.process = subprocess.Popen(
            [*_as_postgres(), *command], stdout=log, stderr=log, cwd="/", start_new_session=True
        )
        log.close()
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                self._connect().close()
            except psycopg.OperationalError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((self.folder / "log").read_text()) from None
                time.sleep(0.05)
            else:
                return

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop it: SIGINT ends sessions at once, SIGQUIT is a crash."""
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(PATIENCE_S)
            self.process = None

    def _connect(self) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(host=str(self.folder), user="postgres", autocommit=True)


@contextmanager
def running_server(*settings: str) -> Iterator[PostgresServer]:
    """Yield a server that is gone, with its folder, at the end."""
    with tempfile.TemporaryDirectory(prefix="hpcserve-pg-") as temporary:
        folder = Path(temporary)
        if os.getuid() == 0:
            shutil.chown(folder, "postgres", "postgres")
        subprocess.run(
            [
                *_as_postgres(),
                str(_binary("initdb")),
                f"-D{folder}/data",
                "-Upostgres",
                "-Atrust",
                "-EUTF8",
                "--locale=C.UTF-8",
                "--no-sync",
            ],
            check=True,
            capture_output=True,
            cwd="/",
            timeout=PATIENCE_S,
        )
        server = PostgresServer(folder, settings)
        server.start()
        try:
            yield server
        finally:
            server.stop()


def _binary(name: str) -> Path:
    """Return the newest installed binary; Debian keeps them out of PATH."""
    found = sorted(
        Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda p: int(p.parts[-3])
    )
    elsewhere = shutil.which(name)
    if not found and elsewhere is None:
        raise RuntimeError(f"no {name} here; install PostgreSQL's server")
    return found[-1] if found else Path(elsewhere or "")


def _as_postgres() -> Sequence[str]:
    # the server ends with its parent, whatever becomes of the tests
    dies_with_us = ("setpriv", "--pdeathsig=INT")
    if os.getuid() != 0:
        return (*dies_with_us, "--")
    return (*dies_with_us, "--reuid=postgres", "--regid=postgres", "--init-groups", "--")
