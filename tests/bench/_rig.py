"""The other side of the gateway benches: instant engines and a load generator, on one core.

One epoll loop plays both, so that it costs about 15 us a request and the proxy under test is what
binds. Engines answer at once: a small JSON answer, or a stream of chunks at a fixed pace whose
first bytes are the time at which they were sent, so that each chunk's delay is exact.
"""

from __future__ import annotations

import heapq
import re
import select
import socket
import time
from dataclasses import dataclass, field

_LENGTH = re.compile(rb"(?i)content-length: (\d+)")
_ANSWER = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,'
    b'"message":{"role":"assistant","content":"%b"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":20,"completion_tokens":30,"total_tokens":50}}' % (b"x" * 170)
)
_SMALL = (
    b"HTTP/1.1 200 OK\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\nserver: uvicorn\r\n"
    b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(_ANSWER)
) + _ANSWER
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\nserver: uvicorn\r\n"
    b"content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
_STAMP = re.compile(rb'"t":(\d+)')
_TERMINAL = b"data: [DONE]\n\n"


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _event() -> bytes:
    stamp = time.monotonic_ns() // 1000
    return (
        b'data: {"t":%d,"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m",'
        b'"choices":[{"index":0,"delta":{"content":" token%b"},"finish_reason":null}]}\n\n'
        % (stamp, b"y" * 20)
    )


@dataclass(slots=True)
class _Engine:
    """One connection of an engine."""

    sock: socket.socket
    data: bytes = b""


@dataclass(slots=True)
class _Client:
    """One connection of the generator."""

    sock: socket.socket
    request: bytes
    streams: bool
    data: bytes = b""
    sent_at: float = 0.0
    first: bool = True


@dataclass(slots=True)
class Sample:
    """What one run gave."""

    seconds: float
    requests: int = 0
    chunks: int = 0
    #: ms, of whole requests
    latency_ms: list[float] = field(default_factory=list)
    #: ms, to the first byte
    ttft_ms: list[float] = field(default_factory=list)
    #: ms, of each chunk on its way through the proxy
    relay_ms: list[float] = field(default_factory=list)
    errors: int = 0

    @property
    def requests_per_s(self) -> float:
        """Return the rate."""
        return self.requests / self.seconds


