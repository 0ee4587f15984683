"""The control API over HTTP: `POST /control/v1/<call>`, for agents only.

Each agent brings the key of its own instance (`domain/credentials`), which opens nothing else, and
names the instance and the job that it runs in. Particulars are JSON; leases and results are lines
(`ports/control_wire`).
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from http import HTTPStatus
from typing import TypeVar

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, PositiveInt, TypeAdapter, ValidationError

from hpcserve.domain.credentials import control_key
from hpcserve.errors import FencedError, RequestError
from hpcserve.gateway.control_service import ControlService
from hpcserve.ports.control import Control, Ending, Heartbeat, Order, Registration
from hpcserve.ports.control_wire import CONTENT_TYPE, dump_grant, load_outcomes

PREFIX = "/control/v1"

T = TypeVar("T")


class Ask(BaseModel):
    """A call for work."""

    model_config = ConfigDict(extra="forbid")
    limit: PositiveInt
    #: leases that the agent still works on
    holding: tuple[int, ...]


class Return(BaseModel):
    """Lines handed back undone; null: all that are left."""

    model_config = ConfigDict(extra="forbid")
    lease_id: int
    lines: tuple[int, ...] | None


_REGISTRATION = TypeAdapter(Registration)
_HEARTBEAT = TypeAdapter(Heartbeat)
_ENDING = TypeAdapter(Ending)
_ASK = TypeAdapter(Ask)
_RETURN = TypeAdapter(Return)


def control_router(service: ControlService, *, secret: bytes, max_body_bytes: int) -> APIRouter:
    """Return the routes.

    Args:
        service: answers the calls.
        secret: the site's, from which each instance's key is derived.
        max_body_bytes: of one call; more is refused with 413.

    """
    desk = _Desk(service=service, secret=secret, max_body_bytes=max_body_bytes)
    router = APIRouter(prefix=PREFIX, include_in_schema=False)
    for call in (
        desk.register,
        desk.beat,
        desk.draining,
        desk.ended,
        desk.lease,
        desk.settle,
        desk.release,
    ):
        router.add_api_route(f"/{call.__name__}", call, methods=["POST"], response_model=None)
    return router


@dataclass(frozen=True, slots=True, kw_only=True)
class _Desk:
    """One method a call; the port Control says what each does."""

    service: ControlService
    secret: bytes
    max_body_bytes: int

    async def register(self, request: Request) -> Response:
        agent = self._agent(request)
        said = _read(_REGISTRATION, await self._body(request))
        return _answer(await agent.register(said))

    async def beat(self, request: Request) -> Response:
        agent = self._agent(request)
        said = _read(_HEARTBEAT, await self._body(request))
        return _answer(await agent.beat(said))

    async def draining(self, request: Request) -> Response:
        agent = self._agent(request)
        said = _read(_ENDING, await self._body(request))
        return _answer(await agent.draining(said))

    async def ended(self, request: Request) -> Response:
        agent = self._agent(request)
        said = _read(_ENDING, await self._body(request))
        return _answer(await agent.ended(said))

    async def lease(self, request: Request) -> Response:
        agent = self._agent(request)
        ask = _read(_ASK, await self._body(request))
        grant = await agent.lease(ask.limit, ask.holding)
        if grant is None:
            return Response(status_code=HTTPStatus.NO_CONTENT)
        return Response(dump_grant(grant), media_type=CONTENT_TYPE)

    async def settle(self, request: Request) -> Response:
        agent = self._agent(request)
        lease_id, outcomes = load_outcomes(await self._body(request))
        try:
            taken = await agent.settle(lease_id, outcomes)
        except FencedError as error:
            raise _fenced(error) from error
        return JSONResponse({"taken": sorted(taken)})

    async def release(self, request: Request) -> Response:
        agent = self._agent(request)
        undone = _read(_RETURN, await self._body(request))
        try:
            await agent.release(undone.lease_id, undone.lines)
        except FencedError as error:
            raise _fenced(error) from error
        return Response(status_code=HTTPStatus.NO_CONTENT)

    def _agent(self, request: Request) -> Control:
        """Return what this caller may call, or raise the 401."""
        instance_id = request.headers.get("hpcserve-instance", "")
        presented = request.headers.get("authorization", "").removeprefix("Bearer ")
        expected = control_key(self.secret, instance_id)
        if not hmac.compare_digest(presented.encode(), expected.encode()):
            raise RequestError(
                f"This is not the control key of instance {instance_id!r}.",
                http_status=HTTPStatus.UNAUTHORIZED,
                code="invalid_control_key",
            )
        return self.service.of(instance_id, request.headers.get("hpcserve-job", ""))

    async def _body(self, request: Request) -> bytes:
        """Return the whole body; ask for it only after the caller has proved to be an agent."""
        pieces: list[bytes] = []
        size = 0
        async for piece in request.stream():
            size += len(piece)
            if size > self.max_body_bytes:
                raise RequestError(
                    f"The body is larger than {self.max_body_bytes} bytes.",
                    http_status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                )
            pieces.append(piece)
        return b"".join(pieces)


def _answer(order: Order) -> Response:
    return JSONResponse({"order": order})


def _read(adapter: TypeAdapter[T], said: bytes) -> T:
    try:
        return adapter.validate_json(said)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RequestError(f"The body's {where or 'JSON'} is wrong: {first['msg']}.") from error


def _fenced(error: FencedError) -> RequestError:
    return RequestError(error.message, http_status=HTTPStatus.CONFLICT, code="fenced")
