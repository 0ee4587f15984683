"""A recognised head is one that the parser would read in the same way."""

from __future__ import annotations

import httptools
from hypothesis import given
from hypothesis import strategies as st

from hpcserve.gateway.head_memo import HeadMemo


class _Parsed:
    """What llhttp makes of a read."""

    def __init__(self, data: bytes) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.url = b""
        self.body = b""
        self.complete = 0
        try:
            httptools.HttpRequestParser(self).feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.complete = -1

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete += 1


_NAMES = st.sampled_from(["host", "x-a", "X-Content-Length", "accept", "content-type"])
_VALUES = st.text(alphabet="abc123: ,;/", max_size=12)
_HEADERS = st.lists(st.tuples(_NAMES, _VALUES), max_size=4)
_BODIES = st.binary(max_size=40)


def _request(before, after, body: bytes, *, name: str = "content-length") -> bytes:
    lines = ["POST /v1/chat/completions HTTP/1.1"]
    lines += [f"{n}: {v}" for n, v in before]
    lines += [f"{name}: {len(body)}"]
    lines += [f"{n}: {v}" for n, v in after]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


@given(_HEADERS, _HEADERS, _BODIES, _BODIES)
def test_same_head_with_another_body_is_recognised(before, after, first, second):
    memo = HeadMemo.of(_request(before, after, first))
    assert memo is not None
    assert memo.body_of(_request(before, after, second)) == second


@given(
    st.tuples(_HEADERS, _HEADERS),
    st.tuples(_BODIES, _BODIES),
    st.integers(0, 200),
    st.binary(max_size=3),
)
def test_what_is_recognised_the_parser_reads_the_same(heads, bodies, at, damage):
    (before, after), (first, second) = heads, bodies
    known = _request(before, after, first)
    reference = _Parsed(known)
    memo = HeadMemo.of(known)
    if reference.complete != 1 or memo is None:
        return
    data = bytearray(_request(before, after, second))
    position = at % len(data)
    data[position : position + len(damage)] = damage
    body = memo.body_of(bytes(data))
    if body is None:
        return
    parsed = _Parsed(bytes(data))
    assert parsed.complete == 1
    assert parsed.body == body
    assert parsed.url == reference.url
    others = [header for header in parsed.headers if header[0] != b"content-length"]
    assert others == [header for header in reference.headers if header[0] != b"content-length"]


def test_pipelined_or_incomplete_requests_are_the_parsers():
    request = _request([], [], b"{}")
    memo = HeadMemo.of(request)
    assert memo is not None
    assert memo.body_of(request + b"GET") is None
    assert memo.body_of(request[:-1]) is None
    assert HeadMemo.of(request + b"x") is None
    assert HeadMemo.of(b"GET / HTTP/1.1\r\n\r\n") is None
