"""One client connection: parses requests, and takes each to the hot path or to the ASGI app.

The gateway's one place that writes HTTP towards clients, and strict about what it reads:

- One parser (llhttp, no leniency) reads everything that arrives, whoever serves it, so there is no
  second opinion about where a request ends. What it refuses (both framings at once, broken chunks,
  bare line feeds, spaces before colons) is answered with 400, and the connection is closed.
- Inference routes (`routes.py`, POST) become an Exchange; all else becomes uvicorn's own
  request cycle around the ASGI app.
- Requests of one connection are answered in order. While one is served, a second is parsed and
  waits, and reading stops.
- Heads and bodies have limits in size and in time; a refusal is sent whole before the connection
  closes, also to a client that is still sending.
"""

from __future__ import annotations

import asyncio
import logging
import pwd
import socket
import struct
from collections import deque
from collections.abc import Callable, Mapping
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from urllib.parse import parse_qs, unquote

import httptools
from typing_extensions import override
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.protocols.utils import get_local_addr, get_remote_addr, is_ssl
from uvicorn.server import ServerState

from hpcserve.errors import HpcserveError
from hpcserve.gateway.dispatch import Dispatch
from hpcserve.gateway.envelope import Answer, answer_to, error_answer
from hpcserve.gateway.exchange import Exchange, too_large
from hpcserve.gateway.forwarding import Headers, forwarded, without_upgrade
from hpcserve.gateway.head_memo import HeadMemo
from hpcserve.gateway.identity import Identity, Via, unidentified
from hpcserve.gateway.key_cache import credential, digest_of
from hpcserve.gateway.routes import ROUTES, Route

if TYPE_CHECKING:
    from uvicorn._types import HTTPScope

log = logging.getLogger(__name__)

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
#: pid, uid, gid of the peer of a Unix socket
_PEER_CREDENTIALS = struct.Struct("3i")


