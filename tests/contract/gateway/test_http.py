"""HTTP as the gateway reads it: framing, smuggling, pipelining, limits, odd clients."""

from __future__ import annotations

import asyncio
import getpass
import json
import re
import ssl
import time

import httpx
import pytest

from tests.contract.gateway.conftest import ANSWER, KEY, MODEL, chat, post, stream, token_event

HEAD = f"POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\nauthorization: Bearer {KEY}\r\n"
CLOSE = "connection: close\r\n"


def statuses(answer: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", answer)]


@pytest.mark.parametrize(
    "request_bytes",
    [
        (HEAD + "content-length: 2\r\ncontent-length: 3\r\n\r\n{}").encode(),
        (HEAD + "content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n").encode(),
        (HEAD + "transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n").encode(),
        (HEAD + "transfer-encoding: xchunked\r\n\r\n0\r\n\r\n").encode(),
        (HEAD + "transfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n").encode(),
        (HEAD + "transfer-encoding: chunked\r\n\r\n2\r\n{}garbage\r\n0\r\n\r\n").encode(),
        (HEAD + "content-length: -1\r\n\r\n").encode(),
        (HEAD + "content-length: 1_0\r\n\r\n").encode(),
        (HEAD + "content-length : 2\r\n\r\n{}").encode(),
        (HEAD + "bad header\r\n\r\n").encode(),
        (HEAD + "x: a\x00b\r\n\r\n").encode(),
        (HEAD.replace("\r\n", "\n") + "content-length: 0\n\n").encode(),
        b"NONSENSE\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
async def test_what_could_be_read_in_two_ways_is_refused(site, request_bytes):
    started = time.monotonic()
    answer = await site.send(request_bytes + post(chat()))
    assert statuses(answer) == [400]
    assert b"connection: close" in answer
    assert site.engines[0].seen == []
    assert time.monotonic() - started < 3


async def test_chunked_body_reaches_the_engine_whole(site):
    body = json.dumps(chat()).encode()
    chunks = b"".join(b"%x\r\n%b\r\n" % (1, body[at : at + 1]) for at in range(len(body)))
    request = (HEAD + CLOSE + "transfer-encoding: chunked\r\n\r\n").encode() + chunks
    assert statuses(await site.send(request + b"0\r\n\r\n")) == [200]
    (seen,) = site.engines[0].seen
    assert seen.body == body
    assert seen.headers["content-length"] == str(len(body))
    assert "transfer-encoding" not in seen.headers


OFFER = (
    "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\n"
)


async def test_an_offer_of_http_2_is_answered_as_ordinary_http(site):
    """Java's HTTP client sends it with every first request on plain HTTP."""
    first = post(chat(), headers=OFFER)
    models = f"GET /v1/models HTTP/1.1\r\nhost: g\r\nauthorization: Bearer {KEY}\r\n{OFFER}\r\n"
    chunked = (HEAD + OFFER + "transfer-encoding: chunked\r\n\r\n").encode() + b"".join(
        [b"%x\r\n%b\r\n" % (len(part), part) for part in (b'{"model":', b'"small"}')]
    )
    last = post(chat(), headers=OFFER.replace("Connection: ", "Connection: close, "))
    answer = await site.send(first + models.encode() + chunked + b"0\r\n\r\n" + last)
    assert statuses(answer) == [200, 200, 200, 200]
    assert [seen.body for seen in site.engines[0].seen] == [
        json.dumps(chat()).encode(),
        b'{"model":"small"}',
        json.dumps(chat()).encode(),
    ]
    for seen in site.engines[0].seen:
        assert seen.headers.keys().isdisjoint({"upgrade", "http2-settings", "connection"})


async def test_an_offer_of_http_2_in_single_bytes(site):
    data = post(chat(), headers=OFFER + "Expect: nothing\r\n")
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    for _ in range(2):
        for at in range(len(data)):
            writer.write(data[at : at + 1])
            await asyncio.sleep(0)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        assert head.startswith(b"HTTP/1.1 200 ")
        length = re.search(rb"content-length: (\d+)", head)
        assert json.loads(await reader.readexactly(int(length[1]))) == ANSWER
    writer.close()


async def test_very_many_offers_at_once_are_answered(site):
    request = f"GET /health HTTP/1.1\r\nhost: g\r\n{OFFER}\r\n".encode()
    last = request.replace(b"Connection: ", b"Connection: close, ")
    answer = await site.send(request * 2000 + last, timeout_s=20)
    assert statuses(answer) == [200] * 2001


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"CONNECT g:80 HTTP/1.1\r\nhost: g\r\n\r\n",
        (HEAD + OFFER + "content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n").encode(),
        (HEAD + OFFER + "content-length: 2\r\ncontent-length: 3\r\n\r\n{}").encode(),
    ],
)
async def test_an_offer_of_another_protocol_opens_no_way_around_the_framing(site, request_bytes):
    answer = await site.send(request_bytes + post(chat()))
    assert statuses(answer) == [400]
    assert site.engines[0].seen == []


async def test_pipelined_requests_are_answered_in_order(site):
    site.engines[0].replies = [stream(0.1, token_event("first"), b"data: [DONE]\n\n")]
    data = (
        post(chat(stream=True))
        + b"GET /health HTTP/1.1\r\nhost: g\r\n\r\n"
        + post(chat())
        + post({"model": "nope"}, headers=CLOSE)
    )
    answer = await site.send(data)
    assert statuses(answer) == [200, 200, 200, 404]
    order = [b"first", b'{"status":"ok"}', b'"hi"', b"model_not_found"]
    positions = [answer.index(word) for word in order]
    assert positions == sorted(positions)


async def test_request_in_single_bytes(site):
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    for byte in post(chat(), headers=CLOSE):
        writer.write(bytes((byte,)))
        await asyncio.sleep(0)
    assert statuses(await reader.read()) == [200]
    writer.close()


async def test_expect_100_is_answered_before_the_body_is_sent(site):
    body = json.dumps(chat()).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    await asyncio.sleep(0)
    assert statuses(await site.send(post(chat(), headers=CLOSE))) == [200]
    writer.write(
        (HEAD + CLOSE + f"expect: 100-continue\r\ncontent-length: {len(body)}\r\n\r\n").encode()
    )
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(body)
    assert statuses(await reader.read()) == [200]
    writer.close()


async def test_expect_100_of_a_stranger_is_refused_at_once(site):
    head = (HEAD + "expect: 100-continue\r\ncontent-length: 1000000\r\n\r\n").replace(KEY, "")
    assert statuses(await site.send(head.encode())) == [401]


async def test_http_1_0_gets_no_chunks(site):
    site.engines[0].replies = [stream(token_event("a"), b"data: [DONE]\n\n")]
    request = post(chat(stream=True)).replace(b"HTTP/1.1", b"HTTP/1.0")
    answer = await site.send(request)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert b"connection: close" in head
    assert body == token_event("a") + b"data: [DONE]\n\n"


async def test_large_head_is_refused(start_site):
    site = await start_site(max_header_bytes=4096)
    assert statuses(await site.send(post(chat(), headers=f"x: {'a' * 5000}\r\n"))) == [431]
    # a head that never ends is noticed while it grows
    assert statuses(await site.send(HEAD.encode() + b"x: " + b"a" * 200_000)) == [431]


@pytest.mark.parametrize(
    "framing", ["content-length: 300000\r\n", "transfer-encoding: chunked\r\n"]
)
async def test_large_body_is_refused_and_the_client_can_read_why(start_site, framing):
    site = await start_site(max_body_bytes=100_000)
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    writer.write((HEAD + framing + "\r\n").encode())
    piece = b"x" * 10_000
    for _ in range(30):
        writer.write(b"2710\r\n" + piece + b"\r\n" if "chunked" in framing else piece)
        await asyncio.sleep(0.001)
    answer = await reader.read()
    writer.close()
    assert statuses(answer) == [413]
    assert b"request_too_large" in answer


async def test_slow_request_is_given_up(start_site):
    site = await start_site(request_timeout_s=1.5)
    assert statuses(await site.send(HEAD.encode())) == [408]
    assert statuses(await site.send((HEAD + "content-length: 5\r\n\r\n{").encode())) == [408]


async def test_idle_connection_is_closed(start_site):
    site = await start_site(keep_alive_s=0.5)
    started = time.monotonic()
    assert statuses(await site.send(post(chat()))) == [200]
    assert time.monotonic() - started < 4


async def test_other_routes_go_to_the_app_on_the_same_connection(site):
    async with httpx.AsyncClient(
        base_url=site.server.url, headers={"authorization": f"Bearer {KEY}"}
    ) as client:
        assert (await client.get("/health")).json() == {"status": "ok"}
        answer = await client.post("/v1/chat/completions", json=chat())
        assert answer.json() == ANSWER
        models = (await client.get("/v1/models")).json()["data"]
        assert {model["id"]: model["state"] for model in models} == {MODEL: "ready", "cold": "cold"}
        assert (await client.get("/v1/models/nope")).status_code == 404
        assert (await client.get("/v1/chat/completions")).status_code == 405
        missing = await client.get("/nowhere")
        assert missing.status_code == 404
        assert missing.json()["error"]["type"] == "not_found_error"
        metrics = (await client.get("/metrics")).text
        assert (
            'hpcserve_requests_total{model="small",outcome="answered",route="chat"} 1.0' in metrics
        )
    async with httpx.AsyncClient(base_url=site.server.url) as client:
        assert (await client.get("/v1/models")).status_code == 401


async def test_unix_socket_needs_no_key_and_knows_who_asks(site, tmp_path):
    transport = httpx.AsyncHTTPTransport(uds=str(tmp_path / "gateway.sock"))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        assert (await client.post("/v1/chat/completions", json=chat())).status_code == 200
        assert (await client.get("/v1/models")).status_code == 200
    site.dispatch.access_log.flush()
    assert f" {getpass.getuser()} chat " in b"".join(site.access_lines).decode()


async def test_a_thousand_connections_at_once_wait_for_no_syn(site):
    async def connect() -> float:
        started = time.monotonic()
        _, writer = await asyncio.open_connection("127.0.0.1", site.port)
        took = time.monotonic() - started
        writer.close()
        return took

    times = await asyncio.gather(*(connect() for _ in range(400)))
    assert max(times) < 0.9


async def test_stream_adds_no_delayed_acknowledgement(site):
    """Nagle's algorithm with a delayed ACK costs 40 ms; a head and a chunk must not wait for it."""
    site.engines[0].default = stream(token_event("a"), 0.002, token_event("b"), b"data: [DONE]\n\n")
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    times = []
    for _ in range(10):
        started = time.monotonic()
        writer.write(post(chat(stream=True)))
        await reader.readuntil(b"0\r\n\r\n")
        times.append(time.monotonic() - started)
    writer.close()
    assert sorted(times)[5] < 0.030


async def test_address_is_written_for_the_agents_and_removed(start_site, tmp_path):
    site = await start_site()
    await asyncio.sleep(0.05)
    (path,) = (tmp_path / "gateways").glob("*.json")
    assert json.loads(path.read_text())["url"] == site.server.url


async def test_slow_reader_holds_the_engine_back(start_site):
    site = await start_site(write_buffer_bytes=16_384)
    event = token_event("x" * 4000)
    sent = 0

    async def flood(_, writer):
        nonlocal sent
        writer.transport.set_write_buffer_limits(high=16_384)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n")
        writer.write(b"transfer-encoding: chunked\r\n\r\n")
        for _ in range(20_000):
            writer.write(b"%x\r\n%b\r\n" % (len(event), event))
            await writer.drain()
            sent += len(event)

    site.engines[0].replies = [flood]
    _, writer = await asyncio.open_connection("127.0.0.1", site.port, limit=1024)
    writer.write(post(chat(stream=True)))
    await asyncio.sleep(1.0)
    before = sent
    await asyncio.sleep(0.3)
    assert sent == before, "the engine is held back"
    assert sent < 40_000_000
    writer.transport.abort()
    await site.until(lambda: not site.dispatch.lanes[MODEL].running, timeout_s=5)


async def test_client_that_takes_nothing_is_cut_off(start_site):
    site = await start_site(write_buffer_bytes=16_384, slow_reader_s=1.5)
    site.engines[0].replies = [stream(*[token_event("x" * 100_000)] * 200)]
    _, writer = await asyncio.open_connection("127.0.0.1", site.port, limit=1024)
    writer.write(post(chat(stream=True)))
    await asyncio.sleep(0.3)
    assert site.dispatch.lanes[MODEL].running == 1
    await site.until(lambda: not site.dispatch.lanes[MODEL].running, timeout_s=5)
    writer.close()


async def test_silent_engine_is_given_up(start_site):
    site = await start_site(engines=2, stall_timeout_s=1.5)
    site.engines[0].default = stream(30.0)
    site.engines[1].default = stream(token_event("a"), b"data: [DONE]\n\n")
    answers = await asyncio.gather(
        *(site.send(post(chat(stream=True), headers=CLOSE), timeout_s=8) for _ in range(2))
    )
    assert [statuses(answer) for answer in answers] == [[200], [200]]


async def test_tls_when_configured(start_site, tmp_path):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    made = await asyncio.create_subprocess_exec(
        *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *subject),
        *("-keyout", str(key), "-out", str(cert)),
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert await made.wait() == 0
    site = await start_site(tls_cert=str(cert), tls_key=str(key))
    site.engines[0].default = stream(token_event("a"), b"data: [DONE]\n\n")
    assert site.server.url.startswith("https://")
    trusted = ssl.create_default_context(cafile=str(cert))
    async with httpx.AsyncClient(
        base_url=site.server.url, verify=trusted, headers={"authorization": f"Bearer {KEY}"}
    ) as client:
        assert (await client.get("/health")).json() == {"status": "ok"}
        answer = await client.post("/v1/chat/completions", json=chat(stream=True))
        assert answer.text.endswith("data: [DONE]\n\n")
