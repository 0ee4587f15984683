"""Many streams at once, with all that clients and instances do: nothing stuck, nothing lost."""

from __future__ import annotations

import asyncio
import json
import random
import re
import signal

from tests.contract.gateway.conftest import MODEL, post
from tests.contract.gateway.test_failover import fake_engine, put_instances

TOKENS = 40
STREAMS = 400


async def read_stream(port: int, kind: str) -> str:
    """Run one stream as a client of this *kind*; return how it ended for that client."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=4096)
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "go on"}],
        "stream": True,
        "max_tokens": TOKENS,
        "temperature": 0,
        "ignore_eos": True,
    }
    writer.write(post(body, headers="connection: close\r\n"))
    got = b""
    try:
        async with asyncio.timeout(25):
            while piece := await reader.read(1024):
                got += piece
                if kind == "leaves" and len(got) > 1500:
                    return "left"
                if kind == "slow":
                    await asyncio.sleep(0.02)
    except ConnectionError:
        return "cut"
    finally:
        writer.close()
    if b"data: [DONE]" in got:
        events = re.findall(rb"data: (\{.*?\})\n\n", got)
        texts = [
            choice["delta"].get("content") or ""
            for event in events
            for choice in json.loads(event)["choices"]
        ]
        return "complete" if sum(bool(text) for text in texts) == TOKENS else "short"
    return f"failed: {got[-300:].decode()}" if b'"error"' in got else "silent"


async def test_every_stream_is_complete_or_cleanly_failed_and_counted(start_site):
    site = await start_site(engines=0)
    choice = random.Random(7)  # a fixed mix of clients
    with (
        fake_engine(0, "--itl-ms", "30", "--max-num-seqs", "512") as doomed,
        fake_engine(1, "--itl-ms", "30", "--max-num-seqs", "512") as survivor,
    ):
        await put_instances(site, {0: doomed[0], 1: survivor[0]})
        kinds = choice.choices(["plain", "slow", "leaves"], [6, 2, 2], k=STREAMS)
        streams = [asyncio.create_task(read_stream(site.port, kind)) for kind in kinds]
        lane = site.dispatch.lanes[MODEL]
        await site.until(lambda: lane.running > STREAMS / 2, timeout_s=10)
        await asyncio.sleep(0.3)
        doomed[1].send_signal(signal.SIGKILL)
        ends = await asyncio.gather(*streams)

    expected = {"plain": {"complete"}, "slow": {"complete"}, "leaves": {"left"}}
    wrong = [(k, e) for k, e in zip(kinds, ends, strict=True) if e not in expected[k]]
    assert wrong == []
    assert sum(site.dispatch.metrics.resumed.values()) > 20
    await site.until(lambda: lane.running == 0)
    assert all(pool.requests == 0 and pool.tokens == 0 for pool in lane.pools)
    assert len(lane.queue) == 0
    counted = sum(site.dispatch.metrics.requests.values())
    assert counted == STREAMS


async def test_noise_is_answered_or_closed_and_the_next_client_served(start_site):
    site = await start_site(request_timeout_s=1.5, max_header_bytes=8192)
    noise = random.Random(11)
    request = post({"model": MODEL, "messages": []})

    def damaged() -> bytes:
        data = bytearray(request)
        for _ in range(noise.randint(1, 6)):
            at = noise.randrange(len(data))
            what = noise.choice([b"", b"\r\n", b"\x00", b"\n", b": ", noise.randbytes(3)])
            data[at : at + noise.randint(0, 3)] = what
        return bytes(data)

    answers = await asyncio.gather(*(site.send(damaged(), timeout_s=6) for _ in range(150)))
    statuses = {int(s) for answer in answers for s in re.findall(rb"HTTP/1\.1 (\d+) ", answer)}
    assert statuses <= {200, 400, 401, 404, 405, 408, 413, 431}, statuses
    assert b" 200 " in (await site.send(request, timeout_s=1)).splitlines()[0]
