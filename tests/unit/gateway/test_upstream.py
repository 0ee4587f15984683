"""Answers of engines in every cut that a network can make of them."""

from __future__ import annotations

import pytest

from hpcserve.config.tree import Gateway as GatewaySettings
from hpcserve.gateway.resume import Transcript
from hpcserve.gateway.sse import is_plain
from hpcserve.gateway.upstream import Pool, Upstream

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


class Clock:
    def monotonic_s(self):
        return 0.0


class Transport:
    def is_closing(self):
        return False

    def abort(self):
        pass

    def close(self):
        pass


class Receiver:
    """Takes whole chunks as they are, as an exchange does with plain events."""

    def __init__(self, *, direct: bool) -> None:
        self.direct = direct
        self.body = b""
        self.unparsed = 0
        self.whole = 0
        self.ended = 0
        self.failed = 0

    def answer_began(self, status, headers):
        assert status == 200

    def answer_came(self, body):
        self.body += body

    def chunk_came(self, chunk, begin):
        if self.direct:
            self.body += chunk[begin:-2]
            self.unparsed += 1
        return self.direct

    def answer_whole(self, head, body):
        assert head.status == 200
        self.body += body
        self.whole += 1
        self.ended += 1

    def answer_ended(self):
        self.ended += 1

    def answer_failed(self, why, message, *, reused):
        self.failed += 1


def framed(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)


def connection(receiver: Receiver) -> tuple[Upstream, Pool]:
    pool = Pool("i", host="h", port=1, key="k", clock=Clock(), settings=GatewaySettings())
    upstream = Upstream(pool)
    upstream.connection_made(Transport())
    upstream.send(receiver)
    return upstream, pool


# data that looks like framing, and a chunk whose size line looks like the end of another
PARTS = (b"data: {}\n\n", b"5\r\nhello\r\n", b"\r\n", b"x" * 300, b"0\r\n\r\n", b"a")


@pytest.mark.parametrize("direct", [True, False])
def test_every_cut_in_two_or_three_gives_the_same_body(direct):
    whole = framed(*PARTS) + b"0\r\n\r\n"
    for first in range(1, len(whole)):
        for second in (first, min(first + 1, len(whole)), min(first + 15, len(whole))):
            receiver = Receiver(direct=direct)
            upstream, pool = connection(receiver)
            for piece in (HEAD, whole[:first], whole[first:second], whole[second:]):
                if piece:
                    upstream.data_received(piece)
            assert receiver.body == b"".join(PARTS), (first, second)
            assert (receiver.ended, receiver.failed) == (1, 0)
            assert pool.take() is upstream


def test_whole_chunks_pass_unparsed():
    receiver = Receiver(direct=True)
    upstream, pool = connection(receiver)
    upstream.data_received(HEAD + framed(b"first"))
    for part in PARTS:
        upstream.data_received(framed(part))
    assert receiver.unparsed == len(PARTS)
    assert receiver.body == b"first" + b"".join(PARTS)
    upstream.data_received(b"0\r\n\r\n")
    assert receiver.ended == 1
    assert pool.take() is upstream


def test_a_second_answer_on_the_connection_begins_with_its_head():
    receiver = Receiver(direct=True)
    upstream, pool = connection(receiver)
    upstream.data_received(HEAD + framed(b"one"))
    upstream.data_received(framed(b"two"))
    upstream.data_received(b"0\r\n\r\n")
    assert pool.take() is upstream
    again = Receiver(direct=True)
    upstream.send(again)
    upstream.data_received(framed(b"no head"))
    assert again.failed == 1


@pytest.mark.parametrize("size", [b"-1", b"+5", b"0x5", b"5_0", b" 5", b"zz"])
def test_a_size_that_is_none_breaks_the_answer(size):
    receiver = Receiver(direct=True)
    upstream, _ = connection(receiver)
    upstream.data_received(HEAD + framed(b"one"))
    upstream.data_received(size + b"\r\nhello\r\n")
    assert receiver.failed == 1
    assert receiver.body == b"one"


def answer(body: bytes, *, headers: bytes = b"", length: int | None = None) -> bytes:
    return b"HTTP/1.1 200 OK\r\nserver: x\r\ncontent-length: %d\r\n%b\r\n%b" % (
        len(body) if length is None else length,
        headers,
        body,
    )


