"""Starts the proxies under test, pinned to core 0; the bench itself is pinned to core 1.

The peer is the Rust `vllm-router`, in an environment of its own below $HPCSERVE_CACHE; without it a
bench says how to make that and gives up.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench._rig import Rig, Sample

PEER_VERSION = "0.1.17"
PROXY_CORE = 0
RIG_CORE = 1
#: s until a proxy must answer
START_S = 20.0


@dataclass(frozen=True)
class Running:
    """One proxy that runs."""

    port: int
    pid: int

    def cpu_s(self) -> float:
        """Return user and system time that it has used, s."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_mib(self) -> float:
        """Return its resident memory, MiB."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGESIZE") / 2**20


def ours(port: int, engines: Sequence[int], folder: Path) -> list[str]:
    """Return the command of one gateway process."""
    ports = [str(engine) for engine in engines]
    return [sys.executable, "-m", "tests.bench._proxy", str(port), str(folder), *ports]


def peer(port: int, engines: Sequence[int], folder: Path) -> list[str]:
    """Return the command of vllm-router."""
    cache = Path(os.environ.get("HPCSERVE_CACHE") or Path.home() / ".cache" / "hpcserve")
    program = cache / "bench-router" / "bin" / "vllm-router"
    if not program.exists():
        sys.exit(
            f"bench: {program} is missing; make it with `python -m venv {program.parent.parent}` "
            f"and `{program.parent}/pip install vllm-router=={PEER_VERSION}`"
        )
    urls = [f"http://127.0.0.1:{engine}" for engine in engines]
    return [
        str(program),
        *("--worker-urls", *urls),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--policy", "round_robin", "--log-level", "error"),
        *("--prometheus-port", str(_free_port())),
    ]


PROXIES: dict[str, Callable[[int, Sequence[int], Path], list[str]]] = {"ours": ours, "peer": peer}


@contextmanager
def proxy(name: str, rig: Rig, folder: Path) -> Iterator[Running]:
    """Run the proxy called *name* in front of the rig's engines."""
    port = _free_port()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            PROXIES[name](port, rig.ports, folder),
            stdout=log,
            stderr=log,
            preexec_fn=lambda: os.sched_setaffinity(0, {PROXY_CORE}),  # noqa: PLW1509 - no threads yet
        )
    try:
        _until_it_answers(process, port, rig, folder / f"{name}.log")
        yield Running(port, process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _until_it_answers(process: subprocess.Popen[bytes], port: int, rig: Rig, log: Path) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end and process.poll() is None:
        # the peer asks its engines for their health first
        rig.serve(0.1, Sample(0.1))
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=0.2):
                rig.serve(0.5, Sample(0.5))
                return
        except OSError:
            continue
    sys.exit(f"bench: a proxy did not start; its log ends with\n{log.read_text()[-2000:]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
