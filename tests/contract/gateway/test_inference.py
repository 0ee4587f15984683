"""The hot path: what reaches the engine, what comes back, and who may ask."""

from __future__ import annotations

import asyncio
import json

import openai
import pytest

from hpcserve.domain.instance import InstanceState
from tests.contract.gateway.conftest import (
    ANSWER,
    DONE,
    KEY,
    MODEL,
    SECRET,
    USAGE_EVENT,
    chat,
    engine_key,
    post,
    stream,
    token_event,
    whole,
)


def parsed(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in lines[1:])}
    return int(lines[0].split()[1]), headers, body


def dechunk(body: bytes) -> bytes:
    out = b""
    while body:
        size, _, rest = body.partition(b"\r\n")
        length = int(size, 16)
        if length == 0:
            break
        out += rest[:length]
        body = rest[length + 2 :]
    return out


CLOSE = "connection: close\r\n"


async def test_body_and_headers_reach_the_engine_untouched(site):
    body = b'{ "model":"small",  "messages":[], "unknown": {"a" : [1,2]} }'
    answer = await site.send(post(body, headers=CLOSE + "X-Custom: Value\r\n"))

    status, headers, content = parsed(answer)
    assert status == 200
    assert json.loads(content) == ANSWER
    assert headers["connection"] == "close"
    (seen,) = site.engines[0].seen
    assert seen.head == "POST /v1/chat/completions HTTP/1.1"
    assert seen.body == body
    assert seen.headers["x-custom"] == "Value"
    assert seen.headers["authorization"] == f"Bearer {engine_key(SECRET, 'inst-0')}"
    assert headers["x-request-id"] == seen.headers["x-request-id"]
    assert KEY not in str(seen.headers)


async def test_stream_is_relayed_and_its_hidden_usage_is_counted(site):
    site.engines[0].replies = [stream(token_event("a"), token_event("b"), USAGE_EVENT, DONE)]
    answer = await site.send(post(chat(stream=True), headers=CLOSE))

    status, headers, content = parsed(answer)
    assert status == 200
    assert headers["content-type"].startswith("text/event-stream")
    assert dechunk(content) == token_event("a") + token_event("b") + DONE
    sent = json.loads(site.engines[0].seen[0].body)
    assert sent == chat(stream=True, stream_options={"include_usage": True}, return_token_ids=True)
    assert site.dispatch.metrics.tokens == {(MODEL, "prompt"): 3, (MODEL, "completion"): 2}


async def test_usage_that_the_client_asked_for_is_relayed(site):
    site.engines[0].replies = [stream(token_event("a"), USAGE_EVENT, DONE)]
    body = chat(stream=True, stream_options={"include_usage": True})
    answer = await site.send(post(body, headers=CLOSE))

    assert dechunk(parsed(answer)[2]) == token_event("a") + USAGE_EVENT + DONE


async def test_events_split_anywhere_come_out_whole(site):
    data = token_event("a") + token_event("b") + USAGE_EVENT + DONE
    pieces: list[bytes | float] = []
    for at in range(0, len(data), 7):
        pieces += [data[at : at + 7], 0.001]
    site.engines[0].replies = [stream(*pieces)]
    answer = await site.send(post(chat(stream=True), headers=CLOSE))

    assert dechunk(parsed(answer)[2]) == token_event("a") + token_event("b") + DONE


@pytest.mark.parametrize(
    ("key", "expected"), [("hps-wrong", 401), (KEY, 200)], ids=["wrong key", "right key"]
)
async def test_key_decides(site, key, expected):
    for _ in range(2):
        status, _, body = parsed(await site.send(post(chat(), key=key, headers=CLOSE)))
        assert status == expected
        if expected == 401:
            assert json.loads(body)["error"]["code"] == "invalid_api_key"


async def test_revoked_key_is_refused_after_the_cache_time(start_site):
    site = await start_site(key_cache_s=0.1)
    assert parsed(await site.send(post(chat(), headers=CLOSE)))[0] == 200

    await site.ledger.transact(lambda tx: tx.keys.revoke("key-1", site.dispatch.clock.now()))
    await asyncio.sleep(0.4)
    assert parsed(await site.send(post(chat(), headers=CLOSE)))[0] == 401


async def test_unknown_model_lists_the_known_ones(site):
    status, _, body = parsed(await site.send(post({"model": "nope"}, headers=CLOSE)))
    error = json.loads(body)["error"]
    assert status == 404
    assert error["code"] == "model_not_found"
    assert "cold, small" in error["message"]


