"""Streams that outlive their instance, and requests that wait for one."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import openai
import pytest

from hpcserve.domain.credentials import engine_key
from hpcserve.domain.instance import InstanceState
from hpcserve.domain.lifecycle import Subject, Transition
from tests.contract.gateway.conftest import (
    DONE,
    KEY,
    MODEL,
    SECRET,
    USAGE_EVENT,
    chat,
    instance,
    post,
    stream,
    token_event,
)

MESSAGES = [{"role": "user", "content": "count on"}]


def chat_event(text: str, ids: list[int], finish: str | None = None, **more: object) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish, "token_ids": ids}
    content = {"id": "chat-1", "created": 7, "model": MODEL, "choices": [choice], **more}
    return b"data: " + json.dumps(content, separators=(",", ":")).encode() + b"\n\n"


FIRST = chat_event("", [], prompt_token_ids=[1, 2, 3])


def completion_event(text: str, ids: list[int], finish: str | None = None) -> bytes:
    choice = {"index": 0, "text": text, "finish_reason": finish, "token_ids": ids}
    return b"data: " + json.dumps({"id": "cmpl-9", "choices": [choice]}).encode() + b"\n\n"


REST_USAGE = (
    b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7}}\n\n'
)


def client(site, **options: object) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=f"{site.server.url}/v1", api_key=KEY, max_retries=0, **options
    )


async def ask(site, **fields: object):
    async with client(site) as openai_client:
        chunks = await openai_client.chat.completions.create(
            model=MODEL, messages=MESSAGES, stream=True, **fields
        )
        return [chunk async for chunk in chunks]


@pytest.mark.parametrize("how", ["cut", "error", "malformed", "no done"])
async def test_broken_stream_goes_on_elsewhere_as_one(start_site, how):
    site = await start_site(engines=2)
    begun = [FIRST, chat_event("one", [11]), chat_event(" two", [12])]
    ends = {
        "cut": stream(*begun, 0.02, cut=True),
        "error": stream(*begun, 0.02, b'data: {"error":{"message":"EngineCore"}}\n\n', DONE),
        "malformed": stream(*begun, 0.02, b"data: {oops\n\n"),
        "no done": stream(*begun),
    }
    rest = stream(
        completion_event(" three", [13]), completion_event("", [14], "stop"), REST_USAGE, DONE
    )
    for engine in site.engines:
        engine.default = rest
    first = site.dispatch.choose(site.dispatch.lanes[MODEL], 1, ())
    other = next(e for e in site.engines if e.instance.id != first.instance_id)
    # the next request goes to the other one of two idle instances
    other.replies = [ends[how]]

    chunks = await ask(site, max_tokens=20, stream_options={"include_usage": True})

    assert [c.choices[0].delta.content for c in chunks[:-1]] == ["", "one", " two", " three", ""]
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert {(c.id, c.created, c.model) for c in chunks} == {("chat-1", 7, MODEL)}
    assert chunks[-1].usage.model_dump(exclude_none=True) == {
        "prompt_tokens": 3,
        "completion_tokens": 4,
        "total_tokens": 7,
    }
    survivor = next(e for e in site.engines if e is not other)
    seen = survivor.seen[-1]
    assert seen.head.startswith("POST /v1/completions")
    body = json.loads(seen.body)
    assert body["prompt"] == [1, 2, 3, 11, 12]
    assert body["max_tokens"] == 18
    assert sum(site.dispatch.metrics.resumed.values()) == 1
    assert all("token_ids" not in str(c.choices) for c in chunks)


@pytest.mark.parametrize(
    "fields",
    [
        {"seed": 1},
        {"stop": ["x"]},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"n": 2},
        {"frequency_penalty": 0.5},
    ],
)
async def test_what_cannot_be_continued_faithfully_ends_with_an_error(start_site, fields):
    site = await start_site(engines=2)
    for engine in site.engines:
        engine.default = stream(token_event("one"), 0.02, cut=True)
    with pytest.raises(openai.APIError, match="cannot be continued elsewhere"):
        await ask(site, **fields)


async def test_broken_stream_waits_for_a_successor(start_site):
    site = await start_site(engines=2, comment_s=0.5)
    first, second = site.engines
    await site.set_state(second.instance, InstanceState.LOADING)
    first.replies = [stream(FIRST, chat_event("one", [11]), 0.02, cut=True)]
    first.default = stream(cut=True)
    second.default = stream(completion_event(" two", [12], "stop"), REST_USAGE, DONE)
    asking = asyncio.create_task(ask(site))
    await site.until(lambda: bool(first.seen))
    await site.set_state(first.instance, InstanceState.STOPPING)
    await asyncio.sleep(0.2)
    assert not asking.done()
    await site.set_state(second.instance, InstanceState.READY)
    chunks = await asking
    assert "".join(c.choices[0].delta.content for c in chunks) == "one two"


async def test_all_tokens_sent_but_not_the_end(start_site):
    site = await start_site(engines=2)
    for engine in site.engines:
        engine.default = stream(
            FIRST, chat_event("one", [11]), chat_event(" two", [12], "length"), 0.02, cut=True
        )
    chunks = await ask(site, max_tokens=2, stream_options={"include_usage": True})
    assert chunks[-1].usage.completion_tokens == 2
    assert sum(len(engine.seen) for engine in site.engines) == 1


@contextmanager
def fake_engine(number: int, *options: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Run hpcserve's stand-in engine as a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "hpcserve.engines.fake"),
            *("--served-model-name", MODEL, "--port", str(port), *options),
        ],
        env={"HPCSERVE_ENGINE_KEY": engine_key(SECRET, f"inst-{number}")},
    )
    try:
        _until_it_listens(port)
        yield port, process
    finally:
        process.kill()
        process.wait()


def _until_it_listens(port: int) -> None:
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    pytest.fail(f"nothing listens on port {port}")


async def test_killed_engine_is_not_noticed_by_the_client(start_site):
    site = await start_site(engines=0)
    with fake_engine(0, "--itl-ms", "5") as one, fake_engine(1, "--itl-ms", "5") as two:
        engines = {f"inst-{n}": each for n, each in enumerate((one, two))}
        await put_instances(site, {n: port for n, (port, _) in enumerate((one, two))})

        async def text(kill_after: int | None) -> tuple[str, int]:
            got, usage, killed = "", 0, False
            async with client(site) as openai_client:
                chunks = await openai_client.chat.completions.create(
                    model=MODEL,
                    messages=MESSAGES,
                    stream=True,
                    max_tokens=120,
                    temperature=0,
                    stream_options={"include_usage": True},
                )
                count = 0
                async for chunk in chunks:
                    count += 1
                    if chunk.usage:
                        usage = chunk.usage.completion_tokens
                    if chunk.choices:
                        got += chunk.choices[0].delta.content or ""
                    if kill_after is not None and count > kill_after and not killed:
                        killed = True
                        pools = site.dispatch.lanes[MODEL].pools
                        busy = next(pool for pool in pools if pool.requests)
                        engines[busy.instance_id][1].send_signal(signal.SIGKILL)
            return got, usage

        undisturbed = await text(None)
        assert undisturbed[1] > 30
        assert await text(20) == undisturbed
        assert sum(site.dispatch.metrics.resumed.values()) == 1


async def put_instances(site, ports: dict[int, int]) -> None:
    def fill(tx):
        for number, port in ports.items():
            made = instance(number, port)
            tx.instances.add(
                made,
                Transition(
                    subject=Subject.INSTANCE,
                    subject_id=made.id,
                    at=made.requested_at,
                    event="healthy",
                    from_state=None,
                    to_state="ready",
                    reason="test",
                    detail={},
                ),
            )

    await site.ledger.transact(fill)
    await site.dispatch.refresh()


# waiting


async def test_cold_model_is_waited_for_with_comments(start_site):
    site = await start_site(comment_s=0.9)
    engine = site.engines[0]
    await site.set_state(engine.instance, InstanceState.LOADING)
    engine.default = stream(token_event("a"), USAGE_EVENT, DONE)
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    writer.write(post(chat(stream=True), path="/v1/chat/completions?wait=30"))
    assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
    assert b": small is loading" in await reader.readuntil(b"\n\n\r\n")
    async with asyncio.timeout(4):
        assert b": waiting" in await reader.readuntil(b"\n\n\r\n")
    await site.set_state(engine.instance, InstanceState.READY)
    rest = await reader.readuntil(b"0\r\n\r\n")
    assert token_event("a") in rest
    assert b"[DONE]" in rest
    writer.close()
    assert engine.seen[0].head == "POST /v1/chat/completions HTTP/1.1"


async def test_wait_that_is_too_short_ends_with_the_reason(start_site):
    site = await start_site()
    await site.set_state(site.engines[0].instance, InstanceState.LOADING)
    answer = await site.send(post(chat(), headers="hpcserve-wait: 1\r\nconnection: close\r\n"))
    assert b"503" in answer.splitlines()[0]
    assert b"model_starting" in answer


@pytest.mark.parametrize("wait", ["x", "-1", "nan", "inf"])
async def test_wait_must_be_a_number(site, wait):
    answer = await site.send(post(chat(), path=f"/v1/chat/completions?wait={wait}"))
    assert b" 400 " in answer.splitlines()[0]


async def test_full_instances_make_a_queue_and_a_full_queue_a_429(start_site):
    site = await start_site(queue_max=1)
    lane = site.dispatch.lanes[MODEL]
    lane.view = replace(lane.view, seats=(replace(lane.view.seats[0], slots=1),))
    site.dispatch._apply = lambda snapshot: None
    engine = site.engines[0]
    engine.default = stream(token_event("a"), 0.3, DONE)
    close = "connection: close\r\n"
    sending = []
    for _ in range(3):
        sending.append(asyncio.create_task(site.send(post(chat(stream=True), headers=close))))
        await asyncio.sleep(0.03)
    answers = await asyncio.gather(*sending)
    assert [answer.split(b" ")[1] for answer in answers] == [b"200", b"200", b"429"]
    assert b"retry-after" in answers[2]
    assert lane.running == 0
    assert len(lane.queue) == 0


async def test_instance_that_keeps_failing_rests_but_never_the_last(start_site):
    site = await start_site(engines=2, breaker_faults=2, breaker_rest_s=60.0)
    bad, good = site.engines
    bad.default = stream(cut=True)
    close = "connection: close\r\n"
    for _ in range(12):
        assert b"200" in (await site.send(post(chat(), headers=close))).splitlines()[0]
    assert len(bad.seen) == 2
    await site.set_state(good.instance, InstanceState.DRAINING)
    bad.default = good.default
    assert b"200" in (await site.send(post(chat(), headers=close))).splitlines()[0]
