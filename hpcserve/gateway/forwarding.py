"""Heads of requests towards engines and of answers towards clients: what passes, what does not."""

from __future__ import annotations

from http import HTTPStatus

Headers = list[tuple[bytes, bytes]]

#: belong to one hop, or are set by the gateway itself towards the engine
_NOT_FORWARDED = frozenset(
    {
        b"authorization",
        b"connection",
        b"content-length",
        b"expect",
        b"host",
        b"hpcserve-wait",
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
#: headers, and words of `connection`, that offer another protocol
_OFFERS = frozenset({b"upgrade", b"http2-settings"})
#: what stays here of an engine's answer
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
_STATUS_LINES = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode())
    for status in HTTPStatus
}


def forwarded(headers: Headers) -> bytes:
    """Return the lines of a client's *headers* that pass to the engine."""
    return b"".join(
        [b"%b: %b\r\n" % header for header in headers if header[0] not in _NOT_FORWARDED]
    )


def without_upgrade(headers: Headers) -> bytes:
    """Return the lines of a client's *headers* but for its offer to speak another protocol."""
    lines = []
    for name, value in headers:
        if name in _OFFERS:
            continue
        kept = value
        if name == b"connection":
            words = [word.strip() for word in value.split(b",")]
            kept = b", ".join(word for word in words if word.lower() not in _OFFERS)
            if not kept:
                continue
        lines.append(b"%b: %b\r\n" % (name, kept))
    return b"".join(lines)


def request_head(
    path: bytes, *, authority: bytes, key: bytes, request_id: bytes, length: int, passed: bytes
) -> bytes:
    """Return the head of a request to an engine; *passed* are the client's lines that go along."""
    return (
        b"POST %b HTTP/1.1\r\nhost: %b\r\nauthorization: Bearer %b\r\nx-request-id: %b\r\n"
        b"content-length: %d\r\n%b\r\n" % (path, authority, key, request_id, length, passed)
    )


def answer_head(
    status: int, headers: Headers, *, framing: bytes, request_id: bytes, keep_alive: bool
) -> bytes:
    """Return the head of an answer to a client; *framing* is the header that frames its body."""
    passed = b"".join(
        [b"%b: %b\r\n" % header for header in headers if header[0] not in _NOT_RETURNED]
    )
    return b"%b%b%bx-request-id: %b\r\n%b\r\n" % (
        _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status,
        passed,
        framing,
        request_id,
        b"" if keep_alive else b"connection: close\r\n",
    )
