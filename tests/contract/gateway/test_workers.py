"""`[gateway] workers`: several processes on one port, as `hpcserve gateway` runs them."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

START_S = 60.0


class Site:
    """A state folder and the gateway processes that run on it."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.run = folder / "state" / "run"
        file = folder / "hpcserve.toml"
        file.write_text(
            f'[site]\nstate_dir = "{folder / "state"}"\ncatalog_dirs = []\n'
            f"[gateway]\nport = {self.port}\nworkers = 2\nstop_s = 2.0\n"
        )
        self.env = {**os.environ, "HPCSERVE_CONFIG": str(file)}
        subprocess.run([*HPCSERVE, "admin", "db", "upgrade"], env=self.env, check=True)
        self.log = folder / "log"
        self.process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen([*HPCSERVE, "gateway"], env=self.env, stderr=log)

    def answers(self, number: int) -> bool:
        """Whether worker *number* serves on its Unix socket."""
        name = "gateway.sock" if number == 1 else f"gateway-{number}.sock"
        with socket.socket(socket.AF_UNIX) as unix:
            unix.settimeout(1.0)
            try:
                unix.connect(str(self.run / name))
                unix.sendall(b"GET /health HTTP/1.1\r\nhost: g\r\n\r\n")
                return unix.recv(100).startswith(b"HTTP/1.1 200")
            except OSError:
                return False

    def gateways(self) -> set[str]:
        """Return the ids of the gateways that answer on the port, over some new connections."""
        found = set()
        for _ in range(40):
            answer = httpx.post(f"http://127.0.0.1:{self.port}/v1/completions", json={})
            assert answer.status_code == 401
            found.add(re.sub("-[^-]*$", "", answer.headers["x-request-id"]))
        return found

    def until(self, met: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_S
        while not met():
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def worker_pid(self) -> int:
        """Return the process that was spawned last."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return max(
            int(child)
            for child in children.split()
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()
        )


HPCSERVE = (sys.executable, "-m", "hpcserve")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    try:
        made.until(lambda: made.answers(1) and made.answers(2))
        yield made
    finally:
        if made.process.poll() is None:
            made.process.terminate()
        made.process.wait(START_S)


def test_two_workers_share_the_port_and_end_together(site):
    assert len(site.gateways()) == 2
    assert len(list((site.run.parent / "gateways").glob("*.json"))) == 1
    site.process.terminate()
    assert site.process.wait(START_S) == 0
    assert not site.answers(2)
    assert list(site.run.iterdir()) == []


def test_a_worker_that_dies_is_started_again(site):
    before = site.gateways()
    os.kill(site.worker_pid(), signal.SIGKILL)
    site.until(lambda: not site.answers(2))
    assert len(site.gateways()) == 1
    site.until(lambda: site.answers(2))
    after = site.gateways()
    assert len(after) == 2
    assert len(after & before) == 1


def test_workers_end_with_a_first_process_that_was_killed(site):
    site.process.kill()
    site.process.wait()
    site.until(lambda: not site.answers(2))


def test_a_second_gateway_on_the_port_is_refused(site):
    env = {**site.env, "HPCSERVE_GATEWAY_SOCKET": str(site.run / "other.sock")}
    second = subprocess.run(
        [*HPCSERVE, "gateway"], env=env, capture_output=True, timeout=START_S, check=False
    )
    assert second.returncode == 1
    assert b"cannot listen on 127.0.0.1" in second.stderr
