"""Batch beside chat on one instance, and an engine that fails now and then."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from hpcserve.domain.batch import RequestEvent
from hpcserve.domain.instance import InstanceState
from tests.contract.agent.running import RunningAgent, running_agent
from tests.contract.control.site import Site

pytestmark = pytest.mark.usefixtures("gateway_url")

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "ignore_eos": True}
_RUNNING = re.compile(r"^vllm:num_requests_running\{[^}]*\} ([\d.]+)$", re.MULTILINE)


@asynccontextmanager
async def chatting(engine: aiohttp.ClientSession) -> AsyncIterator[None]:
    """Keep one chat request running."""

    async def chat() -> None:
        while True:
            body = {**CHAT, "max_tokens": 1000}
            async with engine.post("/v1/chat/completions", json=body) as response:
                await response.read()

    task = asyncio.create_task(chat())
    try:
        yield
    finally:
        task.cancel()


async def running(engine: aiohttp.ClientSession) -> int:
    async with engine.get("/metrics") as response:
        match = _RUNNING.search(await response.text())
    assert match is not None
    return int(float(match[1]))


async def test_chat_makes_room_for_itself_and_batch_takes_it_back(
    site: Site, tmp_path: Path
) -> None:
    await site.add_batch([{**CHAT, "max_tokens": 400}] * 200)
    # 20 requests take 105 ms a token, 7 take 40
    timing = ("--itl-ms", "5", "--itl-ms-per-seq", "5")
    async with (
        running_agent(
            site,
            tmp_path,
            *timing,
            max_num_seqs=20,
            itl_slo_ms=50.0,
            settings={"interactive_memory_s": 1.0, "probe_s": 0.3, "hold_s": 1.0},
        ) as agent,
        _engine_of(agent) as engine,
    ):
        await agent.until(lambda: _at_least(engine, 20))
        async with chatting(engine):
            await agent.until(lambda: _at_most(engine, 8))
            # held back by the engine at first, then handed to others
            await agent.until(lambda: _leased_at_most(site, 20))
        await agent.until(lambda: _at_least(engine, 20), within_s=10)
    assert sum((await site.attempts()).values()) == 0


async def test_chat_takes_a_full_engines_slot_and_no_line_is_lost(
    site: Site, tmp_path: Path
) -> None:
    # every line has the same prompt, and the chat too: so all answers are known
    await site.add_batch([{**CHAT, "max_tokens": 200, "priority": -9}] * 12)
    settings = {"probe_s": 5.0}
    async with (
        running_agent(site, tmp_path, "--itl-ms", "20", max_num_seqs=4, settings=settings) as agent,
        _engine_of(agent) as engine,
    ):
        await agent.until(lambda: _at_least(engine, 4))
        started = asyncio.get_running_loop().time()
        async with engine.post("/v1/chat/completions", json={**CHAT, "max_tokens": 1}) as response:
            alone = await response.json()
        # a line takes 4 s, and the agent looks every 5 s: nobody but the engine was so quick
        assert asyncio.get_running_loop().time() - started < 1
        assert not site.work.results
        await agent.until_done(12, within_s=30)
    word = alone["choices"][0]["message"]["content"]
    for outcomes in site.work.results.values():
        body = json.loads(outcomes[0].line)["response"]["body"]
        assert body["usage"]["completion_tokens"] == 200
        assert body["choices"][0]["message"]["content"].startswith(word)
    assert sum((await site.attempts()).values()) == 0


async def test_a_failure_now_and_then_costs_nothing(site: Site, tmp_path: Path) -> None:
    await site.add_batch([{**CHAT, "max_tokens": 2}] * 50)
    faults = ("--faults", json.dumps({"error_ratio": 0.2}))
    async with running_agent(site, tmp_path, *faults, settings={"line_retries": 8}) as agent:
        await agent.until_done(50)
    events = {outcomes[0].event for outcomes in site.work.results.values()}
    assert events == {RequestEvent.ANSWERED}


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        ({"error_after_tokens": 1}, 500, None),
        ({"disconnect_after_tokens": 1}, None, "engine_gave_no_answer"),
    ],
)
async def test_a_request_that_a_healthy_engine_always_fails_ends_in_the_error_file(
    site: Site, tmp_path: Path, fault: dict[str, object], status: int | None, code: str | None
) -> None:
    async with running_agent(site, tmp_path) as agent, _engine_of(agent) as engine:
        async with engine.post("/fake/faults", json=fault) as response:
            assert response.status == 200
        await site.add_batch([{**CHAT, "max_tokens": 3}])
        await agent.until_done(1)
    line = json.loads(site.work.results[0][0].line)
    assert site.work.results[0][0].event is RequestEvent.REFUSED
    assert (line["response"] and line["response"]["status_code"]) == status
    assert (line["error"] and line["error"]["code"]) == code


async def _at_least(engine: aiohttp.ClientSession, count: int) -> bool:
    return await running(engine) >= count


async def _leased_at_most(site: Site, count: int) -> bool:
    return (await site.batch()).counts.leased <= count


async def _at_most(engine: aiohttp.ClientSession, count: int) -> bool:
    return await running(engine) <= count


@asynccontextmanager
async def _engine_of(agent: RunningAgent) -> AsyncIterator[aiohttp.ClientSession]:
    await agent.until_state(InstanceState.READY)
    async with agent.engine() as engine:
        yield engine