class _Refused(Exception):  # noqa: N818 - unwinds the parser, never leaves this module
    """The request cannot be taken; the answer follows, then the connection closes."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.answer = answer


class _Repeat(NamedTuple):
    """What the head of the last request was parsed to."""

    head: HeadMemo
    route: Route
    headers: Headers
    passed: bytes
    digest: str
    wait_s: float


class Cycle:
    """A request that the ASGI app serves."""

    __slots__ = ("cycle", "start")

    def __init__(self, cycle: RequestResponseCycle, start: Callable[[], None]) -> None:
        self.cycle = cycle
        self.start = start


class Connection(asyncio.Protocol):
    """One client's connection, TCP or Unix."""

    def __init__(
        self,
        dispatch: Dispatch,
        admin_uids: frozenset[int],
        *,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """Take the shared state, the administrators' user ids, and what uvicorn hands over."""
        if not config.loaded:
            config.load()
        self._dispatch = dispatch
        self._admin_uids = admin_uids
        self._config = config
        self._server_state = server_state
        self._app_state = app_state
        self._loop = _loop or asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._flow: FlowControl
        self._parser = httptools.HttpRequestParser(self)
        #: who the kernel says that the peer is
        self._peer: Identity | None = None
        self._scope_base: dict[str, Any] = {}
        #: requests in order; the first one is being served
        self._turns: deque[Exchange | Cycle | Answer] = deque()
        #: the request whose body arrives
        self._receiving: Exchange | Cycle | None = None
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._came_bytes = 0
        #: heads that were begun
        self._requests = 0
        #: the inference request whose head came last; its key's digest; what it was parsed to
        self._parsed: Exchange | None = None
        self._digest = ""
        self._memo: _Repeat | None = None
        self._in_head = False
        self._expects_continue = False
        #: the head that was just parsed asks for another protocol
        self._offers_upgrade = False
        #: the server ends: no further request on this connection
        self._stopping = False
        #: nothing more is parsed: the last answer is out or on its way
        self._closing = False
        #: s since the last byte of a request, or since the last answer
        self._waiting_s = 0.0
        self._tasks: set[asyncio.Task[None]] = set()

    # asyncio

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Find out who is there."""
        # uvloop's transport of a Unix socket is one in all but its class
        transport = cast("asyncio.Transport", transport)
        self._transport = transport
        self._flow = FlowControl(transport)
        transport.set_write_buffer_limits(high=self._dispatch.settings.write_buffer_bytes)
        self._server_state.connections.add(self)  # type: ignore[arg-type]  # uvicorn lists its own only
        self._peer = _peer_identity(transport, self._admin_uids)
        self._scope_base = {
            "type": "http",
            "asgi": {"version": self._config.asgi_version, "spec_version": "2.3"},
            "server": get_local_addr(transport),
            "client": get_remote_addr(transport),
            "scheme": "https" if is_ssl(transport) else "http",
            "root_path": self._config.root_path,
        }

    @override
    def data_received(self, data: bytes) -> None:
        """Parse what came; the callbacks below do the rest."""
        if self._closing:
            return
        self._waiting_s = 0.0
        between = not (self._turns or self._in_head or self._receiving)
        if between and self._memo is not None:
            body = self._memo.head.body_of(data)
            if body is not None:
                self._repeat(self._memo, body)
                return
        self._came_bytes = self._came_bytes + len(data) if self._in_head else len(data)
        requests_before = self._requests
        if self._parse(data):
            begun = self._requests - requests_before
            if self._in_head and begun > (1 if between else 0):
                # other requests' bytes came along; what comes from now on counts in full
                self._came_bytes = self._head_bytes()
            if between:
                self._remember(data)
            if self._in_head and self._came_bytes > self._dispatch.settings.max_header_bytes:
                self._refuse(self._head_too_large())

    def _parse(self, data: bytes) -> bool:
        """Feed the parser, whose callbacks do the work; False when the connection ends."""
        left = memoryview(data)
        try:
            while True:
                try:
                    self._parser.feed_data(left)
                    break
                except httptools.HttpParserUpgrade as upgrade:
                    # behind the head, which comes again without its offer
                    left = left[upgrade.args[0] :]
                    self._read_again()
        except httptools.HttpParserCallbackError as error:
            if not isinstance(error.__context__, _Refused):
                raise
            self._refuse(error.__context__.answer)
        except httptools.HttpParserError as error:
            self._refuse(
                error_answer(400, f"This is not HTTP as it should be: {error}", code="bad_request")
            )
        else:
            return True
        return False

    def _read_again(self) -> None:
        """Read the last head as if it did not offer another protocol (RFC 9110, 7.8).

        Java's HTTP client offers HTTP/2 with every first request. The parser stops behind such a
        head; a fresh one reads it without the offer, and then what follows.
        """
        method = self._parser.get_method()
        if not self._offers_upgrade or method == b"CONNECT":
            raise httptools.HttpParserError("it asks for another protocol")
        version = self._parser.get_http_version().encode()
        lines = without_upgrade(self._headers)
        self._parser = httptools.HttpRequestParser(self)
        self._parser.feed_data(b"%b %b HTTP/%b\r\n%b\r\n" % (method, self._url, version, lines))

    @override
    def eof_received(self) -> None:
        """Let the transport close: a client that stops sending has left."""

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        """Stop what is served for nobody."""
        self._server_state.connections.discard(self)
        self._closing = True
        self._flow.resume_writing()
        turns, self._turns = self._turns, deque()
        for turn in turns:
            if isinstance(turn, Exchange):
                turn.client_left()
            elif isinstance(turn, Cycle):
                turn.cycle.disconnected = not turn.cycle.response_complete
                turn.cycle.message_event.set()

    @override
    def pause_writing(self) -> None:
        """Hold back whoever writes: the client does not read."""
        self._flow.pause_writing()
        if self._turns and isinstance(self._turns[0], Exchange):
            self._turns[0].pause()

    @override
    def resume_writing(self) -> None:
        """Let it go on."""
        self._flow.resume_writing()
        if self._turns and isinstance(self._turns[0], Exchange):
            self._turns[0].resume()

    # httptools

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._requests += 1
        self._url = b""
        self._headers = []
        self._in_head = True
        self._expects_continue = False
        self._offers_upgrade = False

    def on_url(self, url: bytes) -> None:
        """Collect the target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a header."""
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Decide who serves the request."""
        self._offers_upgrade = self._parser.should_upgrade()
        if self._offers_upgrade:
            # it comes again without the offer
            return
        self._in_head = False
        limit = self._dispatch.settings.max_header_bytes
        # all that came may be too much and the head still not: a body or other requests came along
        if self._came_bytes > limit and self._head_bytes() > limit:
            raise _Refused(self._head_too_large())
        fields = dict(self._headers)
        self._expects_continue = fields.get(b"expect", b"").lower() == b"100-continue"
        path, _, query = self._url.partition(b"?")
        route = ROUTES.get(path)
        if route is not None and self._parser.get_method() == b"POST":
            self._receiving = exchange = Exchange(
                self._dispatch,
                self,
                route,
                self._headers,
                passed=forwarded(self._headers),
                version_1_0=self._parser.get_http_version() == "1.0",
                keep_alive=self._parser.should_keep_alive(),
            )
            self._parsed = exchange
            self._admit(exchange, fields)
            wait = fields.get(b"hpcserve-wait")
            if query and wait is None:
                wait = parse_qs(query).get(b"wait", [None])[0]
            if wait is not None:
                exchange.wait_s = _seconds(wait)
        else:
            self._receiving = self._cycle()
        self._queue(self._receiving)

    def on_body(self, body: bytes) -> None:
        """Hand a piece of the body to whom it belongs."""
        receiving = self._receiving
        if isinstance(receiving, Exchange):
            receiving.body_came(body)
            if receiving.refusal is not None and receiving.refusal.status == 413:  # noqa: PLR2004 - HTTP's number
                raise _Refused(receiving.refusal)
        elif receiving is not None and not receiving.cycle.response_complete:
            receiving.cycle.body += body
            if len(receiving.cycle.body) > HIGH_WATER_LIMIT:
                self._flow.pause_reading()
            receiving.cycle.message_event.set()

    def on_message_complete(self) -> None:
        """Serve the request, if it is its turn."""
        if self._offers_upgrade:
            return
        receiving, self._receiving = self._receiving, None
        if isinstance(receiving, Exchange):
            receiving.complete = True
            if self._turns and self._turns[0] is receiving:
                receiving.begin()
        elif receiving is not None:
            receiving.cycle.more_body = False
            receiving.cycle.message_event.set()

    # the requests in their order

    def _admit(self, exchange: Exchange, fields: Mapping[bytes, bytes]) -> None:
        """Find out who asks, as far as that is known here, and whether to take the body."""
        limit = self._dispatch.settings.max_body_bytes
        if int(fields.get(b"content-length", b"0")) > limit:
            raise _Refused(too_large(limit))
        if self._peer is not None:
            exchange.identity = self._peer
        else:
            key = credential(fields)
            if key is None:
                exchange.refuse_later(answer_to(unidentified()))
            else:
                self._digest = digest_of(key)
                self._recognise(exchange, self._digest)
        if self._expects_continue:
            if exchange.refusal is not None:
                raise _Refused(exchange.refusal)
            if not self._turns:
                self._transport.write(_CONTINUE)

    def _recognise(self, exchange: Exchange, digest: str) -> None:
        """Take the identity from the cache; without an entry there, `Exchange.begin` asks."""
        entry = self._dispatch.keys.find(digest)
        if entry is not None:
            exchange.identity = entry.identity
            if entry.identity is None:
                exchange.refuse_later(answer_to(unidentified()))

    def _repeat(self, repeat: _Repeat, body: bytes) -> None:
        """Serve a request whose head is that of the one before."""
        exchange = Exchange(
            self._dispatch,
            self,
            repeat.route,
            repeat.headers,
            passed=repeat.passed,
            version_1_0=False,
            keep_alive=True,
        )
        exchange.wait_s = repeat.wait_s
        if self._peer is not None:
            exchange.identity = self._peer
        else:
            self._recognise(exchange, repeat.digest)
        exchange.body_came(body)
        exchange.complete = True
        self._turns.append(exchange)
        exchange.begin()

    def _remember(self, data: bytes) -> None:
        """Keep what this read's request was parsed to, if it was one whole inference request."""
        exchange, self._parsed = self._parsed, None
        self._memo = None
        if exchange is None or not exchange.repeatable or self._expects_continue:
            return
        memo = HeadMemo.of(data)
        if memo is not None:
            self._memo = _Repeat(
                memo,
                exchange.route,
                exchange.headers,
                exchange.passed,
                self._digest,
                exchange.wait_s,
            )

    def look_up(self, exchange: Exchange) -> None:
        """Ask the ledger for the key of *exchange*, which then begins again."""
        key = credential(dict(exchange.headers))
        assert key is not None
        task = self._loop.create_task(self._look_up(exchange, key))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _look_up(self, exchange: Exchange, key: bytes) -> None:
        try:
            identity = await self._dispatch.keys.look_up(key)
        except HpcserveError as error:
            exchange.identification_failed(error)
        else:
            exchange.identified(identity)

    def _cycle(self) -> Cycle:
        """Wrap the request as uvicorn would."""
        version = self._parser.get_http_version()
        try:
            target = httptools.parse_url(self._url)
        except httptools.HttpParserInvalidURLError as error:
            raise _Refused(
                error_answer(400, "The request target is not a URL.", code="bad_request")
            ) from error
        raw_path = target.path or b"/"
        path = unquote(raw_path.decode("ascii", errors="replace"))
        state = self._app_state.copy()
        if self._peer is not None:
            state["identity"] = self._peer
        scope = {
            **self._scope_base,
            "http_version": version,
            "method": self._parser.get_method().decode("ascii"),
            "path": self._config.root_path + path,
            "raw_path": self._config.root_path.encode() + raw_path,
            "query_string": target.query or b"",
            "headers": self._headers,
            "state": state,
        }
        cycle = RequestResponseCycle(
            scope=cast("HTTPScope", scope),
            transport=self._transport,
            flow=self._flow,
            logger=log,
            access_logger=log,
            access_log=False,
            default_headers=self._server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self._expects_continue,
            keep_alive=version != "1.0" and self._parser.should_keep_alive(),
            on_response=self._cycle_over,
        )

        def start() -> None:
            task = self._loop.create_task(cycle.run_asgi(self._config.loaded_app))
            self._server_state.tasks.add(task)
            task.add_done_callback(self._server_state.tasks.discard)

        return Cycle(cycle, start)

    def _queue(self, turn: Exchange | Cycle | Answer) -> None:
        self._turns.append(turn)
        if len(self._turns) == 1:
            self._serve(turn)
        else:
            self._flow.pause_reading()

    def _serve(self, turn: Exchange | Cycle | Answer) -> None:
        if isinstance(turn, Exchange):
            if turn.complete:
                turn.begin()
        elif isinstance(turn, Cycle):
            turn.start()
        else:
            self._send_last(turn)

    def _cycle_over(self) -> None:
        turn = self._turns[0] if self._turns else None
        if isinstance(turn, Cycle):
            self._next(keep_alive=turn.cycle.keep_alive and turn is not self._receiving)

    def turn_over(self, exchange: Exchange) -> None:
        """Take the next request: *exchange* has been answered."""
        if self._turns and self._turns[0] is exchange:
            self._next(keep_alive=exchange.keep_alive)

    def _next(self, *, keep_alive: bool) -> None:
        self._turns.popleft()
        self._server_state.total_requests += 1
        self._waiting_s = 0.0
        if self._transport.is_closing():
            return
        if not keep_alive or (self._stopping and not self._turns):
            self._closing = True
            self._turns.clear()
            self._hang_up()
        elif self._turns:
            self._serve(self._turns[0])
        else:
            self._flow.resume_reading()

    # ends

    def shutdown(self) -> None:
        """Close as soon as nothing is being served (uvicorn calls this)."""
        if not self._turns:
            self._transport.close()
            return
        self._stopping = True
        turn = self._turns[0]
        if isinstance(turn, Exchange):
            turn.keep_alive = False
        elif isinstance(turn, Cycle):
            turn.cycle.keep_alive = False

    def abort(self) -> None:
        """Cut the connection."""
        self._transport.abort()

    def write(self, data: bytes) -> None:
        """Send bytes of the answer whose turn it is."""
        self._transport.write(data)

    def sweep(self, elapsed_s: float) -> None:
        """Close what waits too long; called about once a second."""
        settings = self._dispatch.settings
        turn = self._turns[0] if self._turns else None
        if isinstance(turn, Exchange) and turn.complete:
            turn.sweep(elapsed_s)
            return
        self._waiting_s += elapsed_s
        receiving = self._in_head or self._receiving is not None
        if self._closing:
            if self._waiting_s > settings.linger_s:
                self._transport.abort()
        elif receiving and self._waiting_s > settings.request_timeout_s:
            if turn is None or isinstance(turn, Exchange):
                self._turns.clear()
                self._refuse(
                    error_answer(408, "The request did not arrive in time.", code="request_timeout")
                )
            else:
                self._transport.abort()
        elif not receiving and turn is None and self._waiting_s > settings.keep_alive_s:
            self._transport.close()

    def _head_bytes(self) -> int:
        """Return the size of what is known of the head."""
        return len(self._url) + sum(len(name) + len(value) for name, value in self._headers)

    def _head_too_large(self) -> Answer:
        limit = self._dispatch.settings.max_header_bytes
        return error_answer(
            431, f"The request head is larger than {limit} bytes.", code="headers_too_large"
        )

    def _refuse(self, answer: Answer) -> None:
        """Send *answer* when its turn comes, then close; read nothing more."""
        self._closing = True
        self._waiting_s = 0.0
        receiving, self._receiving = self._receiving, None
        self._in_head = False
        if receiving is not None and self._turns and self._turns[-1] is receiving:
            if isinstance(receiving, Cycle):
                if receiving.cycle.response_started:
                    self._transport.abort()
                    return
                # the app waits for a body that never comes whole
                receiving.cycle.disconnected = True
                receiving.cycle.message_event.set()
            self._turns.pop()
        self._turns.append(answer)
        if len(self._turns) == 1:
            self._send_last(answer)

    def _send_last(self, answer: Answer) -> None:
        lines = [b"HTTP/1.1 %d \r\ncontent-type: application/json\r\n" % answer.status]
        lines += [b"%b: %b\r\n" % (n.encode(), v.encode()) for n, v in answer.headers]
        lines.append(b"content-length: %d\r\nconnection: close\r\n\r\n" % len(answer.body))
        self._transport.write(b"".join(lines) + answer.body)
        self._turns.clear()
        self._hang_up()

    def _hang_up(self) -> None:
        """Close, but let a client that still sends read the answer first.

        A close with unread bytes makes the kernel reset the connection, and the answer is lost.
        """
        if self._receiving is None and not self._closing:
            self._transport.close()
            return
        self._waiting_s = 0.0
        if self._transport.can_write_eof():
            self._transport.write_eof()
            self._flow.resume_reading()
        else:
            self._transport.close()


def _seconds(text: bytes) -> float:
    """Return the time that a client is ready to wait, s."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < inf:
        raise _Refused(
            error_answer(
                400,
                "`wait` must be a number of seconds.",
                code="invalid_request",
                param="wait",
            )
        )
    return seconds


def _peer_identity(transport: asyncio.Transport, admin_uids: frozenset[int]) -> Identity | None:
    """Return who the kernel says is at the other end of a Unix socket; None over TCP."""
    peer: socket.socket | None = transport.get_extra_info("socket")
    if peer is None or peer.family != socket.AF_UNIX:
        return None
    packed = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
    _, uid, _ = _PEER_CREDENTIALS.unpack(packed)
    try:
        owner = pwd.getpwuid(uid).pw_name
    except KeyError:
        # a user that this node does not know by name still has a number of their own
        owner = f"uid-{uid}"
    return Identity(owner=owner, is_admin=uid in admin_uids, via=Via.SOCKET, uid=uid)
