"""A started engine ends with whoever started it, whole, and says how it ended."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from hpcserve.engines.port import HeldPort
from hpcserve.engines.process import EngineProcesses
from hpcserve.errors import BackendError
from hpcserve.ports.engine import Launch

#: a program with a child, as vLLM has; prints both ids
FAMILY = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
print(os.getpid(), child.pid, flush=True)
time.sleep(100)
"""


def a_launch(code: str, **env: str) -> Launch:
    return Launch(argv=(sys.executable, "-c", code), env=env)


async def printed(log: Path) -> list[int]:
    """Wait for the line of FAMILY."""
    async with asyncio.timeout(10):
        while True:
            if (text := read(log)).endswith("\n"):
                return [int(number) for number in text.split()]
            await asyncio.sleep(0.02)


async def gone(pids: list[int]) -> None:
    """Wait until no process of these ids lives."""
    async with asyncio.timeout(5):
        while True:
            if not any(alive(pid) for pid in pids):
                return
            await asyncio.sleep(0.02)


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@pytest.fixture
def processes() -> EngineProcesses:
    return EngineProcesses(dict(os.environ))


async def test_output_and_exit_code_arrive(processes: EngineProcesses, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    code = "import os, sys; print(os.environ['WORD']); print('oh', file=sys.stderr); sys.exit(3)"
    process = await processes.start(a_launch(code, WORD="hello"), log_path=str(log))
    assert await process.wait() == 3
    assert process.exit_code == 3
    assert sorted(log.read_text().split()) == ["before", "hello", "oh"]
    process.terminate()
    process.kill()


async def test_kill_ends_the_whole_group(processes: EngineProcesses, tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = await processes.start(a_launch(FAMILY), log_path=str(log))
    pids = await printed(log)
    assert process.pid == pids[0]
    assert process.exit_code is None
    process.kill()
    assert await process.wait() == -signal.SIGKILL
    await gone(pids)


async def test_terminate_asks_the_first_process_alone(
    processes: EngineProcesses, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    # As vLLM does: finish what runs in the other processes, then end.
    drains = FAMILY.replace(
        "time.sleep(100)\n",
        "import signal\nsignal.sigwait([signal.SIGTERM])\ntime.sleep(0.2)\n"
        "sys.exit(5 if child.poll() is None else 6)\n",
    ).replace("child =", "import signal; signal.pthread_sigmask(0, [15])\nchild =")
    process = await processes.start(a_launch(drains), log_path=str(log))
    pids = await printed(log)
    process.terminate()
    assert await process.wait() == 5
    await gone(pids)


async def test_nothing_is_left_when_the_first_process_dies_alone(
    processes: EngineProcesses, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    process = await processes.start(a_launch(FAMILY), log_path=str(log))
    pids = await printed(log)
    os.kill(process.pid, signal.SIGKILL)
    assert await process.wait() == -signal.SIGKILL
    await gone(pids)


async def test_an_engine_does_not_outlive_an_agent_that_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    agent = f"""
import asyncio, os
from hpcserve.engines.process import EngineProcesses
from hpcserve.ports.engine import Launch
async def main():
    launch = Launch(argv=({sys.executable!r}, "-c", {FAMILY!r}), env={{}})
    await EngineProcesses(dict(os.environ)).start(launch, log_path={str(log)!r})
    await asyncio.sleep(100)
asyncio.run(main())
"""
    killed = await asyncio.create_subprocess_exec(sys.executable, "-c", agent)
    pids = await printed(log)
    assert all(alive(pid) for pid in pids)
    killed.kill()
    await killed.wait()
    await gone(pids)


async def test_a_program_that_does_not_exist_is_named(
    processes: EngineProcesses, tmp_path: Path
) -> None:
    launch = Launch(argv=("/no/such/vllm", "serve"), env={})
    with pytest.raises(BackendError, match="/no/such/vllm cannot be started") as failure:
        await processes.start(launch, log_path=str(tmp_path / "log"))
    assert not failure.value.retryable


async def test_a_log_that_cannot_be_written_is_named(
    processes: EngineProcesses, tmp_path: Path
) -> None:
    log = tmp_path / "absent" / "log"
    with pytest.raises(BackendError, match=str(log)):
        await processes.start(a_launch("pass"), log_path=str(log))


async def test_a_wait_may_be_cancelled(processes: EngineProcesses, tmp_path: Path) -> None:
    process = await processes.start(
        a_launch("import time; time.sleep(100)"), log_path=str(tmp_path / "log")
    )
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(process.wait(), 0.05)
    process.kill()
    assert await process.wait() == -signal.SIGKILL


def test_a_held_port_is_the_engines_alone() -> None:
    with HeldPort("127.0.0.1") as port, HeldPort("127.0.0.1") as other:
        assert port.number != other.number
        with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
            stranger.bind(("127.0.0.1", port.number))
        with (
            socket.create_server(("127.0.0.1", port.number)) as engine,
            socket.create_connection(("127.0.0.1", port.number), timeout=2),
        ):
            engine.accept()[0].close()
