"""The control plane over HTTP, through whichever gateway answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any

import aiohttp
from pydantic import TypeAdapter

from hpcserve.config.tree import Agent as AgentSettings
from hpcserve.errors import BackendError, FencedError, RequestError
from hpcserve.ports.control import (
    Ending,
    Grant,
    Heartbeat,
    Order,
    Outcome,
    Registration,
)
from hpcserve.ports.control_wire import CONTENT_TYPE, dump_outcomes, load_grant
from hpcserve.ports.gateways import GatewayAddress

_REGISTRATION = TypeAdapter(Registration)
_HEARTBEAT = TypeAdapter(Heartbeat)
_ENDING = TypeAdapter(Ending)
_JSON = "application/json"


class ControlClient:
    """Speaks for one instance; keeps to a gateway while it answers, then tries the others."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        *,
        instance_id: str,
        job_id: str,
        key: str,
        gateways: Callable[[], Sequence[GatewayAddress]],
        settings: AgentSettings,
    ) -> None:
        """Take who we are, and what lists the gateways, the best first."""
        self._session = session
        self._gateways = gateways
        self._gateway = ""
        self._timeout = aiohttp.ClientTimeout(total=settings.call_timeout_s)
        self._headers = {
            "authorization": f"Bearer {key}",
            "hpcserve-instance": instance_id,
            "hpcserve-job": job_id,
        }

    async def register(self, registration: Registration) -> Order:
        """Say hello; may be repeated."""
        return await self._order("register", _REGISTRATION.dump_json(registration))

    async def beat(self, heartbeat: Heartbeat) -> Order:
        """Say that all goes on."""
        return await self._order("beat", _HEARTBEAT.dump_json(heartbeat))

    async def draining(self, ending: Ending) -> Order:
        """Announce the end."""
        return await self._order("draining", _ENDING.dump_json(ending))

    async def ended(self, ending: Ending) -> Order:
        """Say the last word."""
        return await self._order("ended", _ENDING.dump_json(ending))

    async def lease(self, limit: int, holding: Sequence[int]) -> Grant | None:
        """Ask for batch requests."""
        asked = json.dumps({"limit": limit, "holding": list(holding)}).encode()
        answer = await self._call("lease", asked)
        if not answer:
            return None
        try:
            return load_grant(answer)
        except RequestError as error:
            raise BackendError(error.message, retryable=True) from error

    async def settle(self, lease_id: int, outcomes: Sequence[Outcome]) -> frozenset[int]:
        """Hand results in."""
        answer = await self._call("settle", dump_outcomes(lease_id, outcomes), CONTENT_TYPE)
        return frozenset(_json(answer)["taken"])

    async def release(self, lease_id: int, line_nos: Sequence[int] | None) -> None:
        """Hand lines back undone."""
        lines = None if line_nos is None else list(line_nos)
        await self._call("release", json.dumps({"lease_id": lease_id, "lines": lines}).encode())

    async def _order(self, call: str, body: bytes) -> Order:
        return Order(_json(await self._call(call, body))["order"])

    async def _call(self, call: str, body: bytes, content_type: str = _JSON) -> bytes:
        """Return the answer of the first gateway that gives one."""
        failure = BackendError(
            "No gateway has written down where agents reach it; is one running?", retryable=True
        )
        for url in self._urls():
            try:
                answer = await self._post(f"{url}/control/v1/{call}", body, content_type)
            except BackendError as error:
                failure = error
                self._gateway = ""
            else:
                self._gateway = url
                return answer
        raise failure

    def _urls(self) -> Sequence[str]:
        """Return the gateway that answered last, or those that the folder names now."""
        if self._gateway:
            others = (address.url for address in self._gateways())
            return (self._gateway, *(url for url in others if url != self._gateway))
        return tuple(address.url for address in self._gateways())

    async def _post(self, url: str, body: bytes, content_type: str) -> bytes:
        headers = {**self._headers, "content-type": content_type}
        try:
            # a redirect would carry our key to wherever it points
            async with self._session.post(
                url, data=body, headers=headers, timeout=self._timeout, allow_redirects=False
            ) as response:
                answer = await response.content.read(-1)
                status = response.status
        except (aiohttp.ClientError, OSError) as error:
            raise BackendError(f"{url} cannot be reached: {error!r}.", retryable=True) from error
        if status < HTTPStatus.MULTIPLE_CHOICES:
            return answer
        message, code = _refusal(answer)
        if status == HTTPStatus.CONFLICT and code == "fenced":
            raise FencedError(message)
        raise BackendError(f"{url} answers {status}: {message}", retryable=True)


def _json(answer: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(answer)
    except ValueError as error:
        raise BackendError("A gateway's answer is not JSON.", retryable=True) from error
    if not isinstance(fields, dict):
        raise BackendError("A gateway's answer is not a JSON object.", retryable=True)
    return fields


def _refusal(answer: bytes) -> tuple[str, str | None]:
    """Return message and code of OpenAI's error envelope, or the text as it is."""
    try:
        error = json.loads(answer)["error"]
        return str(error["message"]), error.get("code")
    except (ValueError, KeyError, TypeError, AttributeError):
        return answer[:300].decode(errors="replace"), None