def quantile(values: list[float], at: float) -> float:
    """Return the value below which a share *at* of *values* lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(at * len(ordered)))] if ordered else float("nan")


class Rig:
    """Engines that listen, and clients that ask."""

    def __init__(self, engines: int) -> None:
        """Open *engines* listening sockets on loopback."""
        self._poll = select.epoll()
        self._listeners: dict[int, socket.socket] = {}
        self._engines: dict[int, _Engine] = {}
        self._clients: dict[int, _Client] = {}
        self._due: list[tuple[float, int, int]] = []
        # one buffer for all reads: a fresh large one each time costs more than the read
        self._buffer = memoryview(bytearray(1 << 20))
        self.ports = []
        #: tokens of a stream, and s between two
        self.tokens = 64
        self.pace_s = 0.02
        for _ in range(engines):
            listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
            listener.setblocking(False)
            self._listeners[listener.fileno()] = listener
            self._poll.register(listener, select.EPOLLIN)
            self.ports.append(listener.getsockname()[1])

    def connect(self, port: int, count: int, request: bytes, *, streams: bool) -> None:
        """Open *count* connections to the proxy; they begin with `run`."""
        for _ in range(count):
            sock = socket.create_connection(("127.0.0.1", port))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setblocking(False)
            self._clients[sock.fileno()] = _Client(sock, request, streams)
            self._poll.register(sock, select.EPOLLIN)

    def run(self, seconds: float, *, warm_s: float = 0.5) -> Sample:
        """Load the proxy for *warm_s* and then *seconds*; close the clients."""
        sample = Sample(seconds)
        for client in self._clients.values():
            self._ask(client)
        begin = time.monotonic() + warm_s
        self.serve(warm_s, Sample(warm_s))
        sample.seconds = time.monotonic() - begin
        self.serve(seconds, sample)
        sample.seconds = time.monotonic() - begin
        self.disconnect()
        return sample

    def disconnect(self) -> None:
        """Close the clients."""
        for client in self._clients.values():
            self._poll.unregister(client.sock)
            client.sock.close()
        self._clients.clear()

    def serve(self, seconds: float, sample: Sample) -> None:
        """Run the loop for *seconds*."""
        end = time.monotonic() + seconds
        while (now := time.monotonic()) < end:
            wait = end - now
            if self._due:
                wait = min(wait, max(0.0, self._due[0][0] - now))
            for number, _ in self._poll.poll(wait, 512):
                client = self._clients.get(number)
                if client is not None:
                    self._client_reads(client, sample)
                elif number in self._engines:
                    self._engine_reads(number)
                elif number in self._listeners:
                    self._accept(self._listeners[number])
            self._send_due()

    def _accept(self, listener: socket.socket) -> None:
        try:
            while True:
                sock, _ = listener.accept()
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setblocking(False)
                self._engines[sock.fileno()] = _Engine(sock)
                self._poll.register(sock, select.EPOLLIN)
        except BlockingIOError:
            return

    def _engine_reads(self, number: int) -> None:
        engine = self._engines[number]
        try:
            data = self._buffer[: engine.sock.recv_into(self._buffer)].tobytes()
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if not data:
            self._poll.unregister(engine.sock)
            engine.sock.close()
            del self._engines[number]
            return
        if engine.data:
            data = engine.data + data
        head = data.find(b"\r\n\r\n")
        if head >= 0:
            length = _LENGTH.search(data, 0, head + 2)
            if len(data) >= head + 4 + (int(length[1]) if length else 0):
                engine.data = b""
                self._answer(number, engine, data)
                return
        engine.data = data

    def _answer(self, number: int, engine: _Engine, request: bytes) -> None:
        # the flag stands at the end of the generator's bodies, and proxies may re-serialise them
        if re.search(rb'"stream": ?true', request[-4096:]):
            engine.sock.send(_STREAM_HEAD + _chunk(_event()))
            heapq.heappush(self._due, (time.monotonic() + self.pace_s, number, self.tokens - 1))
        else:
            engine.sock.send(_SMALL)

    def _send_due(self) -> None:
        now = time.monotonic()
        while self._due and self._due[0][0] <= now:
            due, number, left = heapq.heappop(self._due)
            engine = self._engines.get(number)
            if engine is None:
                continue
            try:
                if left > 0:
                    engine.sock.send(_chunk(_event()))
                    heapq.heappush(self._due, (due + self.pace_s, number, left - 1))
                else:
                    engine.sock.send(_chunk(_TERMINAL) + b"0\r\n\r\n")
            except OSError:
                continue

    def _ask(self, client: _Client) -> None:
        client.sent_at = time.monotonic()
        client.first = True
        client.data = b""
        left = client.request
        while left:
            try:
                left = left[client.sock.send(left) :]
            except BlockingIOError:
                # a long prompt: the proxy runs on the other core and takes it while this one waits
                select.select((), (client.sock,), (), 0.05)

    def _client_reads(self, client: _Client, sample: Sample) -> None:
        try:
            data = self._buffer[: client.sock.recv_into(self._buffer)].tobytes()
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if not data:
            sample.errors += 1
            self._poll.unregister(client.sock)
            del self._clients[client.sock.fileno()]
            return
        now = time.monotonic()
        if client.first:
            client.first = False
            sample.ttft_ms.append((now - client.sent_at) * 1000)
        if client.streams:
            if self._stream_read(client, data, now, sample):
                self._finished(client, now, sample)
            return
        client.data += data
        head = client.data.find(b"\r\n\r\n")
        if head < 0:
            return
        length = _LENGTH.search(client.data, 0, head + 2)
        if length is None or len(client.data) >= head + 4 + int(length[1]):
            if not client.data.startswith(b"HTTP/1.1 200"):
                sample.errors += 1
            self._finished(client, now, sample)

    def _stream_read(self, client: _Client, data: bytes, now: float, sample: Sample) -> bool:
        for stamp in _STAMP.findall(data):
            sample.chunks += 1
            sample.relay_ms.append(now * 1000 - int(stamp) / 1000)
        tail = client.data[-8:] + data[-32:]
        client.data = tail
        return tail.endswith(b"0\r\n\r\n")

    def _finished(self, client: _Client, now: float, sample: Sample) -> None:
        sample.requests += 1
        sample.latency_ms.append((now - client.sent_at) * 1000)
        self._ask(client)
