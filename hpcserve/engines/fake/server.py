"""The fake engine itself: routes, authorization, life from loading to draining."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import json
import os
import signal
import struct
import time
from collections.abc import Callable
from random import Random
from typing import Any

import hpcserve
from hpcserve.engines.fake import words
from hpcserve.engines.fake.answers import Heading, Stream, Whole
from hpcserve.engines.fake.connection import Call, Connection
from hpcserve.engines.fake.faults import Faults
from hpcserve.engines.fake.generation import (
    Dialect,
    read_generation,
    read_inputs,
    read_messages,
    read_object,
    read_prompt,
)
from hpcserve.engines.fake.meters import Meters
from hpcserve.engines.fake.sequences import Sequence, Sequences
from hpcserve.engines.fake.settings import Settings
from hpcserve.errors import RequestError

#: connections that the kernel keeps until they are accepted
LISTEN_BACKLOG = 4096
#: exit status of a crash by fault
CRASH_STATUS = 1
_TEXT = b"text/plain; version=0.0.4; charset=utf-8"
_ERROR_TYPES = {400: "BadRequestError", 404: "NotFoundError"}
_DIALECTS = {
    b"/v1/chat/completions": Dialect.CHAT,
    b"/v1/completions": Dialect.COMPLETION,
    b"/v1/responses": Dialect.RESPONSE,
}


class FakeEngine:
    """One fake engine; `serve` runs it until SIGTERM."""

    def __init__(self, settings: Settings) -> None:
        """Make an engine that has not begun to load; needs a running event loop."""
        self._settings = settings
        self._faults = settings.faults
        self._loop = asyncio.get_running_loop()
        self._random = Random(settings.seed)  # noqa: S311 - which requests fail, not a secret
        self._meters = Meters(settings.model)
        self._sequences = Sequences(settings, self._meters, self._loop)
        self._connections: set[Connection] = set()
        self._credentials = b"Bearer " + settings.key.encode() if settings.key else b""
        self._loaded_at = self._loop.time() + settings.load_s
        self._draining = False
        self._served = 0
        self._routes: dict[bytes, dict[bytes, Callable[[Call, Connection], None]]] = {
            b"/health": {b"GET": self._health},
            b"/ping": {b"GET": self._health, b"POST": self._health},
            b"/version": {b"GET": self._version},
            b"/metrics": {b"GET": self._metrics},
            b"/v1/models": {b"GET": self._models},
            b"/v1/embeddings": {b"POST": self._embeddings},
            b"/tokenize": {b"POST": self._tokenize},
            b"/detokenize": {b"POST": self._detokenize},
            b"/fake/faults": {b"GET": self._get_faults, b"POST": self._set_faults},
        }

    async def serve(self) -> None:
        """Listen until SIGTERM or SIGINT, then finish or cut what runs."""
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, stop.set)
        settings = self._settings
        server = await self._loop.create_server(
            lambda: Connection(self._handle, self._sequences.abort, self._connections),
            settings.host,
            settings.port,
            backlog=LISTEN_BACKLOG,
        )
        print(f"fake engine: {settings.model} on {settings.host}:{settings.port}", flush=True)  # noqa: T201 - the log of this program
        await stop.wait()
        self._draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(settings.shutdown_timeout_s):
                await self._sequences.wait_idle()
        self._sequences.cut_all()
        server.close()
        for connection in tuple(self._connections):
            connection.close()
        # One turn of the loop, so that what was written leaves.
        await asyncio.sleep(0.01)

    def _handle(self, call: Call, reply: Connection) -> Sequence | None:
        """Answer a call, or start the sequence that will."""
        if self._credentials and not hmac.compare_digest(call.authorization, self._credentials):
            _refuse(reply, 401, "the engine's key is missing or wrong", "invalid_api_key")
            return None
        try:
            if (dialect := _DIALECTS.get(call.path)) is not None:
                if call.method != b"POST":
                    reply.send(405, b'{"detail":"Method Not Allowed"}')
                    return None
                return self._generate(dialect, call, reply)
            self._answer(call, reply)
        except RequestError as error:
            status = error.http_status
            code = error.code or status
            _refuse(reply, status, error.message, code, error.param)
        return None

    def _answer(self, call: Call, reply: Connection) -> None:
        methods = self._routes.get(call.path)
        if methods is None:
            reply.send(404, b'{"detail":"Not Found"}')
        elif (answer := methods.get(call.method)) is None:
            reply.send(405, b'{"detail":"Method Not Allowed"}')
        elif self._is_loading() and not call.path.startswith(b"/fake/"):
            reply.send(503, b"")
        else:
            answer(call, reply)

    def _generate(self, dialect: Dialect, call: Call, reply: Connection) -> Sequence | None:
        if self._is_loading():
            _refuse(reply, 503, "the fake engine is loading", 503)
            return None
        if self._draining:
            # vLLM's own words for a request that comes after its SIGTERM.
            _refuse(reply, 500, "cannot schedule new futures after shutdown", 500)
            return None
        settings = self._settings
        raw = read_object(call.body, model=settings.model)
        generation = read_generation(dialect, raw, max_model_len=settings.max_model_len)
        faults = self._faults
        if faults.crash_marker and faults.crash_marker.encode() in generation.prompt:
            os._exit(CRASH_STATUS)
        if faults.reject_marker and faults.reject_marker.encode() in generation.prompt:
            raise RequestError("the fake engine was told to reject this prompt")
        if faults.error_ratio and self._random.random() < faults.error_ratio:
            _refuse(reply, 500, "the fake engine was told to fail", 500)
            return None
        self._served += 1
        name = call.request_id.decode("latin-1") or f"fake-{self._served}"
        heading = Heading(
            id=f"{dialect.value}-{name}", created=int(time.time()), model=settings.model
        )
        sink = (Stream if generation.stream else Whole)(generation, heading, reply, faults)
        priority = generation.priority if call.priority is None else call.priority
        return self._sequences.add(generation, sink, priority=priority)

    def _is_loading(self) -> bool:
        return self._loop.time() < self._loaded_at

    def _health(self, _call: Call, reply: Connection) -> None:
        reply.send(503 if self._faults.unhealthy else 200, b"")

    def _version(self, _call: Call, reply: Connection) -> None:
        _send_json(reply, {"version": f"fake-{hpcserve.__version__}"})

    def _metrics(self, _call: Call, reply: Connection) -> None:
        self._sequences.measure()
        reply.send(200, self._meters.text(), _TEXT)

    def _models(self, _call: Call, reply: Connection) -> None:
        model = {
            "id": self._settings.model,
            "object": "model",
            "created": 0,
            "owned_by": "hpcserve",
            "root": self._settings.model,
            "parent": None,
            "max_model_len": self._settings.max_model_len,
        }
        _send_json(reply, {"object": "list", "data": [model]})

    def _embeddings(self, call: Call, reply: Connection) -> None:
        raw = read_object(call.body, model=self._settings.model)
        inputs = read_inputs(raw.get("input"))
        as_base64 = raw.get("encoding_format") == "base64"
        data = [
            {"object": "embedding", "index": index, "embedding": _vector(one, as_base64=as_base64)}
            for index, one in enumerate(inputs)
        ]
        count = sum(len(one) for one in inputs) // words.BYTES_PER_TOKEN
        usage = {"prompt_tokens": count, "total_tokens": count}
        _send_json(
            reply,
            {"object": "list", "model": self._settings.model, "data": data, "usage": usage},
        )

    def _tokenize(self, call: Call, reply: Connection) -> None:
        raw = read_object(call.body, model=self._settings.model)
        if "messages" in raw:
            packed = read_messages(raw["messages"])
        else:
            packed = read_prompt(raw.get("prompt"), param="prompt")
        tokens = words.unpack(packed)
        _send_json(
            reply,
            {
                "count": len(tokens),
                "max_model_len": self._settings.max_model_len,
                "tokens": tokens,
                "token_strs": None,
            },
        )

    def _detokenize(self, call: Call, reply: Connection) -> None:
        raw = read_object(call.body, model=self._settings.model)
        packed = read_prompt(raw.get("tokens"), param="tokens")
        _send_json(reply, {"prompt": words.decode(packed)})

    def _get_faults(self, _call: Call, reply: Connection) -> None:
        reply.send(200, self._faults.as_json())

    def _set_faults(self, call: Call, reply: Connection) -> None:
        self._faults = Faults.from_json(call.body)
        self._get_faults(call, reply)


def _vector(packed: bytes, *, as_base64: bool) -> list[float] | str:
    vector = words.embedding(packed)
    if not as_base64:
        return vector
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _send_json(reply: Connection, body: dict[str, Any]) -> None:
    reply.send(200, json.dumps(body).encode())


def _refuse(
    reply: Connection, status: int, message: str, code: str | int, param: str | None = None
) -> None:
    kind = _ERROR_TYPES.get(status, "InternalServerError")
    if status == 401:  # noqa: PLR2004 - the status itself
        kind = "invalid_request_error"
    error = {"message": message, "type": kind, "param": param, "code": code}
    reply.send(status, json.dumps({"error": error}).encode())
