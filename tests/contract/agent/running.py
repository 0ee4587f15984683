"""Start an agent as a process of its own, against a control plane in the test's loop."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import psutil

from hpcserve.domain.credentials import control_key, engine_key
from hpcserve.domain.instance import InstanceState
from tests.contract.control.site import SECRET, Site

_ROOT = Path(__file__).parents[3]
#: short, so that tests are
FAST = {
    "heartbeat_s": 0.3,
    "call_timeout_s": 2.0,
    "drain_s": 5.0,
    "term_s": 3.0,
    "stop_s": 3.0,
    "last_word_s": 3.0,
    "probe_s": 0.1,
    "lease_poll_s": 0.1,
    "retry_first_s": 0.05,
    "retry_max_s": 0.3,
    "line_retry_s": 0.05,
}


@dataclass
class RunningAgent:
    """One agent and its engine, seen from outside."""

    site: Site
    process: asyncio.subprocess.Process
    folder: Path

    async def until(self, what: Callable[[], Awaitable[object]], *, within_s: float = 15.0) -> None:
        """Wait until *what* is true."""
        async with asyncio.timeout(within_s):
            while not await what():  # noqa: ASYNC110 - another process does it
                await asyncio.sleep(0.02)

    async def until_state(self, state: InstanceState, *, within_s: float = 15.0) -> None:
        async def reached() -> bool:
            return (await self.site.instance()).state is state

        await self.until(reached, within_s=within_s)

    async def until_done(self, lines: int, *, within_s: float = 15.0) -> None:
        async def reached() -> bool:
            return len(self.site.work.results) >= lines

        await self.until(reached, within_s=within_s)

    def engines(self) -> list[psutil.Process]:
        """Return the engine processes below the agent."""
        below = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in below if "hpcserve.engines.fake" in child.cmdline()]

    async def ended(self, *, within_s: float = 15.0) -> int:
        """Wait for its end and return the exit code."""
        async with asyncio.timeout(within_s):
            return await self.process.wait()

    @property
    def agent_log(self) -> str:
        return (self.folder / "agent.log").read_text(encoding="utf-8")

    @asynccontextmanager
    async def engine(self) -> AsyncIterator[aiohttp.ClientSession]:
        """Talk to its engine as a gateway does."""
        base_url = (await self.site.instance()).base_url
        headers = {"authorization": f"Bearer {engine_key(SECRET, 'inst-1')}"}
        async with aiohttp.ClientSession(base_url, headers=headers) as session:
            yield session


@asynccontextmanager
async def running_agent(
    site: Site,
    folder: Path,
    *engine_args: str,
    ends_in_s: float | None = 3600,
    settings: dict[str, object] | None = None,
    **model: object,
) -> AsyncIterator[RunningAgent]:
    """Start an agent for inst-1; kill it at the end if the test has not ended it."""
    given = {
        "order": {
            "gateways_dir": str(folder / "gateways"),
            "instance_dir": str(folder / "inst-1"),
            "control_key": control_key(SECRET, "inst-1"),
            "engine_key": engine_key(SECRET, "inst-1"),
        },
        "model": {"name": "m", "max_num_seqs": 16, "engine_args": engine_args, **model},
        "settings": {**FAST, **(settings or {})},
        "ends_in_s": ends_in_s,
    }
    (folder / "given.json").write_text(json.dumps(given), encoding="utf-8")
    with (folder / "agent.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.contract.agent.entry", str(folder / "given.json")),
            stdout=log,
            stderr=log,
            cwd=_ROOT,
            env=dict(os.environ),
        )
    try:
        yield RunningAgent(site, process, folder)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
