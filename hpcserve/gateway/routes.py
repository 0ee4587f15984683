"""The inference routes that the hot path serves, and what it must know of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One inference route of the engines."""

    path: bytes
    #: label in metrics and log
    name: str
    #: what the last event of a complete stream contains
    terminals: tuple[bytes, ...]
    #: understands `stream_options.include_usage`
    counts_on_request: bool = False


_ALL = (
    Route(
        path=b"/v1/chat/completions",
        name="chat",
        terminals=(b"data: [DONE]",),
        counts_on_request=True,
    ),
    Route(
        path=b"/v1/completions",
        name="completions",
        terminals=(b"data: [DONE]",),
        counts_on_request=True,
    ),
    Route(path=b"/v1/embeddings", name="embeddings", terminals=(b"data: [DONE]",)),
    Route(
        path=b"/v1/responses",
        name="responses",
        terminals=(
            b"data: [DONE]",
            b"event: response.completed",
            b"event: response.incomplete",
            b"event: response.failed",
        ),
    ),
    Route(
        path=b"/v1/messages", name="messages", terminals=(b"event: message_stop", b"data: [DONE]")
    ),
)

ROUTES: Mapping[bytes, Route] = {route.path: route for route in _ALL}
