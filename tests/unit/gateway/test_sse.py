"""What passes through the watcher of streams, and what does not."""

from __future__ import annotations

import pytest

from hpcserve.gateway.sse import EventStream, StreamBroken, Usage


def watcher(*, hide_usage: bool = False) -> EventStream:
    return EventStream(terminals=(b"data: [DONE]",), hide_usage=hide_usage, event_bytes_max=10_000)


TOKEN = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'
DONE = b"data: [DONE]\n\n"


def test_whole_events_pass_unchanged():
    events = watcher()
    assert events.feed(TOKEN + TOKEN) == TOKEN + TOKEN
    assert events.cut_short
    assert events.feed(USAGE + DONE) == USAGE + DONE
    assert not events.cut_short
    assert events.usage == Usage(prompt=3, completion=2)


def test_half_an_event_waits_for_its_end():
    events = watcher()
    assert events.feed(TOKEN + TOKEN[:10]) == TOKEN
    assert events.feed(TOKEN[10:]) == TOKEN


def test_other_line_ends_come_out_plain():
    events = watcher()
    data = (TOKEN + DONE).replace(b"\n", b"\r\n")
    out = b"".join(events.feed(data[at : at + 1]) for at in range(len(data)))
    assert out == TOKEN + DONE
    assert not events.cut_short


def test_usage_that_nobody_asked_for_is_kept_back():
    events = watcher(hide_usage=True)
    assert events.feed(TOKEN + USAGE + DONE) == TOKEN + DONE
    assert events.usage == Usage(prompt=3, completion=2)


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"error":{"message":"EngineCore encountered an issue"}}\n\n',
        b'event: error\ndata: {"type":"error","error":{"message":"x"}}\n\n',
        b"data: half\n\n",
        b'data: {"choices":[\n\n',
        b"<html>\n\n",
        b"data: " + b"x" * 10_001,
    ],
)
def test_broken_streams_are_told_apart(event):
    with pytest.raises(StreamBroken):
        watcher().feed(event)


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"choices":[{"delta":{"content":"\\"error\\": {"}}]}\n\n',
        b'data: {"choices":[{"logprobs":{"content":[{"token":"error"}]}}]}\n\n',
        b": comment\n\n",
        b"event: ping\ndata: {}\n\n",
        b"\n\n",
    ],
)
def test_text_that_looks_like_trouble_is_none(event):
    assert watcher().feed(event).strip() == event.strip()
