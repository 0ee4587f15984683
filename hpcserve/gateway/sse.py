"""Watches a stream of server-sent events on its way through: whole, well-formed, without errors.

Sans-IO: bytes of the body in, bytes to relay out. The events stay as the engine wrote them; they
are cut at event borders only, so that a stream that breaks off never leaves half an event with the
client. A piece is searched, not parsed; an event is decoded only when the search finds the word
`"error"` or a usage record, which the text of a token cannot forge, since JSON escapes its quotes.
"""

from __future__ import annotations

import json

from hpcserve.gateway.usage import Usage, read_usage

# json.loads looks for the encoding first, which takes as long as a small event itself
_DECODER = json.JSONDecoder()
_BORDER = b"\n\n"
_DONE = b"data: [DONE]"
#: end of an event, and of the chunk around it
_CHUNK_END = b"}\n\n\r\n"


class StreamBroken(Exception):  # noqa: N818 - an outcome of the engine's, handled one call up
    """The engine's stream cannot be relayed any further."""

    def __init__(self, why: str, message: str) -> None:
        """Take a word for the metrics and a sentence for people."""
        super().__init__(message)
        self.why = why
        self.message = message


class EventStream:
    """One stream of one engine."""

    __slots__ = ("_hide_usage", "_limit", "_rest", "_terminals", "done", "usage")

    def __init__(
        self, *, terminals: tuple[bytes, ...], hide_usage: bool, event_bytes_max: int
    ) -> None:
        """Take what ends such a stream, and whether the client is not to see the usage event."""
        self._terminals = terminals
        self._hide_usage = hide_usage
        self._limit = event_bytes_max
        self._rest = b""
        #: a terminal event has passed: the answer is complete
        self.done = False
        self.usage: Usage | None = None

    def feed(self, data: bytes) -> bytes:
        """Return what can be relayed now: whole events, or nothing.

        Raises:
            StreamBroken: the engine reports an error or does not write events.

        """
        if self._rest:
            data = self._rest + data
            self._rest = b""
        if b"\r" in data:
            # another legal line end; borders are looked for in one spelling
            data, self._rest = _unified(data)
        if not data.endswith(_BORDER):
            border = data.rfind(_BORDER)
            cut = border + len(_BORDER) if border >= 0 else 0
            self._rest = data[cut:] + self._rest
            data = data[:cut]
            if len(self._rest) > self._limit:
                raise StreamBroken("oversized", "The engine sent an event without an end.")
            if not data:
                return b""
        return self._checked(data)

    @property
    def partial(self) -> bool:
        """Whether the beginning of an event waits for its end."""
        return bool(self._rest)

    @property
    def cut_short(self) -> bool:
        """Whether the stream, if it ended now, would be incomplete."""
        return not self.done or bool(self._rest.strip())

    def _checked(self, data: bytes) -> bytes:
        if data.count(_BORDER) == 1:
            kept = self._event(data[: -len(_BORDER)])
            return data if kept else b""
        events = data[: -len(_BORDER)].split(_BORDER)
        kept_events = [event for event in events if self._event(event)]
        if len(kept_events) == len(events):
            return data
        return b"".join(event + _BORDER for event in kept_events)

    def _event(self, event: bytes) -> bool:
        """Check one event; return whether the client gets it."""
        if event.startswith(b"data: {"):
            if not event.endswith(b"}"):
                raise StreamBroken("malformed", "The engine sent an event that is not JSON.")
            if b'"error"' in event:
                self._raise_error(event)
            if b'"usage":{' in event:
                return self._note_usage(event)
            return True
        return self._rare_event(event)

    def _rare_event(self, event: bytes) -> bool:
        event = event.lstrip(b"\n")
        if any(terminal in event for terminal in self._terminals):
            self.done = True
            if event.startswith(_DONE):
                return True
        for line in event.split(b"\n"):
            if line.startswith(b"data:"):
                payload = line[5:].strip()
                if payload != b"[DONE]" and not (
                    payload.startswith(b"{") and payload.endswith(b"}")
                ):
                    raise StreamBroken("malformed", "The engine sent an event that is not JSON.")
                if line.startswith(b'data: {"error"') or b'"type":"error"' in payload:
                    self._raise_error(line)
                if b'"usage":{' in payload:
                    self._note_usage(b"data: " + payload)
            elif line and not line.startswith((b":", b"event:", b"id:", b"retry:")):
                raise StreamBroken("malformed", "The engine sent a line that is no event.")
        return True

    def _raise_error(self, event: bytes) -> None:
        """Raise when the event is an error, and not a token that says so."""
        content = decoded(event)
        error = content.get("error")
        if error is None:
            return
        message = error.get("message") if isinstance(error, dict) else error
        raise StreamBroken("engine_error", f"The engine reported an error: {message}")

    def _note_usage(self, event: bytes) -> bool:
        content = decoded(event)
        usage = read_usage(content)
        if usage is not None:
            self.usage = usage
        return not (self._hide_usage and content.get("choices") == [])


def is_plain(chunk: bytes, begin: int) -> bool:
    """Return whether a chunk, with its framing and data from *begin* on, is one ordinary token.

    That is an event on one line, with text and without a finish reason, about which neither the
    books nor a continuation want to know more than its token ids. The quotes in what is searched
    for cannot stem from text, which escapes them.
    """
    return (
        chunk.startswith(b"data: {", begin)
        and chunk.endswith(_CHUNK_END)
        and chunk.find(b"\n", begin) == len(chunk) - 4
        and chunk.find(b"\r", begin) == len(chunk) - 2
        and b'"finish_reason":null' in chunk
        and b'""' not in chunk
        and b'"error"' not in chunk
        and b'"usage":{' not in chunk
        and b'"reasoning' not in chunk
        and b'"tool_calls"' not in chunk
    )


def decoded(event: bytes) -> dict[str, object]:
    """Return the object in a one-line event.

    Raises:
        StreamBroken: it is none.

    """
    try:
        content = _DECODER.decode(event[5:].decode())
    except ValueError as error:
        raise StreamBroken("malformed", "The engine sent an event that is not JSON.") from error
    if not isinstance(content, dict):
        raise StreamBroken("malformed", "The engine sent an event that is not an object.")
    return content


def _unified(data: bytes) -> tuple[bytes, bytes]:
    """Return *data* with plain line ends, and a last carriage return that may be half of one."""
    rest = b"\r" if data.endswith(b"\r") else b""
    whole = data[: len(data) - len(rest)]
    return whole.replace(b"\r\n", b"\n").replace(b"\r", b"\n"), rest
