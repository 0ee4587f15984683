"""One inference request, from its head to its last byte, joined to one engine at a time.

::

    identify -> begin: peek, find the lane -> attempt -> answer begins -> relay -> settle
                                                ^                |
                                                +--- another instance, before the first byte

Rules:

- Until the first byte has gone to the client, any fault of an instance is retried on another one,
  `retries_max` times; a connection that was merely stale costs no retry.
- An answer that is no stream is held until it is complete (up to `answer_buffer_bytes`), so that an
  engine that dies half-way is still retried.
- After the first byte a stream that breaks ends with an error event and without its terminal event,
  and the connection is closed inside the body: a client notices by either.
- Whatever the engine says of its own key stays between us: its 401 is a fault, not the client's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import Enum, auto
from http import HTTPStatus
from typing import TYPE_CHECKING

from hpcserve.errors import HpcserveError, RequestError
from hpcserve.gateway.dispatch import Dispatch, Lane
from hpcserve.gateway.envelope import Answer, Refusal, answer_to, error_answer
from hpcserve.gateway.identity import Identity, unidentified
from hpcserve.gateway.peek import peek
from hpcserve.gateway.routes import Route
from hpcserve.gateway.sse import EventStream, StreamBroken, Usage, read_usage
from hpcserve.gateway.upstream import Pool, Upstream

if TYPE_CHECKING:
    from hpcserve.gateway.connection import Connection

#: headers that belong to one hop, or that the gateway sets itself towards the engine
_NOT_FORWARDED = frozenset(
    {
        b"authorization",
        b"connection",
        b"content-length",
        b"expect",
        b"host",
        b"keep-alive",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"x-api-key",
        b"x-request-id",
    }
)
#: and those of an engine's answer
_NOT_RETURNED = frozenset(
    {
        b"connection",
        b"content-length",
        b"keep-alive",
        b"proxy-authenticate",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"x-request-id",
    }
)
#: bytes of a prompt that make about one token
_BYTES_PER_TOKEN = 4
#: answer that a request without a limit is expected to get, tokens
_USUAL_ANSWER_TOKENS = 256
#: tail of an answer in which its usage is looked for, bytes
_USAGE_TAIL = 4096
_COUNT_USAGE = b'{"stream_options":{"include_usage":true},'
_DECODER = json.JSONDecoder()


class Outcome(Enum):
    """How a request ended; a label of the metrics."""

    ANSWERED = "answered"
    #: the engine or the gateway found the request wrong
    INVALID = "invalid"
    #: no instance, no place, no key
    REFUSED = "refused"
    #: no instance could answer it
    FAILED = "failed"
    #: the answer ended early, and said so
    BROKEN = "broken"
    CLIENT_GONE = "client_gone"


class _Mode(Enum):
    """What becomes of the engine's answer."""

    #: nothing came yet
    NONE = auto()
    #: events, checked and relayed as they come
    STREAM = auto()
    #: held until complete
    WHOLE = auto()
    #: too large to be held
    FLOW = auto()
    #: a fault, to be retried elsewhere
    FAULT = auto()


