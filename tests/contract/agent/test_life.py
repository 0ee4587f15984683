"""How an agent begins, serves and ends: real processes, a fake engine, real signals."""

from __future__ import annotations

import asyncio
import json
import signal
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from hpcserve.domain.batch import RequestEvent
from hpcserve.domain.instance import Instance, InstanceEvent, InstanceState
from hpcserve.domain.job import EndReason
from hpcserve.domain.lifecycle import Transition
from tests.builders import NOW
from tests.contract.agent.running import running_agent
from tests.contract.control.site import Site, free_port, gateway

pytestmark = pytest.mark.usefixtures("gateway_url")

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
#: lines that the fake engine works on for seconds
LONG = {**CHAT, "max_tokens": 200, "ignore_eos": True}
SLOW = ("--itl-ms", "50")


async def test_it_serves_once_a_token_was_generated(site: Site, tmp_path: Path) -> None:
    async with running_agent(site, tmp_path) as agent:
        await agent.until_state(InstanceState.READY)
        instance = await site.instance()
        assert instance.log_path == str(tmp_path / "inst-1" / "logs" / "engine.log")
        mode = stat.S_IMODE((tmp_path / "inst-1").stat().st_mode)
        assert mode == 0o700
        async with agent.engine() as engine:
            status, _ = await _post(engine, CHAT)
            assert status == 200
    assert (await site.story())[1:] == [InstanceEvent.REGISTERED, InstanceEvent.HEALTHY]


async def test_a_batch_is_done_line_by_line(site: Site, tmp_path: Path) -> None:
    reject = ("--faults", json.dumps({"reject_marker": "REJECT"}))
    bad = {**CHAT, "messages": [{"role": "user", "content": "REJECT"}]}
    await site.add_batch([CHAT, bad, *[CHAT] * 98])
    async with running_agent(site, tmp_path, *reject) as agent:
        await agent.until_done(100)
    results = {n: outcomes[0] for n, outcomes in site.work.results.items()}
    assert all(len(outcomes) == 1 for outcomes in site.work.results.values())
    assert {n for n, result in results.items() if result.event is RequestEvent.REFUSED} == {1}
    good, refused = json.loads(results[0].line), json.loads(results[1].line)
    assert (good["custom_id"], good["error"]) == ("line-0", None)
    assert good["response"]["status_code"] == 200
    assert good["response"]["body"]["choices"][0]["message"]["content"]
    assert results[0].output_tokens == 4
    assert refused["response"]["status_code"] == 400
    assert refused["response"]["body"]["error"]["message"]
    assert refused["error"] is None


async def test_the_first_result_is_there_within_two_seconds_of_ready(
    site: Site, tmp_path: Path
) -> None:
    await site.add_batch([CHAT])
    async with running_agent(site, tmp_path, settings={"heartbeat_s": 5.0}) as agent:
        await agent.until_done(1)
    ready_at = (await site.instance()).ready_at
    assert ready_at is not None
    assert (site.work.settled_at[0] - ready_at).total_seconds() < 2


async def test_an_engine_that_dies_while_loading_fails_fast_and_quotes_its_log(
    site: Site, tmp_path: Path
) -> None:
    async with running_agent(site, tmp_path, "--no-such-flag") as agent:
        assert await agent.ended() == 1
    instance = await site.instance()
    assert (instance.state, instance.ending) == (InstanceState.STOPPING, EndReason.LOAD_FAILED)
    assert str(tmp_path / "inst-1" / "logs" / "engine.log") in instance.message
    assert "--no-such-flag" in instance.message


async def test_an_engine_that_never_gets_ready_is_a_load_failure(
    site: Site, tmp_path: Path
) -> None:
    async with running_agent(site, tmp_path, "--load-s", "60", load_timeout_s=1.5) as agent:
        assert await agent.ended() == 1
    instance = await site.instance()
    assert instance.ending is EndReason.LOAD_FAILED
    assert "not ready within" in instance.message