def after_one_answer() -> tuple[Receiver, Upstream, Pool]:
    upstream, pool = connection(Receiver(direct=True))
    upstream.data_received(answer(b"first"))
    assert pool.take() is upstream
    receiver = Receiver(direct=True)
    upstream.send(receiver)
    return receiver, upstream, pool


def test_an_answer_with_the_head_of_the_last_one_passes_unparsed():
    receiver, upstream, pool = after_one_answer()
    upstream.data_received(answer(b"another length"))
    assert (receiver.whole, receiver.body) == (1, b"another length")
    assert pool.take() is upstream


def test_an_answer_like_the_last_one_in_two_reads_is_parsed():
    data = answer(b"second")
    for cut in range(1, len(data)):
        receiver, upstream, pool = after_one_answer()
        upstream.data_received(data[:cut])
        upstream.data_received(data[cut:])
        assert (receiver.whole, receiver.ended, receiver.body) == (0, 1, b"second")
        assert pool.take() is upstream


@pytest.mark.parametrize(
    "data",
    [
        answer(b"second") + b"HTTP/1.1 200 OK\r\n",
        answer(b"second", length=3),
        answer(b"second", headers=b"connection: close\r\n"),
    ],
)
def test_an_answer_that_is_not_quite_like_the_last_one_ends_the_connection(data):
    receiver, upstream, pool = after_one_answer()
    upstream.data_received(data)
    assert (receiver.whole, receiver.ended + receiver.failed) == (0, 1)
    assert pool.take() is None


TOKEN = (
    b'data: {"id":"c","choices":[{"index":0,"delta":{"content":" a"},"finish_reason":null%b}]}\n\n'
)


@pytest.mark.parametrize(
    ("event", "plain"),
    [
        (TOKEN % b"", True),
        (TOKEN % b',"token_ids":[1,2]', True),
        ((TOKEN % b"").replace(b" a", b'\\"error\\":'), True),
        ((TOKEN % b"").replace(b" a", b""), False),
        ((TOKEN % b"").replace(b"null", b'"stop"'), False),
        ((TOKEN % b"").replace(b"content", b"reasoning"), False),
        ((TOKEN % b"").replace(b'{"content":" a"}', b'{"tool_calls":[{}]}'), False),
        ((TOKEN % b',"usage":{"prompt_tokens":1}'), False),
        (b'data: {"error":{"message":"x"},"finish_reason":null}\n\n', False),
        ((TOKEN % b"") * 2, False),
        ((TOKEN % b"")[:-1], False),
        ((TOKEN % b"").replace(b"\n", b"\r\n"), False),
        (b"data: [DONE]\n\n", False),
    ],
)
def test_only_an_ordinary_token_is_plain(event, plain):
    chunk = framed(event)
    assert is_plain(chunk, chunk.index(b"\n") + 1) is plain


def noted(*, hide_ids: bool) -> Transcript:
    transcript = Transcript(hide_ids=hide_ids)
    transcript.note(TOKEN % b',"prompt_token_ids":[7,8],"token_ids":[1]')
    return transcript


def test_token_ids_are_noted_and_taken_out_of_a_plain_chunk():
    transcript = noted(hide_ids=True)
    chunk = framed(TOKEN % b',"token_ids":[2,3]')
    assert transcript.note_plain(chunk, chunk.index(b"\n") + 1) == framed(TOKEN % b"")
    assert transcript.sent_ids() == [1, 2, 3]


def test_token_ids_that_the_client_asked_for_stay():
    transcript = noted(hide_ids=False)
    chunk = framed(TOKEN % b',"token_ids":[2,3]')
    assert transcript.note_plain(chunk, chunk.index(b"\n") + 1) == chunk
    assert transcript.sent_ids() == [1, 2, 3]


@pytest.mark.parametrize("ids", [b',"token_ids":null', b',"token_ids":[2],"token_ids":[3]'])
def test_token_ids_in_another_shape_go_the_long_way(ids):
    chunk = framed(TOKEN % ids)
    assert noted(hide_ids=True).note_plain(chunk, chunk.index(b"\n") + 1) is None