class Exchange:
    """One request and its answer."""

    __slots__ = (
        "_attempts",
        "_body",
        "_body_bytes",
        "_connecting",
        "_connection",
        "_dispatch",
        "_events",
        "_head_sent",
        "_held",
        "_held_bytes",
        "_hide_usage",
        "_lane",
        "_mode",
        "_over",
        "_paused",
        "_pool",
        "_pool_tokens",
        "_quiet_s",
        "_status",
        "_tried",
        "_up_headers",
        "_upstream",
        "_version_1_0",
        "began_s",
        "complete",
        "first_byte_s",
        "headers",
        "identity",
        "keep_alive",
        "refusal",
        "request_id",
        "route",
        "usage",
    )

    def __init__(
        self,
        dispatch: Dispatch,
        connection: Connection,
        route: Route,
        headers: list[tuple[bytes, bytes]],
        *,
        version_1_0: bool,
        keep_alive: bool,
    ) -> None:
        self._dispatch = dispatch
        self._connection = connection
        self.route = route
        self.headers = headers
        self._version_1_0 = version_1_0
        self.keep_alive = keep_alive
        self.identity: Identity | None = None
        #: decided before the body was there; sent once the request is complete
        self.refusal: Answer | None = None
        #: the whole request has arrived
        self.complete = False
        self.began_s = 0.0
        self.first_byte_s = 0.0
        self.request_id = dispatch.next_request_id()
        self.usage: Usage | None = None
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._lane: Lane | None = None
        self._pool: Pool | None = None
        self._pool_tokens = 0
        self._upstream: Upstream | None = None
        self._connecting = False
        self._tried: list[str] = []
        self._attempts = 0
        self._mode = _Mode.NONE
        self._status = 0
        self._up_headers: list[tuple[bytes, bytes]] = []
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._events: EventStream | None = None
        self._hide_usage = False
        self._head_sent = False
        self._over = False
        self._paused = False
        self._quiet_s = 0.0

    # the client's side

    def body_came(self, data: bytes) -> None:
        """Take a piece of the request's body."""
        if self.refusal is not None:
            return
        self._body_bytes += len(data)
        limit = self._dispatch.settings.max_body_bytes
        if self._body_bytes > limit:
            self.refuse_later(too_large(limit))
            self._body.clear()
            return
        self._body.append(data)

    def refuse_later(self, answer: Answer) -> None:
        """Decide on a refusal while the request still arrives."""
        if self.refusal is None:
            self.refusal = answer

    def begin(self) -> None:
        """Serve the request: it is complete, and its turn on the connection has come."""
        dispatch = self._dispatch
        self.began_s = dispatch.clock.monotonic_s()
        if self.refusal is not None:
            self._answer(self.refusal, Outcome.REFUSED)
            return
        if self.identity is None:
            self._connection.look_up(self)
            return
        if len(self._body) != 1:
            self._body = [b"".join(self._body)]
        try:
            fields = peek(self._body[0])
            model = _model(fields)
        except RequestError as error:
            self._answer(answer_to(error), Outcome.INVALID)
            return
        lane = dispatch.lanes.get(model)
        if lane is None:
            self._answer(dispatch.unknown_model(model).answer(), Outcome.INVALID)
            return
        self._lane = lane
        lane.asked = True
        lane.running += 1
        self._hide_usage = (
            fields.get("stream") is True
            and self.route.counts_on_request
            and "stream_options" not in fields
        )
        self._pool_tokens = self._body_bytes // _BYTES_PER_TOKEN + _answer_tokens(fields)
        self._attempt()

    def identified(self, identity: Identity | None) -> None:
        """Go on with what the ledger said of the key."""
        if self._over:
            return
        if identity is None:
            self.refusal = answer_to(unidentified())
        self.identity = identity
        self.begin()

    def identification_failed(self, error: HpcserveError) -> None:
        """Go on without an answer from the ledger."""
        if not self._over:
            self._answer(answer_to(error), Outcome.REFUSED)

    def client_left(self) -> None:
        """Stop everything: nobody reads the answer any more."""
        if not self._over:
            self._drop_upstream()
            self._settle(Outcome.CLIENT_GONE)

    def pause(self) -> None:
        """Hold the engine back while the client does not read."""
        self._paused = True
        if self._upstream is not None:
            self._upstream.pause()

    def resume(self) -> None:
        """Let the engine go on."""
        self._paused = False
        self._quiet_s = 0.0
        if self._upstream is not None:
            self._upstream.resume()

    def sweep(self, elapsed_s: float) -> None:
        """Look for silence: of the engine, or of a client that does not read."""
        if self._over or self._lane is None:
            return
        self._quiet_s += elapsed_s
        settings = self._dispatch.settings
        if self._paused:
            if self._quiet_s > settings.slow_reader_s:
                self._connection.abort()
        elif self._quiet_s > settings.stall_timeout_s and self._upstream is not None:
            self._drop_upstream()
            self._fault("stalled", f"The engine was silent for {self._quiet_s:.0f} s.")

    # the engine's side

    def _attempt(self) -> None:
        lane = self._lane
        assert lane is not None
        pool = self._dispatch.choose(lane, self._pool_tokens, self._tried)
        if pool is None:
            self._answer(self._dispatch.starting(lane).answer(), Outcome.REFUSED)
            return
        self._pool = pool
        pool.requests += 1
        pool.tokens += self._pool_tokens
        self._attempts += 1
        upstream = pool.take()
        if upstream is None:
            self._connect(pool)
        else:
            self._send(upstream)

    def _connect(self, pool: Pool) -> None:
        self._connecting = True
        pool.open(self._opened)

    def _opened(self, upstream: Upstream | None, problem: str) -> None:
        self._connecting = False
        if self._over:
            if upstream is not None:
                upstream.cancel()
            return
        if upstream is None:
            self._fault("unreachable", problem)
        else:
            self._send(upstream)

    def _send(self, upstream: Upstream) -> None:
        pool = self._pool
        assert pool is not None
        self._upstream = upstream
        self._mode = _Mode.NONE
        self._quiet_s = 0.0
        body: bytes | memoryview = self._body[0]
        opening = b""
        if self._hide_usage:
            # behind the opening brace; whatever the client wrote comes later and wins
            opening = _COUNT_USAGE
            body = memoryview(self._body[0])[self._body[0].index(b"{") + 1 :]
        lines = [
            b"POST %b HTTP/1.1\r\nhost: %b\r\nauthorization: Bearer %b\r\nx-request-id: %b\r\n"
            b"content-length: %d\r\n"
            % (
                self.route.path,
                pool.authority,
                pool.key,
                self.request_id.encode(),
                len(opening) + len(body),
            )
        ]
        lines += [
            b"%b: %b\r\n" % header for header in self.headers if header[0] not in _NOT_FORWARDED
        ]
        lines.append(b"\r\n")
        lines.append(opening)
        upstream.send(self, b"".join(lines), body)

    def answer_began(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Decide what becomes of the engine's answer."""
        self._status = status
        self._up_headers = headers
        self._quiet_s = 0.0
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in {
            HTTPStatus.UNAUTHORIZED,
            HTTPStatus.FORBIDDEN,
            HTTPStatus.TOO_MANY_REQUESTS,
        }:
            self._mode = _Mode.FAULT
        elif _is_event_stream(headers):
            self._mode = _Mode.STREAM
            self._events = EventStream(
                terminals=self.route.terminals,
                hide_usage=self._hide_usage,
                event_bytes_max=self._dispatch.settings.event_bytes_max,
            )
        else:
            self._mode = _Mode.WHOLE

    def answer_came(self, body: bytes) -> None:
        """Relay or hold a part of the answer."""
        self._quiet_s = 0.0
        mode = self._mode
        if mode is _Mode.STREAM:
            assert self._events is not None
            try:
                whole_events = self._events.feed(body)
            except StreamBroken as broken:
                self._drop_upstream()
                self._fault(broken.why, broken.message)
                return
            if whole_events:
                self._relay(whole_events)
            return
        if mode is _Mode.FLOW:
            self._relay(body)
            return
        self._held_bytes += len(body)
        if self._held_bytes <= self._dispatch.settings.answer_buffer_bytes:
            self._held.append(body)
        elif mode is _Mode.WHOLE:
            self._mode = _Mode.FLOW
            self._relay(b"".join((*self._held, body)))
            self._held.clear()

    def answer_ended(self) -> None:
        """Finish, or go elsewhere when the answer was a fault."""
        self._upstream = None
        mode = self._mode
        if mode is _Mode.STREAM:
            assert self._events is not None
            if self._events.cut_short:
                self._fault("cut_short", "The engine ended its stream before it was complete.")
                return
            self.usage = self._events.usage
            self._end_relay(Outcome.ANSWERED)
        elif mode is _Mode.WHOLE:
            self._return_whole()
        elif mode is _Mode.FLOW:
            self._end_relay(Outcome.ANSWERED)
        else:
            self._refused_by_engine()

    def answer_failed(self, why: str, message: str, *, reused: bool) -> None:
        """Go on elsewhere: this connection gives no (more) answer."""
        self._upstream = None
        if reused and self._pool is not None:
            # the engine had closed an idle connection: it has not seen the request
            self._connect(self._pool)
            return
        self._fault(why, message)

    # what becomes of it

    def _fault(self, why: str, message: str) -> None:
        """Retry on another instance, or tell the client that the answer ends here."""
        self._release_pool()
        if self._head_sent:
            self._break_off(why, message)
            return
        lane = self._lane
        assert lane is not None
        if self._attempts <= self._dispatch.settings.retries_max and self._others_left(lane):
            self._dispatch.metrics.retries[lane.name, why] += 1
            self._held.clear()
            self._held_bytes = 0
            self._attempt()
            return
        self._answer(
            error_answer(
                502,
                f"No instance of `{lane.name}` could answer: {message}",
                code="engine_failed",
                retry_after_s=2,
                should_retry=True,
            ),
            Outcome.FAILED,
        )

    def _others_left(self, lane: Lane) -> bool:
        return any(pool.instance_id not in self._tried for pool in lane.pools)

    def _refused_by_engine(self) -> None:
        """Retry a 5xx elsewhere; where there is no other, tell the client what the engine said."""
        lane = self._lane
        assert lane is not None
        status = self._status
        retry = self._attempts <= self._dispatch.settings.retries_max
        told = _error_message(b"".join(self._held))
        if status in {HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS}:
            tried = [*self._tried, self._pool.instance_id] if self._pool else self._tried
            others = any(pool.instance_id not in tried for pool in lane.pools)
            if not (retry and others):
                self._release_pool()
                busy = Refusal(
                    status=503,
                    message=f"All instances of `{lane.name}` are busy: {told}",
                    code="engine_busy",
                    retry_after_s=2,
                    should_retry=True,
                )
                self._answer(busy.answer(), Outcome.REFUSED)
                return
        self._fault(f"status_{status}", f"the engine answered {status}: {told}")

    def _release_pool(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.requests -= 1
            pool.tokens -= self._pool_tokens
            self._tried.append(pool.instance_id)

    def _drop_upstream(self) -> None:
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.cancel()

    def _return_whole(self) -> None:
        body = self._held[0] if len(self._held) == 1 else b"".join(self._held)
        self.usage = usage_at_end(body)
        self._note_first_byte()
        head = self._head(self._status, self._up_headers, b"content-length: %d\r\n" % len(body))
        self._head_sent = True
        self._connection.write(head + body)
        ok = self._status < HTTPStatus.BAD_REQUEST
        self._settle(Outcome.ANSWERED if ok else Outcome.INVALID)

    def _relay(self, body: bytes) -> None:
        framed = body if self._version_1_0 else b"%x\r\n%b\r\n" % (len(body), body)
        if not self._head_sent:
            self._head_sent = True
            self._note_first_byte()
            if self._version_1_0:
                self.keep_alive = False
                framing = b""
            else:
                framing = b"transfer-encoding: chunked\r\n"
            framed = self._head(self._status, self._up_headers, framing) + framed
        self._connection.write(framed)

    def _end_relay(self, outcome: Outcome) -> None:
        if not self._head_sent:
            self._relay(b"") if self._version_1_0 else self._begin_empty()
        if not self._version_1_0:
            self._connection.write(b"0\r\n\r\n")
        self._settle(outcome)

    def _begin_empty(self) -> None:
        self._head_sent = True
        self._note_first_byte()
        self._connection.write(
            self._head(self._status, self._up_headers, b"transfer-encoding: chunked\r\n")
        )

    def _break_off(self, why: str, message: str) -> None:
        """End an answer that has begun: an error event, no terminal event, no end of the body."""
        if self._mode is _Mode.STREAM:
            error = error_answer(502, message, code=f"stream_{why}").body
            kind = b"event: error\n" if self.route.name in {"responses", "messages"} else b""
            self._relay(b"%bdata: %b\n\n" % (kind, error))
        self.keep_alive = False
        self._settle(Outcome.BROKEN)

    def _answer(self, answer: Answer, outcome: Outcome) -> None:
        """Send an answer of our own."""
        self._status = answer.status
        self._note_first_byte()
        self._head_sent = True
        headers = [(b"content-type", b"application/json")]
        headers += [(name.encode(), value.encode()) for name, value in answer.headers]
        framing = b"content-length: %d\r\n" % len(answer.body)
        self._connection.write(self._head(answer.status, headers, framing) + answer.body)
        self._settle(outcome)

    def _head(self, status: int, headers: list[tuple[bytes, bytes]], framing: bytes) -> bytes:
        lines = [_STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status]
        lines += [b"%b: %b\r\n" % header for header in headers if header[0] not in _NOT_RETURNED]
        lines.append(framing)
        lines.append(b"x-request-id: %b\r\n" % self.request_id.encode())
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
        lines.append(b"\r\n")
        return b"".join(lines)

    def _note_first_byte(self) -> None:
        self.first_byte_s = self._dispatch.clock.monotonic_s()

    def _settle(self, outcome: Outcome) -> None:
        """Book the request and hand the connection its next turn."""
        if self._over:
            return
        self._over = True
        instance_id = self._pool.instance_id if self._pool else "-"
        self._release_pool()
        dispatch = self._dispatch
        lane = self._lane
        model = lane.name if lane is not None else "-"
        if lane is not None:
            lane.running -= 1
        self._book(dispatch, model, instance_id, outcome)
        self._body.clear()
        self._held.clear()
        self._connection.turn_over(self)

    def _book(self, dispatch: Dispatch, model: str, instance_id: str, outcome: Outcome) -> None:
        now_s = dispatch.clock.monotonic_s()
        total_s = now_s - self.began_s if self.began_s else 0.0
        ttft_s = self.first_byte_s - self.began_s if self.first_byte_s else 0.0
        metrics = dispatch.metrics
        metrics.requests[model, self.route.name, outcome.value] += 1
        usage = self.usage
        if outcome is Outcome.ANSWERED:
            metrics.duration[model].observe(total_s)
            metrics.ttft[model].observe(ttft_s)
        if usage is not None:
            metrics.tokens[model, "prompt"] += usage.prompt
            metrics.tokens[model, "completion"] += usage.completion
        dispatch.access_log.add(
            now_s + dispatch.wall_offset_s,
            f"{self.request_id} {self.identity.owner if self.identity else '-'} {self.route.name}"
            f" {model} {instance_id} {self._status} {outcome.value}"
            f" prompt={usage.prompt if usage else '-'}"
            f" completion={usage.completion if usage else '-'}"
            f" ttft_ms={ttft_s * 1000:.1f} total_ms={total_s * 1000:.1f}",
        )


def too_large(limit: int) -> Answer:
    """Return the 413."""
    return error_answer(
        413,
        f"The request body is larger than the {limit} bytes that this gateway takes.",
        code="request_too_large",
    )


def usage_at_end(body: bytes) -> Usage | None:
    """Return the usage of a complete answer: its last top-level record of that name.

    The quotes around the name cannot occur in text, which escapes them.
    """
    at = body.rfind(b'"usage":', max(0, len(body) - _USAGE_TAIL))
    if at < 0:
        return None
    text = body[at + len(b'"usage":') :].decode(errors="replace").lstrip()
    try:
        usage, _ = _DECODER.raw_decode(text)
    except ValueError:
        return None
    return read_usage({"usage": usage})


def _model(fields: Mapping[str, object]) -> str:
    model = fields.get("model")
    if not isinstance(model, str):
        raise RequestError(
            "The request names no model: `model` must be a string.",
            code="missing_required_parameter",
            param="model",
        )
    return model


def _answer_tokens(fields: Mapping[str, object]) -> int:
    for name in ("max_completion_tokens", "max_tokens", "max_output_tokens"):
        limit = fields.get(name)
        if isinstance(limit, int):
            return max(0, limit)
    return _USUAL_ANSWER_TOKENS


def _is_event_stream(headers: list[tuple[bytes, bytes]]) -> bool:
    return any(
        name == b"content-type" and value.lower().startswith(b"text/event-stream")
        for name, value in headers
    )


def _error_message(body: bytes) -> str:
    """Return what an engine's error answer says, shortened."""
    try:
        content = json.loads(body)
        error = content.get("error", content)
        message = error.get("message") if isinstance(error, dict) else error
        if isinstance(message, str):
            return message[:500]
    except (ValueError, AttributeError):
        pass
    return body[:200].decode(errors="replace") or "nothing"


_STATUS_LINES = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode())
    for status in HTTPStatus
}