async def test_a_killed_engine_is_a_crash_and_costs_what_was_in_flight(
    site: Site, tmp_path: Path
) -> None:
    await site.add_batch([LONG] * 40)
    async with running_agent(site, tmp_path, *SLOW) as agent:
        await agent.until_state(InstanceState.READY)
        await agent.until(lambda: _leased(site, 18))
        await asyncio.sleep(0.3)
        agent.engines()[0].kill()
        assert await agent.ended() == 1
    instance = await site.instance()
    assert instance.ending is EndReason.CRASHED
    assert "while serving" in instance.message
    attempts = await site.attempts()
    assert len(attempts) == 40
    # the engine had its slots full, and two more that waited inside it
    assert sum(attempts.values()) == 18


async def test_an_engine_that_answers_no_more_is_ended(site: Site, tmp_path: Path) -> None:
    async with running_agent(site, tmp_path, settings={"unhealthy_max": 3}) as agent:
        await agent.until_state(InstanceState.READY)
        async with agent.engine() as engine:
            await _post(engine, {"unhealthy": True}, "/fake/faults")
        assert await agent.ended() == 1
    instance = await site.instance()
    assert instance.ending is EndReason.CRASHED
    assert "3 health checks" in instance.message


@pytest.mark.parametrize(
    ("ends_in_s", "reason"), [(100, EndReason.EXPIRED), (3600, EndReason.PREEMPTED)]
)
async def test_sigterm_drains(
    site: Site, tmp_path: Path, ends_in_s: float, reason: EndReason
) -> None:
    await site.add_batch([LONG] * 40)
    async with running_agent(site, tmp_path, *SLOW, ends_in_s=ends_in_s) as agent:
        await agent.until(lambda: _leased(site, 18))
        async with agent.engine() as engine:
            short = {**LONG, "max_tokens": 20}
            chat = asyncio.create_task(_post(engine, short))
            await asyncio.sleep(0.5)
            pid = agent.engines()[0].pid
            agent.process.send_signal(signal.SIGTERM)
            await agent.until_state(InstanceState.DRAINING)
            # a chat request that runs is finished, and one that came too late too
            status, body = await chat
        assert status == 200
        assert body["usage"]["completion_tokens"] == 20
        assert await agent.ended() == 0
        assert not psutil.pid_exists(pid)
    instance = await site.instance()
    assert (instance.state, instance.ending) == (InstanceState.STOPPING, reason)
    assert instance.message == ""
    assert sum((await site.attempts()).values()) == 0
    assert (await site.batch()).counts.leased == 0


async def test_the_warning_lets_batch_lines_finish_while_time_is_left(
    site: Site, tmp_path: Path
) -> None:
    await site.add_batch([{**LONG, "max_tokens": 20}] * 40)
    async with running_agent(site, tmp_path, *SLOW, ends_in_s=60) as agent:
        await agent.until(lambda: _leased(site, 18))
        await asyncio.sleep(0.3)
        agent.process.send_signal(signal.SIGUSR2)
        assert await agent.ended() == 0
    assert (await site.instance()).ending is EndReason.EXPIRED
    counts = (await site.batch()).counts
    assert counts.completed >= 18
    assert counts.leased == 0
    assert sum((await site.attempts()).values()) == 0


async def test_a_second_sigterm_hastens(site: Site, tmp_path: Path) -> None:
    async with running_agent(
        site, tmp_path, *SLOW, settings={"term_s": 30.0, "drain_s": 30.0}
    ) as agent:
        await agent.until_state(InstanceState.READY)
        async with agent.engine() as engine:
            chat = asyncio.create_task(_post(engine, {**LONG, "max_tokens": 2000}))
            await asyncio.sleep(0.3)
            agent.process.send_signal(signal.SIGTERM)
            await agent.until_state(InstanceState.DRAINING)
            await asyncio.sleep(0.5)
            assert agent.process.returncode is None
            agent.process.send_signal(signal.SIGTERM)
            assert await agent.ended(within_s=8) == 0
            chat.cancel()