async def test_cold_model_says_how_it_stands_and_is_asked_for(start_site):
    site = await start_site(demand_s=0.02)
    status, headers, body = parsed(await site.send(post({"model": "cold"}, headers=CLOSE)))
    error = json.loads(body)["error"]
    assert status == 503
    assert error["code"] == "model_starting"
    assert error["state"] == "cold"
    assert 1 <= int(headers["retry-after"]) <= 120
    assert headers["x-should-retry"] == "true"
    await site.until(lambda: site.woken)
    (demand,) = await site.ledger.transact(
        lambda tx: tx.demand.read(site.dispatch.clock.now().replace(year=2000))
    )
    assert demand.model == "cold"


async def test_drained_instance_gets_nothing_more(start_site):
    site = await start_site(engines=2)
    await site.set_state(site.engines[0].instance, InstanceState.DRAINING)
    for _ in range(4):
        assert parsed(await site.send(post(chat(), headers=CLOSE)))[0] == 200
    assert len(site.engines[0].seen) == 0
    assert len(site.engines[1].seen) == 4


@pytest.mark.parametrize(
    "fault",
    [
        whole({"error": {"message": "boom"}}, status=500),
        whole({"error": {"message": "bad key"}}, status=401),
        whole({"error": {"message": "busy"}}, status=503),
        stream(b'data: {"error":{"message":"EngineCore encountered an issue"}}\n\n', DONE),
        stream(b"data: nonsense\n\n"),
        stream(cut=True),
        stream(),
    ],
    ids=["500", "401", "503", "error event", "malformed", "cut", "no done"],
)
async def test_fault_before_the_first_byte_goes_to_another_instance(start_site, fault):
    site = await start_site(engines=2)
    for engine in site.engines:
        engine.default = stream(token_event("a"), DONE)
        engine.replies = [fault]
    # whichever comes first fails, and so does the other's first: both faults, then none
    site.engines[1].replies = []
    statuses = []
    for _ in range(2):
        answer = await site.send(post(chat(stream=True), headers=CLOSE))
        statuses.append(parsed(answer)[0])
        assert dechunk(parsed(answer)[2]) == token_event("a") + DONE
    assert statuses == [200, 200]
    assert sum(site.dispatch.metrics.retries.values()) == 1


async def test_engine_that_is_gone_is_a_clear_502_with_one_instance(start_site):
    site = await start_site()
    site.engines[0].default = stream(cut=True)
    status, headers, body = parsed(await site.send(post(chat(), headers=CLOSE)))
    assert status == 502
    assert json.loads(body)["error"]["code"] == "engine_failed"
    assert headers["x-should-retry"] == "true"


async def test_stream_that_breaks_after_the_first_byte_says_so_and_has_no_end(site):
    site.engines[0].replies = [stream(token_event("a"), 0.05, cut=True)]
    answer = await site.send(post(chat(stream=True)))
    _, _, body = parsed(answer)
    assert b'"error"' in body
    assert b"[DONE]" not in body
    assert not body.endswith(b"0\r\n\r\n")


async def test_client_that_leaves_cancels_the_engine_at_once(site):
    site.engines[0].replies = [stream(token_event("a"), 30.0, DONE)]
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    writer.write(post(chat(stream=True)))
    await reader.readuntil(b"\n\n")
    writer.close()
    await site.until(lambda: site.engines[0].left)
    assert site.dispatch.lanes[MODEL].running == 0


async def test_openai_client_sees_models_answers_streams_and_errors(site):
    async with openai.AsyncOpenAI(
        base_url=f"{site.server.url}/v1", api_key=KEY, max_retries=0
    ) as client:
        models = [model.id async for model in client.models.list()]
        assert models == [MODEL, "cold"]
        messages = [{"role": "user", "content": "hello"}]
        answer = await client.chat.completions.create(model=MODEL, messages=messages)
        assert answer.choices[0].message.content == "hi"
        site.engines[0].replies = [stream(token_event("a"), 0.02, token_event("b"), DONE)]
        chunks = await client.chat.completions.create(model=MODEL, messages=messages, stream=True)
        assert [c.choices[0].delta.content async for c in chunks] == ["a", "b"]
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model="nope", messages=messages)


async def test_stale_connection_is_no_fault(site):
    await site.send(post(chat(), headers=CLOSE))
    pool = site.dispatch.lanes[MODEL].pools[0]
    assert len(pool._idle) == 1

    async def hang_up(_, writer):
        writer.close()

    site.engines[0].replies = [hang_up]
    assert parsed(await site.send(post(chat(), headers=CLOSE)))[0] == 200
    assert not site.dispatch.metrics.retries


async def test_access_log_has_a_line_for_each_request(site):
    await site.send(post(chat(), headers=CLOSE))
    site.dispatch.access_log.flush()
    line = b"".join(site.access_lines).decode()
    assert " ada chat small inst-0 200 answered prompt=3 completion=2 " in line
