"""A whole gateway in the test's loop, in front of engines whose every byte the test decides."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import uvloop

from hpcserve.config.tree import Gateway as GatewaySettings
from hpcserve.domain.credentials import engine_key
from hpcserve.domain.instance import Instance, InstanceState, Role
from hpcserve.domain.key import ApiKey, digest
from hpcserve.domain.lifecycle import Subject, Transition
from hpcserve.domain.model import Model
from hpcserve.gateway.access_log import AccessLog
from hpcserve.gateway.dispatch import Dispatch
from hpcserve.gateway.server import GatewayServer
from hpcserve.ledger.memory.ledger import MemoryLedger

KEY = "hps-test"
SECRET = b"s" * 32
MODEL = "small"


class SystemClock:
    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic_s(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@dataclass
class Seen:
    """One request as it reached an engine."""

    head: str
    headers: dict[str, str]
    body: bytes


Reply = Callable[[Seen, asyncio.StreamWriter], Awaitable[None]]


def whole(
    content: object, status: int = 200, headers: str = "content-type: application/json\r\n"
) -> Reply:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()

    async def reply(_: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(
            f"HTTP/1.1 {status} X\r\n{headers}content-length: {len(body)}\r\n\r\n".encode() + body
        )

    return reply


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


SSE_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


def token_event(text: str) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    return b"data: " + json.dumps({"id": "c", "choices": [choice]}).encode() + b"\n\n"


USAGE_EVENT = b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'
DONE = b"data: [DONE]\n\n"


def stream(*pieces: bytes | float, cut: bool = False, end: bool = True) -> Reply:
    """Return a reply of chunks; a number is a pause; *cut* closes in the middle of the body."""

    async def reply(_: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(SSE_HEAD)
        for piece in pieces:
            if isinstance(piece, bytes):
                writer.write(chunk(piece))
            else:
                await asyncio.sleep(piece)
        if cut:
            writer.close()
        elif end:
            writer.write(b"0\r\n\r\n")

    return reply


ANSWER = {
    "id": "c",
    "object": "chat.completion",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2},
}


@dataclass
class Engine:
    """A scripted engine: replies in order, then the default one."""

    instance: Instance
    replies: list[Reply] = field(default_factory=list)
    default: Reply = field(default_factory=lambda: whole(ANSWER))
    seen: list[Seen] = field(default_factory=list)
    #: connections closed by the other side while a reply was under way
    left: int = 0
    open_connections: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open_connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                lines = head.split("\r\n")
                headers = {
                    name.lower(): value.strip()
                    for name, _, value in (line.partition(":") for line in lines[1:] if line)
                }
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                seen = Seen(lines[0], headers, body)
                self.seen.append(seen)
                reply = self.replies.pop(0) if self.replies else self.default
                answering = asyncio.ensure_future(reply(seen, writer))
                gone = asyncio.ensure_future(_until_eof(reader))
                await asyncio.wait({answering, gone}, return_when=asyncio.FIRST_COMPLETED)
                if gone.done() and not answering.done():
                    self.left += 1
                    answering.cancel()
                    return
                gone.cancel()
                await asyncio.gather(gone, return_exceptions=True)
                await answering
                if writer.is_closing():
                    return
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            return
        finally:
            self.open_connections -= 1
            writer.close()


async def _until_eof(reader: asyncio.StreamReader) -> None:
    # StreamReader has no way to wait for EOF without taking bytes; engines get one request a time
    while not reader.at_eof():
        if reader._buffer:  # type: ignore[attr-defined]
            await asyncio.sleep(3600)
        await asyncio.sleep(0.005)


@dataclass
class Site:
    """A gateway, its ledger and its engines."""

    ledger: MemoryLedger
    dispatch: Dispatch
    server: GatewayServer
    engines: list[Engine]
    access_lines: list[bytes]
    woken: list[float]

    @property
    def port(self) -> int:
        return int(self.server.url.rsplit(":", 1)[1])

    async def set_state(self, instance: Instance, state: InstanceState) -> None:
        def work(tx):
            current = tx.instances.get(instance.id)
            tx.instances.save(replace(current, state=state))

        await self.ledger.transact(work)
        await self.dispatch.refresh()

    async def until(self, met: Callable[[], bool], *, timeout_s: float = 3.0) -> None:
        """Wait for something that nobody announces."""
        async with asyncio.timeout(timeout_s):
            while not met():  # noqa: ASYNC110 - the test looks from outside
                await asyncio.sleep(0.005)

    async def send(self, data: bytes, *, timeout_s: float = 5.0) -> bytes:
        """Send raw bytes on a new connection; return all that comes, up to *timeout_s*."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(data)
        got = b""
        try:
            async with asyncio.timeout(timeout_s):
                while piece := await reader.read(65536):
                    got += piece
        except TimeoutError:
            pass
        finally:
            writer.close()
        return got


