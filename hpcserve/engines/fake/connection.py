"""One HTTP/1.1 connection of the fake engine: httptools parses, bytes go out by hand."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import cast

import httptools
from typing_extensions import override

from hpcserve.engines.fake.sequences import Sequence

#: a body larger than this is refused; 64 MiB is some 16 million tokens
MAX_BODY_BYTES = 64 * 1024 * 1024
#: requests that a client may send ahead on one connection
MAX_PIPELINED = 64

_REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


@dataclass(slots=True)
class Call:
    """One request as it came in."""

    method: bytes
    path: bytes
    body: bytes
    authorization: bytes
    request_id: bytes
    #: of the header, which counts more than the body's; None: it has none, or no number
    priority: int | None


Handler = Callable[[Call, "Connection"], Sequence | None]


class Connection(asyncio.Protocol):
    """Reads calls, has them handled one by one in order, and writes the answers."""

    def __init__(
        self,
        handle: Handler,
        abort: Callable[[Sequence], None],
        connections: set[Connection],
    ) -> None:
        """Take who handles a call, who aborts its sequence, and the set of open connections."""
        self._handle = handle
        self._abort = abort
        self._connections = connections
        self._parser = httptools.HttpRequestParser(self)
        self._calls: deque[tuple[Call, bool]] = deque()
        self._busy = False
        self._keep_alive = True
        self._sequence: Sequence | None = None
        self._transport: asyncio.Transport
        self._loop = asyncio.get_running_loop()
        self._begin()

    def _begin(self) -> None:
        self._url = b""
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._authorization = b""
        self._request_id = b""
        self._priority: int | None = None
        self._continue = False

    # What the event loop calls.

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transport has the methods of asyncio.Transport but not the type.
        self._transport = cast("asyncio.Transport", transport)
        self._connections.add(self)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        self._calls.clear()
        if self._sequence is not None:
            self._abort(self._sequence)
            self._sequence = None

    @override
    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if self._busy:
                self.reset()
            elif not self._transport.is_closing():
                self._keep_alive = False
                self.send(400, json.dumps({"error": str(error)}).encode())

    # What the parser calls.

    def on_message_begin(self) -> None:
        """Forget the request before."""
        self._begin()

    def on_url(self, url: bytes) -> None:
        """Collect the target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep the headers that matter."""
        match name.lower():
            case b"authorization":
                self._authorization = value
            case b"x-request-id":
                self._request_id = value
            case b"x-vllm-priority":
                with contextlib.suppress(ValueError):
                    self._priority = int(value)
            case b"expect":
                self._continue = True
            case _:
                pass

    def on_headers_complete(self) -> None:
        """Ask for the body where the client waits for that."""
        if self._continue:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, data: bytes) -> None:
        """Collect the body up to the limit."""
        self._body_bytes += len(data)
        if self._body_bytes > MAX_BODY_BYTES:
            raise ValueError(f"the body is larger than {MAX_BODY_BYTES} bytes")
        self._body.append(data)

    def on_message_complete(self) -> None:
        """Handle the call, or queue it behind the one in progress."""
        call = Call(
            self._parser.get_method(),
            self._url.partition(b"?")[0],
            b"".join(self._body),
            self._authorization,
            self._request_id,
            self._priority,
        )
        if len(self._calls) >= MAX_PIPELINED:
            raise ValueError(f"more than {MAX_PIPELINED} requests sent ahead")
        self._calls.append((call, self._parser.should_keep_alive()))
        if not self._busy:
            self._next()

    # What the handler calls.

    def send(self, status: int, body: bytes, content_type: bytes = b"application/json") -> None:
        """Answer whole."""
        self._transport.write(
            b"HTTP/1.1 %d %b\r\ncontent-type: %b\r\ncontent-length: %d\r\n%b\r\n%b"
            % (
                status,
                _REASONS[status],
                content_type,
                len(body),
                b"" if self._keep_alive else b"connection: close\r\n",
                body,
            )
        )
        self._done()

    def start_stream(self) -> None:
        """Send the head of an event stream."""
        self._transport.write(_STREAM_HEAD)

    def event(self, data: bytes) -> None:
        """Send one event as one chunk."""
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))

    def end_stream(self) -> None:
        """End the body cleanly."""
        self._transport.write(b"0\r\n\r\n")
        self._done()

    def reset(self) -> None:
        """Cut the connection."""
        self._transport.abort()

    def close(self) -> None:
        """Close the connection once what was written is out."""
        self._transport.close()

    def _done(self) -> None:
        self._busy = False
        self._sequence = None
        if not self._keep_alive:
            self._transport.close()
        elif self._calls:
            # Not from here: the call that ends may be the one that `_next` is handling.
            self._loop.call_soon(self._next)

    def _next(self) -> None:
        while self._calls and not self._busy:
            call, self._keep_alive = self._calls.popleft()
            self._busy = True
            sequence = self._handle(call, self)
            if self._busy:
                self._sequence = sequence
