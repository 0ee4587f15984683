"""How close the agent brings its engine to the engine's own limit, at 1,000 lines a second.

Each round measures the same fake engine twice: fed by a client that only keeps its slots full, and
fed by a whole agent that leases, runs and settles over HTTP. Prints `figure feeder.engine_limit`.
Run: `python tests/bench/feeder.py [--lines N] [--rounds N]`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path

import aiohttp

sys.path.insert(0, str(Path(__file__).parents[2]))

from hpcserve.domain.model import EngineKind, Model
from hpcserve.engines.fake.launch import FakeAdapter
from tests.bench._figures import figure
from tests.contract.agent.running import running_agent
from tests.contract.control.site import Site, free_port, gateway
from tests.contract.engine.running import KEY, running_engine

#: 256 slots, 8 tokens of 32 ms: 1,000 lines a second
SLOTS = 256
TIMING = ("--itl-ms", "32", "--ttft-ms", "32")
BODY = {
    "model": "m",
    "messages": [{"role": "user", "content": "Classify: a library that parses. " * 4}],
    "max_tokens": 8,
    "ignore_eos": True,
}
#: as in the engine's own queue when an agent feeds it
IN_FLIGHT = SLOTS + SLOTS // 8


async def direct(lines: int) -> float:
    """Return lines a second with nothing but a client that keeps the slots full."""
    model = Model(
        name="m",
        engine=EngineKind.FAKE,
        weights="none",
        max_num_seqs=SLOTS,
        engine_args=TIMING,
    )
    adapter = FakeAdapter(python=sys.executable, shutdown_timeout_s=1)
    with tempfile.TemporaryDirectory() as folder:
        async with running_engine(adapter, model, Path(folder)) as engine:
            return await _saturate(str(engine.client.base_url), lines)


async def _saturate(base_url: str, lines: int) -> float:
    left, body, ends = lines, json.dumps(BODY).encode(), list[float]()
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    pool = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(base_url, headers=headers, connector=pool) as session:

        async def client() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                async with session.post("/v1/chat/completions", data=body) as response:
                    await response.read()
                    ends.append(time.monotonic())

        await asyncio.gather(*(client() for _ in range(IN_FLIGHT)))
    return _rate(ends)


async def agent(lines: int) -> float:
    """Return lines a second, durable, of an agent with its control plane."""
    site = Site()
    await site.add_instance()
    await site.add_batch([BODY] * lines)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shipped = {"probe_s": 0.5, "lease_poll_s": 0.5, "heartbeat_s": 5.0}
        async with (
            gateway(site, folder / "gateways", free_port()),
            running_agent(site, folder, *TIMING, max_num_seqs=SLOTS, settings=shipped) as running,
        ):
            await running.until_done(lines, within_s=lines / 100)
    return _rate([at.timestamp() for at in site.work.settled_at])


def _rate(ends: list[float]) -> float:
    """Return lines a second between a tenth and nine tenths of all."""
    first, last = len(ends) // 10, len(ends) * 9 // 10
    return (last - first) / (ends[last] - ends[first])


async def main(lines: int, rounds: int) -> None:
    """Measure and print."""
    ratios = []
    for _ in range(rounds):
        limit, fed = await direct(lines), await agent(lines)
        ratios.append(fed / limit)
    figure("feeder.engine_limit", ratios, ">=0.98")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    asyncio.run(main(options.lines, options.rounds))