def instance(number: int, port: int, **changes: object) -> Instance:
    now = datetime.now(UTC)
    made = Instance(
        id=f"inst-{number}",
        token=f"t{number}",
        model=MODEL,
        role=Role.MIXED,
        state=InstanceState.READY,
        partition=None,
        gpus=1,
        time_limit_s=3600,
        reason="for the test",
        requested_at=now + timedelta(microseconds=number),
        host="127.0.0.1",
        port=port,
    )
    return replace(made, **changes)


def post(
    body: object, *, path: str = "/v1/chat/completions", headers: str = "", key: str = KEY
) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return (
        f"POST {path} HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\n{headers}content-length: {len(data)}\r\n\r\n"
    ).encode() + data


def chat(**fields: object) -> dict[str, object]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], **fields}


StartSite = Callable[..., Awaitable[Site]]


@asynccontextmanager
async def running_site(
    tmp_path: Path, *, engines: int = 1, **settings: object
) -> AsyncIterator[Site]:
    clock = SystemClock()
    ledger = MemoryLedger()
    made = []
    async with AsyncExitStack() as stack:
        for number in range(engines):
            engine = Engine(instance(number, 1))
            server = await asyncio.start_server(engine.serve, "127.0.0.1", 0)
            stack.push_async_callback(_close, server)
            engine.instance = instance(number, server.sockets[0].getsockname()[1])
            made.append(engine)

        def fill(tx):
            for engine in made:
                tx.instances.add(
                    engine.instance,
                    Transition(
                        subject=Subject.INSTANCE,
                        subject_id=engine.instance.id,
                        at=clock.now(),
                        event="ready",
                        from_state=None,
                        to_state="ready",
                        reason="test",
                        detail={},
                    ),
                )
            tx.keys.add(
                ApiKey(
                    id="key-1",
                    digest=digest(KEY),
                    prefix="hps-",
                    owner="ada",
                    name="",
                    created_at=clock.now(),
                    expires_at=None,
                    revoked_at=None,
                )
            )

        await ledger.transact(fill)
        lines: list[bytes] = []
        woken: list[float] = []
        config = GatewaySettings(port=0, **{"stop_s": 1.0, **settings})
        dispatch = Dispatch(
            gateway_id="gw-1",
            settings=config,
            catalog=lambda: {
                MODEL: Model(name=MODEL, weights="/w"),
                "cold": Model(name="cold", weights="/w"),
            },
            secret=SECRET,
            ledger=ledger,
            clock=clock,
            access_log=AccessLog(lines.append),
            wake=lambda: woken.append(clock.monotonic_s()),
        )
        server = GatewayServer(
            dispatch,
            settings=config,
            socket_path=tmp_path / "gateway.sock",
            gateways_dir=tmp_path / "gateways",
            admin_uids=frozenset(),
        )
        serving = asyncio.create_task(server.serve())
        try:
            async with asyncio.timeout(10):
                while not server.started:
                    if serving.done():
                        await serving
                    await asyncio.sleep(0.005)
            yield Site(ledger, dispatch, server, made, lines, woken)
        finally:
            server.stop()
            await serving


async def _close(server: asyncio.Server) -> None:
    server.close()


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run on the loop that serves in production; its transports are no subclasses of asyncio's."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
async def start_site(tmp_path: Path) -> AsyncIterator[StartSite]:
    async with AsyncExitStack() as stack:

        async def start(**settings: object) -> Site:
            return await stack.enter_async_context(running_site(tmp_path, **settings))

        yield start


@pytest.fixture
async def site(start_site: StartSite) -> Site:
    return await start_site()


__all__ = ["SECRET", "engine_key"]
