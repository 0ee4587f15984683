"""Ask for the instance's bearer key on every route of vLLM, as ASGI middleware inside it.

Rules: standard library only, since vLLM's interpreter imports it. Without a key nothing starts.
The key leaves the environment of the API server when this module is imported, which vLLM does
after its core has started; the core and the workers are the same user's processes.
"""
# ruff: noqa: INP001 - a folder for PYTHONPATH, no package

from __future__ import annotations

import hmac
import json
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

KEY_VARIABLE = "HPCSERVE_ENGINE_KEY"
#: WebSocket close code: policy violation
REFUSED = 1008

_CREDENTIALS = b"Bearer " + os.environ.pop(KEY_VARIABLE, "").encode()
if _CREDENTIALS == b"Bearer ":
    raise RuntimeError(f"hpcserve_guard: {KEY_VARIABLE} is empty; the engine would be open to all")

_BODY = json.dumps(
    {
        "error": {
            "message": "the engine's key is missing or wrong",
            "type": "invalid_request_error",
            "param": None,
            "code": "invalid_api_key",
        }
    }
).encode()


class Guard:
    """Passes on what carries the key, and answers 401 to all else."""

    def __init__(self, app: App) -> None:
        """Take the application behind the guard."""
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Check one connection."""
        if scope["type"] == "lifespan" or _is_authorized(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": REFUSED})
        else:
            headers = [(b"content-type", b"application/json"), (b"www-authenticate", b"Bearer")]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": _BODY})


def _is_authorized(scope: Message) -> bool:
    given = [value for name, value in scope["headers"] if name == b"authorization"]
    return len(given) == 1 and hmac.compare_digest(given[0], _CREDENTIALS)
