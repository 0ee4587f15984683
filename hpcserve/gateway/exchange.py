"""One inference request, from its head to its last byte, joined to one engine at a time.

::

    identify -> begin -> attempt -> answer begins -> relay -> settle
                  |        ^  |                        |
                  |        |  +-- another instance, before the first byte
                  +- wait -+----- another instance, after it: a continuation

Rules:

- Until the first byte has gone to the client, any fault of an instance is retried on another one,
  within `retries_max` and the model's retry budget; a stale connection costs no retry.
- An answer that is no stream is held until it is complete (up to `answer_buffer_bytes`), so that an
  engine that dies half-way is still retried.
- A stream that breaks after the first byte is continued on another instance where that is faithful
  (`resume.py`). Otherwise it ends with an error event and without its terminal event, and the
  connection is closed inside the body: a client notices by either.
- Whatever the engine says of its own key stays between us: its 401 is a fault, not the client's.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from hpcserve.errors import HpcserveError, RequestError
from hpcserve.gateway.dispatch import Dispatch, Lane
from hpcserve.gateway.envelope import Answer, Refusal, answer_to, error_answer
from hpcserve.gateway.forwarding import Headers, answer_head, request_head
from hpcserve.gateway.identity import Identity, unidentified
from hpcserve.gateway.peek import peek
from hpcserve.gateway.resume import Continuation, Transcript, obstacle
from hpcserve.gateway.routes import ROUTES, Route
from hpcserve.gateway.sse import EventStream, StreamBroken, is_plain
from hpcserve.gateway.upstream import AnswerHead, Pool, Upstream
from hpcserve.gateway.usage import Usage, usage_at_end

if TYPE_CHECKING:
    from hpcserve.gateway.connection import Connection

#: bytes of a prompt that make about one token
_BYTES_PER_TOKEN = 4
#: answer that a request without a limit is expected to get, tokens
_USUAL_ANSWER_TOKENS = 256
#: beginning of a body that tells conversations apart, bytes; most carry the same system prompt
_PREFIX_BYTES = 1024
#: bodies up to here are sent in one piece with their head, bytes
_JOINED_BYTES = 16_384

# How a request ended: a label of the metrics. Plain strings and numbers here and below, since
# looking up the members of an Enum costs as much as all else that is done with them.
ANSWERED: Final = "answered"
#: the engine or the gateway found the request wrong
INVALID: Final = "invalid"
#: no instance, no place, no key
REFUSED: Final = "refused"
#: no instance could answer it
FAILED: Final = "failed"
#: the answer ended early, and said so
BROKEN: Final = "broken"
CLIENT_GONE: Final = "client_gone"

# What becomes of the engine's answer.
#: nothing came yet
_NONE: Final = 0
#: events, checked and relayed as they come
_STREAM: Final = 1
#: held until complete
_WHOLE: Final = 2
#: too large to be held
_FLOW: Final = 3
#: a fault, to be retried elsewhere
_FAULT: Final = 4

_EVENT_STREAM: Final = b"text/event-stream"
#: an engine that says so is full, not broken
_BUSY = frozenset({HTTPStatus.SERVICE_UNAVAILABLE.value, HTTPStatus.TOO_MANY_REQUESTS.value})
#: an engine does not know our key: nothing that the client could mend
_ESTRANGED = frozenset({HTTPStatus.UNAUTHORIZED.value, HTTPStatus.FORBIDDEN.value})


class Exchange:
    """One request and its answer."""

    # Defaults stand in the class: most requests touch few of them, and setting all costs a
    # microsecond each time.
    identity: Identity | None = None
    #: decided before the body was there; sent once the request is complete
    refusal: Answer | None = None
    #: the whole request has arrived
    complete = False
    #: s that the client allows for a cold model
    wait_s = 0.0
    _body = b""
    _body_bytes = 0
    _fields: Mapping[str, object] = {}
    _began_s = 0.0
    _first_byte_s = 0.0
    _usage: Usage | None = None
    _lane: Lane | None = None
    _pool: Pool | None = None
    _tokens = 0
    _upstream: Upstream | None = None
    _tried: tuple[str, ...] = ()
    _attempts = 0
    _resumes = 0
    _mode: int = _NONE
    _status = 0
    _engine_headers: Headers = []  # noqa: RUF012 - never changed
    _held_bytes = 0
    #: s that the wait for an instance may still last; None: it does not wait
    _waits_s: float | None = None
    _opening = b""
    _events: EventStream | None = None
    _transcript: Transcript | None = None
    _continuation: Continuation | None = None
    _head_sent = False
    #: a stream flows whose next whole chunk may pass as it is
    _steady = False
    _over = False
    _paused = False
    #: s since something moved
    _quiet_s = 0.0

    def __init__(
        self,
        dispatch: Dispatch,
        connection: Connection,
        route: Route,
        headers: Headers,
        *,
        passed: bytes,
        version_1_0: bool,
        keep_alive: bool,
    ) -> None:
        """Take where it came from, and its head."""
        self._dispatch = dispatch
        self._connection = connection
        self.route = route
        self.headers = headers
        #: lines of the head that go to the engine
        self.passed = passed
        self._version_1_0 = version_1_0
        self.keep_alive = keep_alive
        self.request_id = dispatch.next_request_id()
        self._parts: list[bytes] = []
        self._held: list[bytes] = []

    @property
    def repeatable(self) -> bool:
        """Whether the next request on the connection may have the same head."""
        return self.complete and self.keep_alive and not self._version_1_0

    # the client's side

    def body_came(self, data: bytes) -> None:
        """Take a piece of the request's body."""
        if self.refusal is not None:
            return
        self._body_bytes += len(data)
        limit = self._dispatch.settings.max_body_bytes
        if self._body_bytes > limit:
            self.refuse_later(too_large(limit))
            self._parts.clear()
            return
        self._parts.append(data)

    def refuse_later(self, answer: Answer) -> None:
        """Decide on a refusal while the request still arrives."""
        if self.refusal is None:
            self.refusal = answer

    def begin(self) -> None:
        """Serve the request: it is complete, and its turn on the connection has come."""
        dispatch = self._dispatch
        self._began_s = dispatch.monotonic_s()
        if self.refusal is not None:
            self._answer(self.refusal, REFUSED)
            return
        if self.identity is None:
            self._connection.look_up(self)
            return
        self._body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        try:
            self._fields = fields = peek(self._body)
            model = _model(fields)
        except RequestError as error:
            self._answer(answer_to(error), INVALID)
            return
        lane = dispatch.lanes.get(model)
        if lane is None:
            self._answer(dispatch.unknown_model(model).answer(), INVALID)
            return
        self._lane = lane
        lane.asked = True
        lane.requests += 1
        if fields.get("stream") is True and self.route.counts_on_request:
            self._prepare_stream(fields)
        self._tokens = self._body_bytes // _BYTES_PER_TOKEN + _answer_tokens(fields)
        if len(lane.queue):
            # others wait already: no overtaking
            self._wait(dispatch.settings.queue_timeout_s)
            return
        self._attempt()

    def _prepare_stream(self, fields: Mapping[str, object]) -> None:
        """Ask the engine for what the books and a continuation need, besides what the client asks.

        It goes behind the opening brace: whatever the client wrote comes later and wins.
        """
        asked = b"{"
        if "stream_options" not in fields:
            asked += b'"stream_options":{"include_usage":true},'
        if obstacle(fields) is None:
            hide = not fields.get("return_token_ids")
            self._transcript = Transcript(hide_ids=hide)
            if hide and "return_token_ids" not in fields:
                asked += b'"return_token_ids":true,'
        if asked != b"{":
            self._opening = asked

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
            self._answer(answer_to(error), REFUSED)

    def client_left(self) -> None:
        """Stop everything: nobody reads the answer any more."""
        if not self._over:
            self._drop_upstream()
            self._settle(CLIENT_GONE)

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
        """Look for silence: of the engine, of a client that does not read, of the queue."""
        if self._over or self._lane is None:
            return
        self._quiet_s += elapsed_s
        settings = self._dispatch.settings
        if self._paused:
            if self._quiet_s > settings.slow_reader_s:
                self._connection.abort()
        elif self._waits_s is not None:
            self._sweep_wait(elapsed_s)
        elif self._quiet_s > settings.stall_timeout_s and self._upstream is not None:
            self._drop_upstream()
            self._fault("stalled", f"The engine was silent for {self._quiet_s:.0f} s.")

    # waiting

    def _wait(self, seconds: float) -> None:
        """Queue for an instance; `seat_free` or `sweep` ends it."""
        lane = self._lane
        assert lane is not None
        assert self.identity is not None
        if not lane.queue.put(self.identity.owner, self, float(self._tokens)):
            self._give_up(self._dispatch.full(lane))
            return
        self._waits_s = seconds

    def seat_free(self, pool: Pool) -> None:
        """Go on at *pool*: the wait is over."""
        self._waits_s = None
        self._quiet_s = 0.0
        assert self._lane is not None
        waited_s = self._dispatch.monotonic_s() - self._began_s
        self._dispatch.metrics.queue_wait[self._lane.name].observe(waited_s)
        self._attempt_at(pool)

    def _sweep_wait(self, elapsed_s: float) -> None:
        assert self._waits_s is not None
        assert self._lane is not None
        self._waits_s -= elapsed_s
        if self._waits_s <= 0:
            self._leave_queue()
            lane = self._lane
            dispatch = self._dispatch
            self._give_up(dispatch.full(lane) if lane.pools else dispatch.starting(lane))
        elif self._head_sent and self._quiet_s >= self._dispatch.settings.comment_s:
            self._quiet_s = 0.0
            self._relay(b": waiting for an instance\n\n")

    def _leave_queue(self) -> None:
        if self._waits_s is not None and self._lane is not None and self.identity is not None:
            self._waits_s = None
            self._lane.queue.remove(self.identity.owner, self)

    def _give_up(self, refusal: Refusal) -> None:
        if self._head_sent:
            self._break_off(refusal.code, refusal.message)
        else:
            self._answer(refusal.answer(), REFUSED)

    # the engine's side

    def _attempt(self) -> None:
        lane = self._lane
        assert lane is not None
        dispatch = self._dispatch
        affinity = self._affinity() if dispatch.wants_affinity else None
        pool = dispatch.choose(lane, self._tokens, self._tried, affinity)
        if pool is not None:
            self._attempt_at(pool)
        elif self._continuation is not None:
            self._tried = ()
            self._wait(dispatch.settings.resume_wait_s)
        elif lane.pools:
            self._wait(dispatch.settings.queue_timeout_s)
        elif self.wait_s > 0:
            self._hold(lane)
        else:
            self._answer(dispatch.starting(lane).answer(), REFUSED)

    def _affinity(self) -> int:
        """Return what this request shares with others of its conversation.

        The session that the client names, or the beginning of the body: a conversation repeats all
        that was said before, so its requests begin alike.
        """
        for name in ("session_id", "prompt_cache_key"):
            session = self._fields.get(name)
            if isinstance(session, str):
                return zlib.crc32(session.encode())
        return zlib.crc32(self._body[:_PREFIX_BYTES])

    def _hold(self, lane: Lane) -> None:
        """Wait for a cold model as the client asked; a stream is kept alive meanwhile."""
        if self._fields.get("stream") is True:
            self._status = HTTPStatus.OK.value
            self._engine_headers = [(b"content-type", _EVENT_STREAM)]
            standing = lane.view.standing
            self._relay(f": {lane.name} is {standing.state}\n\n".encode())
        self._wait(min(self.wait_s, self._dispatch.settings.wait_max_s))

    def _attempt_at(self, pool: Pool) -> None:
        self._pool = pool
        pool.requests += 1
        pool.tokens += self._tokens
        self._attempts += 1
        upstream = pool.take()
        if upstream is None:
            pool.open(self._opened)
        else:
            self._send(upstream)

    def _opened(self, upstream: Upstream | None, problem: str) -> None:
        if self._over:
            if upstream is not None:
                upstream.cancel()
        elif upstream is None:
            self._fault("unreachable", problem)
        else:
            self._send(upstream)

    def _send(self, upstream: Upstream) -> None:
        pool = self._pool
        assert pool is not None
        self._upstream = upstream
        self._mode = _NONE
        self._quiet_s = 0.0
        opening, body, path = self._opening, self._body, self.route.path
        if self._continuation is not None:
            opening, body, path = b"", self._continuation.body(), _COMPLETIONS.path
        skipped = body.index(b"{") + 1 if opening else 0
        head = request_head(
            path,
            authority=pool.authority,
            key=pool.key,
            request_id=self.request_id,
            length=len(opening) + len(body) - skipped,
            passed=self.passed,
        )
        if len(body) <= _JOINED_BYTES:
            upstream.send(self, head + opening + body[skipped:])
        else:
            upstream.send(self, head + opening, memoryview(body)[skipped:])
        if self._paused:
            upstream.pause()

    def answer_began(self, status: int, headers: Headers) -> None:
        """Decide what becomes of the engine's answer."""
        self._quiet_s = 0.0
        self._steady = False
        is_stream = False
        for name, value in headers:
            if name == b"content-type":
                is_stream = value.startswith(_EVENT_STREAM)
        if (
            status >= HTTPStatus.INTERNAL_SERVER_ERROR
            or status in _BUSY
            or status in _ESTRANGED
            or (self._head_sent and not is_stream)
        ):
            self._status = self._status if self._head_sent else status
            self._mode = _FAULT
            return
        if not self._head_sent:
            self._status = status
            self._engine_headers = headers
        if is_stream:
            self._mode = _STREAM
            self._events = EventStream(
                terminals=self.route.terminals,
                hide_usage=self._continuation is None and "stream_options" not in self._fields,
                event_bytes_max=self._dispatch.settings.event_bytes_max,
            )
        else:
            self._mode = _WHOLE

    def answer_came(self, body: bytes) -> None:
        """Relay or hold a part of the answer."""
        self._quiet_s = 0.0
        mode = self._mode
        if mode == _STREAM:
            assert self._events is not None
            try:
                events = self._events.feed(body)
                if self._continuation is not None:
                    events = self._continuation.translate(events)
                elif self._transcript is not None and events:
                    events = self._transcript.note(events)
            except StreamBroken as broken:
                self._drop_upstream()
                self._fault(broken.why, broken.message)
                return
            if events:
                self._relay(events)
            self._steady = (
                self._continuation is None
                and self._head_sent
                and not self._version_1_0
                and not self._events.partial
            )
            return
        if mode == _FLOW:
            self._relay(body)
            return
        self._held_bytes += len(body)
        if self._held_bytes <= self._dispatch.settings.answer_buffer_bytes:
            self._held.append(body)
        elif mode == _WHOLE:
            self._mode = _FLOW
            self._relay(b"".join((*self._held, body)))
            self._held.clear()

    def chunk_came(self, chunk: bytes, begin: int) -> bool:
        """Relay a chunk as the engine framed it, if it is one plain event of a sound stream."""
        if not (self._steady and is_plain(chunk, begin)):
            return False
        if self._transcript is not None:
            noted = self._transcript.note_plain(chunk, begin)
            if noted is None:
                return False
            chunk = noted
        self._quiet_s = 0.0
        self._connection.write(chunk)
        return True

    def answer_whole(self, head: AnswerHead, body: bytes) -> None:
        """Return a sound answer that came at once."""
        if self._head_sent or len(body) > self._dispatch.settings.answer_buffer_bytes:
            self.answer_began(head.status, head.headers)
            self.answer_came(body)
            self.answer_ended()
            return
        self._upstream = None
        self._status = head.status
        self._engine_headers = head.headers
        self._return_whole(body)

    def answer_ended(self) -> None:
        """Finish, or go elsewhere when the answer was a fault."""
        self._upstream = None
        mode = self._mode
        if mode == _WHOLE:
            self._return_whole(self._held[0] if len(self._held) == 1 else b"".join(self._held))
        elif mode == _STREAM:
            assert self._events is not None
            if self._events.cut_short:
                self._fault("cut_short", "The engine ended its stream before it was complete.")
                return
            self._usage = self._events.usage
            if self._continuation is not None:
                self._usage = self._continuation.usage
            self._end_relay()
        elif mode == _FLOW:
            self._end_relay()
        else:
            said = _error_message(b"".join(self._held))
            self._fault(f"status_{self._status}", f"The engine answered {self._status}: {said}")

    def answer_failed(self, why: str, message: str, *, reused: bool) -> None:
        """Go on elsewhere: this connection gives no (more) answer."""
        self._upstream = None
        if reused and self._pool is not None:
            # the engine had closed an idle connection: it has not seen the request
            self._pool.open(self._opened)
            return
        self._fault(why, message)

    # what becomes of it

    def _fault(self, why: str, message: str) -> None:
        """Retry on another instance, continue there, or tell the client that it ends here."""
        lane, pool = self._lane, self._pool
        assert lane is not None
        dispatch = self._dispatch
        busy = self._mode == _FAULT and self._status in _BUSY
        if pool is not None:
            if not busy:
                dispatch.failed(lane, pool)
            self._tried = (*self._tried, pool.instance_id)
        self._release_pool()
        self._held.clear()
        self._held_bytes = 0
        if self._head_sent and (self._transcript is not None or self._mode == _STREAM):
            self._continue_elsewhere(why, message)
        elif self._head_sent:
            self._break_off(why, message)
        elif (
            self._attempts <= dispatch.settings.retries_max
            and any(pool.instance_id not in self._tried for pool in lane.pools)
            and dispatch.may_retry(lane)
        ):
            dispatch.metrics.retries[lane.name, why] += 1
            self._attempt()
        else:
            self._fail(lane, message, busy=busy)

    def _fail(self, lane: Lane, message: str, *, busy: bool) -> None:
        if busy:
            answer = error_answer(
                503,
                f"All instances of `{lane.name}` are busy: {message}",
                code="engine_busy",
                retry_after_s=self._dispatch.settings.queue_retry_s,
                should_retry=True,
            )
        else:
            answer = error_answer(
                502,
                f"No instance of `{lane.name}` could answer: {message}",
                code="engine_failed",
                retry_after_s=self._dispatch.settings.queue_retry_s,
                should_retry=True,
            )
        self._answer(answer, REFUSED if busy else FAILED)

    def _continue_elsewhere(self, why: str, message: str) -> None:
        """Go on with a stream whose instance is lost, where that is faithful."""
        lane, transcript = self._lane, self._transcript
        assert lane is not None
        metrics = self._dispatch.metrics
        if transcript is not None and not transcript.head:
            # nothing of the engine's has been sent, only the head and comments of a held stream
            self._resumes += 1
            if self._resumes <= self._dispatch.settings.resumes_max:
                self._attempt()
                return
        elif transcript is not None and transcript.ready:
            self._resumes += 1
            if self._resumes <= self._dispatch.settings.resumes_max:
                self._continuation = Continuation(
                    transcript, self.route, self._fields, context_tokens=lane.view.context_tokens
                )
                metrics.resumed[lane.name, why] += 1
                if transcript.finished or self._continuation.left <= 0:
                    self._relay(self._continuation.ending())
                    self._usage = self._continuation.usage
                    self._end_relay()
                else:
                    self._attempt()
                return
        hindrance = obstacle(self._fields)
        because = f" It cannot be continued elsewhere ({hindrance})." if hindrance else ""
        self._break_off(why, message + because)

    def _release_pool(self) -> None:
        pool, self._pool = self._pool, None
        if pool is None:
            return
        pool.requests -= 1
        pool.tokens -= self._tokens
        lane = self._lane
        if lane is not None and len(lane.queue):
            self._dispatch.serve_waiting(lane)

    def _drop_upstream(self) -> None:
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.cancel()

    def _return_whole(self, body: bytes) -> None:
        self._usage = usage_at_end(body)
        self._first_byte_s = self._dispatch.monotonic_s()
        head = answer_head(
            self._status,
            self._engine_headers,
            framing=b"content-length: %d\r\n" % len(body),
            request_id=self.request_id,
            keep_alive=self.keep_alive,
        )
        self._head_sent = True
        self._connection.write(head + body)
        self._settle(ANSWERED if self._status < HTTPStatus.BAD_REQUEST else INVALID)

    def _relay(self, body: bytes) -> None:
        framed = body if self._version_1_0 else b"%x\r\n%b\r\n" % (len(body), body)
        if not self._head_sent:
            framed = self._open_answer() + framed
        self._connection.write(framed)

    def _open_answer(self) -> bytes:
        """Return the head of an answer whose length nobody knows yet."""
        self._head_sent = True
        self._first_byte_s = self._dispatch.monotonic_s()
        if self._version_1_0:
            # its end is the end of the connection
            self.keep_alive = False
        return answer_head(
            self._status,
            self._engine_headers,
            framing=b"" if self._version_1_0 else b"transfer-encoding: chunked\r\n",
            request_id=self.request_id,
            keep_alive=self.keep_alive,
        )

    def _end_relay(self) -> None:
        head = b"" if self._head_sent else self._open_answer()
        self._connection.write(head if self._version_1_0 else head + b"0\r\n\r\n")
        self._settle(ANSWERED)

    def _break_off(self, why: str, message: str) -> None:
        """End an answer that has begun: an error event, no terminal event, no end of the body."""
        if self._mode != _FLOW:
            error = error_answer(502, message, code=f"stream_{why}").body
            kind = b"" if self.route.counts_on_request else b"event: error\n"
            self._relay(b"%bdata: %b\n\n" % (kind, error))
        self.keep_alive = False
        self._settle(BROKEN)

    def _answer(self, answer: Answer, outcome: str) -> None:
        """Send an answer of our own."""
        self._status = answer.status
        self._first_byte_s = self._dispatch.monotonic_s()
        self._head_sent = True
        headers = [(b"content-type", b"application/json")]
        headers += [(name.encode(), value.encode()) for name, value in answer.headers]
        head = answer_head(
            answer.status,
            headers,
            framing=b"content-length: %d\r\n" % len(answer.body),
            request_id=self.request_id,
            keep_alive=self.keep_alive,
        )
        self._connection.write(head + answer.body)
        self._settle(outcome)

    def _settle(self, outcome: str) -> None:
        """Book the request and hand the connection its next turn."""
        if self._over:
            return
        self._over = True
        self._leave_queue()
        pool = self._pool
        if outcome == ANSWERED and pool is not None:
            pool.faults = 0
        self._release_pool()
        lane = self._lane
        if lane is not None:
            lane.requests -= 1
        self._book(lane.name if lane else "-", pool.instance_id if pool else "-", outcome)
        self._held.clear()
        self._connection.turn_over(self)

    def _book(self, model: str, instance_id: str, outcome: str) -> None:
        dispatch = self._dispatch
        now_s = dispatch.monotonic_s()
        total_s = now_s - self._began_s if self._began_s else 0.0
        ttft_s = self._first_byte_s - self._began_s if self._first_byte_s else 0.0
        usage = self._usage
        metrics = dispatch.metrics
        metrics.requests[model, self.route.name, outcome] += 1
        if outcome == ANSWERED:
            metrics.duration[model].observe(total_s)
            metrics.ttft[model].observe(ttft_s)
        if usage is not None:
            metrics.tokens[model, "prompt"] += usage.prompt
            metrics.tokens[model, "completion"] += usage.completion
        dispatch.access_log.add(
            now_s + dispatch.wall_offset_s,
            "%s %s %s %s %s %d %s prompt=%s completion=%s ttft_ms=%.1f total_ms=%.1f"  # noqa: UP031 - twice as fast as an f-string of as many parts
            % (
                self.request_id.decode(),
                self.identity.owner if self.identity else "-",
                self.route.name,
                model,
                instance_id,
                self._status,
                outcome,
                usage.prompt if usage else "-",
                usage.completion if usage else "-",
                ttft_s * 1000,
                total_s * 1000,
            ),
        )


def too_large(limit: int) -> Answer:
    """Return the 413."""
    return error_answer(
        413,
        f"The request body is larger than the {limit} bytes that this gateway takes.",
        code="request_too_large",
    )


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
    for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
        limit = fields.get(name)
        if isinstance(limit, int):
            return max(0, limit)
    return _USUAL_ANSWER_TOKENS


def _error_message(body: bytes) -> str:
    """Return what an engine's error answer says, shortened."""
    try:
        content = json.loads(body)
    except ValueError:
        content = None
    error = content.get("error", content) if isinstance(content, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    if isinstance(message, str):
        return message[:500]
    return body[:200].decode(errors="replace") or "nothing"


_COMPLETIONS = ROUTES[b"/v1/completions"]
