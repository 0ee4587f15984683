"""HTTP calls of the agent to its own engine, over connections that stay open."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus

import aiohttp

from hpcserve.agent.answer import Answer, understand
from hpcserve.errors import BackendError

#: tried in turn until the model proves itself on one: text models, then models that only embed
_PROOFS = (
    ("/v1/completions", {"prompt": "1", "max_tokens": 1}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "1"}], "max_tokens": 1}),
    ("/v1/embeddings", {"input": "1"}),
)
_JSON: Mapping[str, str] = {"content-type": "application/json"}
_NONE: Mapping[str, str] = {}


class EngineCalls:
    """One engine's HTTP front."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        *,
        base_url: str,
        key: str,
        probe_timeout_s: float,
        line_timeout_s: float,
        answer_max_bytes: int,
        batch_headers: Mapping[str, str],
    ) -> None:
        """Take a session whose pool is as large as the engine's ceiling, and the engine's key.

        *batch_headers* mark a batch request, whatever its body says.
        """
        self._session = session
        self._base_url = base_url
        self._headers = {"authorization": f"Bearer {key}"}
        self._probe_timeout = aiohttp.ClientTimeout(total=probe_timeout_s)
        self._line_timeout = aiohttp.ClientTimeout(total=line_timeout_s)
        self._answer_max_bytes = answer_max_bytes
        self._batch_headers = {**_JSON, **batch_headers}

    async def is_healthy(self) -> bool:
        """Ask `/health`; no answer is no health."""
        try:
            answer = await self._call("GET", "/health", None, self._probe_timeout)
        except BackendError:
            return False
        return answer.status == HTTPStatus.OK

    async def metrics(self) -> str:
        """Return the text of `/metrics`; raises BackendError."""
        answer = await self._call("GET", "/metrics", None, self._probe_timeout)
        if answer.status != HTTPStatus.OK:
            raise BackendError(f"The engine answers {answer.status} on /metrics.", retryable=True)
        return answer.body.decode(errors="replace")

    async def prove(self, model: str) -> None:
        """Generate one token, or raise BackendError that says what came instead."""
        came = ""
        for route, fields in _PROOFS:
            body = json.dumps({"model": model, **fields}).encode()
            answer = await self._call("POST", route, body, self._line_timeout, _JSON)
            if understand(answer).is_success:
                return
            came = f"{answer.status} on {route}: {answer.body[:300].decode(errors='replace')}"
            if answer.status not in {HTTPStatus.NOT_FOUND, HTTPStatus.BAD_REQUEST}:
                break
        raise BackendError(
            f"The engine is up but does not generate a token; it answers {came}", retryable=True
        )

    async def post(self, route: str, body: bytes) -> Answer:
        """Send one batch request and return the answer, whatever its status.

        Raises BackendError(retryable=True) when there is no answer, and BackendError(
        retryable=False) when there is none in time or it is too large.
        """
        return await self._call("POST", route, body, self._line_timeout, self._batch_headers)

    async def _call(
        self,
        method: str,
        route: str,
        body: bytes | None,
        limit: aiohttp.ClientTimeout,
        headers: Mapping[str, str] = _NONE,
    ) -> Answer:
        try:
            async with self._session.request(
                method,
                self._base_url + route,
                data=body,
                headers={**self._headers, **headers},
                timeout=limit,
            ) as response:
                return Answer(status=response.status, body=await self._read(response, route))
        except TimeoutError as error:
            raise BackendError(
                f"The engine did not answer on {route} within {limit.total:.0f} s.",
                retryable=False,
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            raise BackendError(
                f"The engine broke the connection on {route}: {error}.", retryable=True
            ) from error

    async def _read(self, response: aiohttp.ClientResponse, route: str) -> bytes:
        pieces: list[bytes] = []
        size = 0
        async for piece in response.content.iter_any():
            size += len(piece)
            if size > self._answer_max_bytes:
                raise BackendError(
                    f"The engine's answer on {route} is larger than {self._answer_max_bytes} bytes "
                    "([agent] answer_max_bytes).",
                    retryable=False,
                )
            pieces.append(piece)
        return b"".join(pieces)
