"""Connections to the engines: a pool for each instance, a Protocol for each connection.

A connection serves one exchange at a time. It goes back to the pool only when the answer ended
where its framing said, nothing followed, and the engine keeps the connection alive; in every other
case it is closed. The pool is last-in-first-out, so that few connections stay warm, and forgets
idle ones before the engine closes them.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import NamedTuple, Protocol, cast

import httptools
from typing_extensions import override

from hpcserve.config.tree import Gateway as GatewaySettings
from hpcserve.gateway.forwarding import Headers
from hpcserve.gateway.head_memo import HeadMemo
from hpcserve.ports.clock import Clock

#: the digits of a chunk's size and their line end, in chunks that are relayed unparsed
_SIZE_BYTES_MAX = 10


class AnswerHead(NamedTuple):
    """The head of an answer that one read brought whole."""

    memo: HeadMemo
    status: int
    headers: Headers


class Receiver(Protocol):
    """Who gets the engine's answer."""

    def answer_began(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Take status and headers, names in lower case."""
        ...

    def answer_came(self, body: bytes) -> None:
        """Take the part of the body that one read brought."""
        ...

    def chunk_came(self, chunk: bytes, begin: int) -> bool:
        """Take one whole chunk with its framing, the data from *begin* on; False: not this way."""
        ...

    def answer_whole(self, head: AnswerHead, body: bytes) -> None:
        """Take a complete answer, whose head is one that was parsed before."""
        ...

    def answer_ended(self) -> None:
        """Note that the answer is complete."""
        ...

    def answer_failed(self, why: str, message: str, *, reused: bool) -> None:
        """Note that no (more) answer comes; *reused*: an idle connection was gone, nothing else."""
        ...


class Upstream(asyncio.Protocol):
    """One connection to one engine."""

    __slots__ = (
        "_at_start",
        "_between_chunks",
        "_broken",
        "_complete",
        "_headers",
        "_keep_alive",
        "_parser",
        "_pieces",
        "_pool",
        "_receiver",
        "_served",
        "_transport",
        "idle_since_s",
    )

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._receiver: Receiver | None = None
        self._transport: asyncio.Transport
        self._parser = httptools.HttpResponseParser(self)
        self._headers: list[tuple[bytes, bytes]] = []
        self._pieces: list[bytes] = []
        self._complete = False
        self._keep_alive = False
        self._broken = False
        #: the parser has seen nothing of the answer
        self._at_start = False
        #: the parser expects the next chunk, and has seen nothing of it
        self._between_chunks = False
        #: answers completed on this connection
        self._served = 0
        self.idle_since_s = 0.0

    def send(self, receiver: Receiver, *parts: bytes | memoryview) -> None:
        """Send a whole request; its answer goes to *receiver*."""
        self._receiver = receiver
        self._complete = False
        self._at_start = True
        for part in parts:
            self._transport.write(part)

    def cancel(self) -> None:
        """Close now: the engine stops working on the request."""
        self._receiver = None
        self._transport.abort()

    @property
    def is_closing(self) -> bool:
        """Whether it takes no further request."""
        return self._transport.is_closing()

    def pause(self) -> None:
        """Take no more from the engine until `resume`."""
        self._transport.pause_reading()

    def resume(self) -> None:
        """Go on."""
        if not self._transport.is_closing():
            self._transport.resume_reading()

    # asyncio

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        # uvloop's transports are none of asyncio's classes
        self._transport = cast("asyncio.Transport", transport)

    @override
    def data_received(self, data: bytes) -> None:
        """Parse, then tell the receiver what the read brought.

        Two things need not be parsed when one read brings them whole, since the parser stands at
        the same point before and after: a chunk, and an answer with the head of another one.
        """
        receiver = self._receiver
        at_start, self._at_start = self._at_start, False
        if receiver is not None and (
            (self._between_chunks and _took_chunk(receiver, data))
            or (at_start and self._took_whole(receiver, data))
        ):
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._broken = True
        if self._between_chunks and not data.endswith(b"\r\n"):
            # the digits of the next size have begun
            self._between_chunks = False
        receiver = self._receiver
        if receiver is None:
            # nobody asked: never to be mistaken for the next answer
            self._transport.abort()
            self._pool.forget(self)
            return
        if self._pieces:
            body = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
            self._pieces.clear()
            receiver.answer_came(body)
        if self._complete:
            if at_start and self._keep_alive and not self._broken:
                self._remember(data)
            if self._receiver is receiver:
                self._finish(receiver)
        elif self._broken and self._receiver is receiver:
            self._receiver = None
            self._transport.abort()
            receiver.answer_failed("malformed", "The engine's answer is not HTTP.", reused=False)

    @override
    def eof_received(self) -> None:
        """Let the transport close."""

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the receiver, if one still waits."""
        self._pool.forget(self)
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            receiver.answer_failed(
                "connection_lost",
                "The connection to the engine broke.",
                reused=self._served > 0 and not self._headers,
            )

    def _took_whole(self, receiver: Receiver, data: bytes) -> bool:
        """Hand on a whole answer whose head is known; False: *data* is none."""
        known = self._pool.answer_head
        body = known.memo.body_of(data) if known is not None else None
        if known is None or body is None:
            return False
        self._receiver = None
        self._served += 1
        self._pool.put_back(self)
        receiver.answer_whole(known, body)
        return True

    def _remember(self, data: bytes) -> None:
        """Keep what the head of the whole answer *data* was parsed to."""
        status = self._parser.get_status_code()
        memo = HeadMemo.of(data) if status == HTTPStatus.OK else None
        if memo is not None:
            self._pool.answer_head = AnswerHead(memo, status, self._headers)

    def _finish(self, receiver: Receiver) -> None:
        self._receiver = None
        self._headers = []
        self._served += 1
        if self._broken or not self._keep_alive:
            self._transport.close()
        else:
            self._pool.put_back(self)
        receiver.answer_ended()

    # httptools

    def on_message_begin(self) -> None:
        """Note a second answer to one request: the connection is not to be trusted."""
        if self._complete:
            self._broken = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect one header."""
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Pass the head on, but for interim answers."""
        status = self._parser.get_status_code()
        if self._receiver is None or self._broken:
            return
        if status >= HTTPStatus.OK:
            self._receiver.answer_began(status, self._headers)
        else:
            self._headers = []

    def on_body(self, body: bytes) -> None:
        """Collect one piece of the body."""
        if not self._broken:
            self._pieces.append(body)

    def on_chunk_header(self) -> None:
        """Note that a chunk begins."""
        self._between_chunks = False

    def on_chunk_complete(self) -> None:
        """Note that a chunk ends."""
        self._between_chunks = True

    def on_message_complete(self) -> None:
        """Note the end, but for that of an interim answer."""
        self._between_chunks = False
        if self._parser.get_status_code() >= HTTPStatus.OK:
            self._complete = True
            # the parser knows only until this callback returns
            self._keep_alive = self._parser.should_keep_alive()


def _took_chunk(receiver: Receiver, data: bytes) -> bool:
    """Offer *data* to *receiver* if it is one whole chunk, not the last; return whether it took it.

    Strict: the size must be written as the shortest lower-case number that fits the length.
    """
    size_end = data.find(b"\r\n", 1, _SIZE_BYTES_MAX)
    size = len(data) - size_end - 4
    return (
        size > 0
        and data.startswith(b"%x\r\n" % size)
        and data.endswith(b"\r\n")
        and receiver.chunk_came(data, size_end + 2)
    )


class Pool:
    """All connections to one instance, and what this gateway has in flight there."""

    __slots__ = (
        "_clock",
        "_host",
        "_idle",
        "_opening",
        "_port",
        "_settings",
        "answer_head",
        "authority",
        "closed",
        "faults",
        "instance_id",
        "key",
        "requests",
        "tokens",
    )

    def __init__(
        self,
        instance_id: str,
        *,
        host: str,
        port: int,
        key: str,
        clock: Clock,
        settings: GatewaySettings,
    ) -> None:
        self.instance_id = instance_id
        self._host = host
        self._port = port
        self.authority = (f"[{host}]:{port}" if ":" in host else f"{host}:{port}").encode()
        self.key = key.encode()
        self._clock = clock
        self._settings = settings
        self._idle: list[Upstream] = []
        self._opening: set[asyncio.Task[None]] = set()
        #: of the last answer that could be told from its head and length alone
        self.answer_head: AnswerHead | None = None
        #: failed attempts since the last answer
        self.faults = 0
        #: requests in flight, and the estimate of their tokens
        self.requests = 0
        self.tokens = 0
        #: the instance is not in the table any more
        self.closed = False

    def take(self) -> Upstream | None:
        """Return an idle connection, if there is one."""
        return self._idle.pop() if self._idle else None

    def put_back(self, upstream: Upstream) -> None:
        """Take a connection back whose answer is complete."""
        if (
            self.closed
            or upstream.is_closing
            or len(self._idle) >= self._settings.upstream_idle_max
        ):
            upstream.cancel()
            return
        upstream.idle_since_s = self._clock.monotonic_s()
        self._idle.append(upstream)

    def forget(self, upstream: Upstream) -> None:
        """Drop a connection that is closed."""
        if upstream in self._idle:
            self._idle.remove(upstream)

    def open(self, opened: OnOpen) -> asyncio.Task[None]:
        """Connect, then call *opened* with the connection, or with None when that failed."""
        task = asyncio.get_running_loop().create_task(self._open(opened))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)
        return task

    async def _open(self, opened: OnOpen) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._settings.connect_timeout_s):
                _, upstream = await loop.create_connection(
                    lambda: Upstream(self), self._host, self._port
                )
        except (OSError, TimeoutError) as error:
            opened(None, f"The engine cannot be reached: {str(error) or 'no answer'}.")
            return
        opened(upstream, "")

    def sweep(self, now_s: float) -> None:
        """Close connections that were idle too long; the oldest lie at the front."""
        limit = now_s - self._settings.upstream_idle_s
        while self._idle and self._idle[0].idle_since_s < limit:
            self._idle.pop(0).cancel()

    def close(self) -> None:
        """Close what is idle; what is busy closes when it ends."""
        self.closed = True
        while self._idle:
            self._idle.pop().cancel()


class OnOpen(Protocol):
    """What becomes of a connection that was asked for."""

    def __call__(self, upstream: Upstream | None, problem: str) -> None:
        """Take the connection, or the problem in words."""
        ...