async def test_the_controllers_drain_is_obeyed(site: Site, tmp_path: Path) -> None:
    async with running_agent(site, tmp_path) as agent:
        await agent.until_state(InstanceState.READY)
        await site.change(
            lambda instance: instance.on(
                InstanceEvent.DRAIN, at=NOW, reason="idle", ending=EndReason.SCALED_IN
            )
        )
        assert await agent.ended() == 0
    instance = await site.instance()
    assert (instance.state, instance.ending) == (InstanceState.STOPPING, EndReason.SCALED_IN)


async def test_a_zombie_exits_at_its_next_word_and_takes_its_engine_along(
    site: Site, tmp_path: Path
) -> None:
    await site.add_batch([LONG] * 10)
    async with running_agent(site, tmp_path, *SLOW) as agent:
        await agent.until(lambda: _leased(site, 10))
        pid = agent.engines()[0].pid
        await site.change(lambda i: i.on(InstanceEvent.GONE, at=NOW, reason="node failed"))
        assert await agent.ended(within_s=5) == 0
        assert not psutil.pid_exists(pid)
    assert site.work.results == {}


async def test_a_killed_agent_takes_its_engine_along(site: Site, tmp_path: Path) -> None:
    async with running_agent(site, tmp_path) as agent:
        await agent.until_state(InstanceState.READY)
        engine = agent.engines()[0]
        agent.process.kill()
        await asyncio.to_thread(engine.wait, 5)


async def test_a_request_that_kills_engines_is_found_among_its_neighbours(
    site: Site, tmp_path: Path
) -> None:
    crash = ("--faults", json.dumps({"crash_marker": "POISON"}), "--itl-ms", "20")
    poison = {**CHAT, "messages": [{"role": "user", "content": "POISON"}]}
    await site.add_batch([CHAT] * 20 + [poison] + [CHAT] * 20)
    for life in range(3):
        async with running_agent(site, tmp_path, *crash) as agent:
            assert await agent.ended() == 1
        await site.change(_reborn)
        assert (await site.attempts())[20] == life + 1
    attempts = await site.attempts()
    neighbours = {line: count for line, count in attempts.items() if line != 20}
    assert max(neighbours.values(), default=0) < 3
    assert len(site.work.results) + len(neighbours) == 40


def _reborn(instance: Instance) -> tuple[Instance, Transition]:
    """Stand for a replacement of the instance, under the same id."""
    changed, line = instance.on(InstanceEvent.STOP, at=NOW, reason="again")
    return replace(changed, state=InstanceState.ALLOCATED, ending=None), line


async def test_the_gateway_may_go_away_and_come_back(site: Site, tmp_path: Path) -> None:
    folder = tmp_path / "second"
    folder.mkdir()
    await site.add_batch([{**LONG, "max_tokens": 20}] * 60)
    async with running_agent(site, folder, *SLOW) as agent:
        async with gateway(site, folder / "gateways", free_port()):
            await agent.until_done(16)
        before = len(site.work.results)
        async with agent.engine() as engine:
            status, _ = await _post(engine, CHAT)
            assert status == 200
        await asyncio.sleep(1)
        assert len(site.work.results) == before
        async with gateway(site, folder / "gateways", free_port()):
            await agent.until_done(60)
    assert all(len(outcomes) == 1 for outcomes in site.work.results.values())
    assert (await site.batch()).counts.completed == 60


async def test_an_orphan_ends_itself(site: Site, tmp_path: Path) -> None:
    folder = tmp_path / "second"
    folder.mkdir()
    async with running_agent(site, folder, settings={"orphan_s": 2.0, "last_word_s": 0.5}) as agent:
        assert await agent.ended() == 0
    assert "No gateway has answered" in agent.agent_log


async def _leased(site: Site, lines: int) -> bool:
    counts = (await site.batch()).counts
    return counts.leased >= lines


async def _post(
    engine: aiohttp.ClientSession, body: dict[str, object], route: str = "/v1/chat/completions"
) -> tuple[int, dict[str, Any]]:
    async with engine.post(route, json=body) as response:
        return response.status, await response.json()
