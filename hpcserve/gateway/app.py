"""The ASGI app behind the hot path: health, metrics, models, and the routers handed in.

The server puts the identity of a Unix socket's peer into the scope; keys are looked up here. Routes
ask for it with `Depends(identified)`; the control API of the agents has keys of its own.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.exceptions import HTTPException

from hpcserve import __version__
from hpcserve.errors import HpcserveError
from hpcserve.gateway.dispatch import Dispatch
from hpcserve.gateway.envelope import Answer, answer_to, error_answer
from hpcserve.gateway.identity import Identity, identified
from hpcserve.gateway.key_cache import credential
from hpcserve.gateway.routes import ROUTES
from hpcserve.gateway.table import ModelView

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

Asker = Annotated[Identity, Depends(identified)]

#: routes of the agents: they bring keys that are no user's
_CONTROL_PREFIX = "/control/"


class Identify:
    """Puts the identity that belongs to an API key into the scope."""

    def __init__(self, app: App, dispatch: Dispatch) -> None:
        """Take the app and whom to ask."""
        self._app = app
        self._dispatch = dispatch

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http" and not scope["path"].startswith(_CONTROL_PREFIX):
            state = scope.setdefault("state", {})
            key = credential(dict(scope["headers"]))
            if key is not None and "identity" not in state:
                try:
                    identity = await self._dispatch.keys.look_up(key)
                except HpcserveError as error:
                    await _response(answer_to(error))(scope, receive, send)
                    return
                if identity is not None:
                    state["identity"] = identity
        await self._app(scope, receive, send)


def build_app(dispatch: Dispatch, routers: Sequence[APIRouter] = ()) -> FastAPI:
    """Return the app with *routers* beside the gateway's own routes."""
    app = FastAPI(title="hpcserve", version=__version__, redoc_url=None)
    app.add_middleware(Identify, dispatch=dispatch)
    app.add_exception_handler(HpcserveError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_bug)
    app.include_router(_own_routes(dispatch))
    for router in routers:
        app.include_router(router)
    return app


def _own_routes(dispatch: Dispatch) -> APIRouter:
    router = APIRouter()
    registry = CollectorRegistry()
    registry.register(dispatch.metrics)

    @router.get("/health")
    async def health() -> Response:
        """Say whether requests can be served: the table has been read."""
        if not dispatch.observed:
            return _response(
                error_answer(
                    503,
                    "The ledger has not answered since the gateway started.",
                    code="starting",
                    retry_after_s=2,
                    should_retry=True,
                )
            )
        return Response('{"status":"ok"}', media_type="application/json")

    @router.get("/metrics")
    async def metrics() -> Response:
        """Write Prometheus's text format."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    @router.get("/v1/models")
    async def models(identity: Asker) -> dict[str, object]:  # noqa: ARG001 - must be somebody
        """List the catalog, with each model's state and ETA."""
        return {
            "object": "list",
            "data": [_model(view) for view in dispatch.snapshot.models.values()],
        }

    @router.get("/v1/models/{name:path}")
    async def model(name: str, identity: Asker) -> Response:  # noqa: ARG001 - must be somebody
        """Describe one model."""
        view = dispatch.snapshot.models.get(name)
        if view is None:
            return _response(dispatch.unknown_model(name).answer())
        return Response(_json(_model(view)), media_type="application/json")

    async def inference() -> Response:
        """Say that inference routes take POST (the hot path serves that before this app)."""
        return _response(
            error_answer(405, "Inference routes take POST.", code="method_not_allowed")
        )

    for route in ROUTES.values():
        router.add_api_route(
            route.path.decode(),
            inference,
            methods=["GET", "PUT", "PATCH", "DELETE"],
            include_in_schema=False,
        )
    return router


def _model(view: ModelView) -> dict[str, object]:
    standing = view.standing
    return {
        "id": view.name,
        "object": "model",
        "created": 0,
        "owned_by": "hpcserve",
        "state": standing.state,
        "eta_s": standing.eta_s,
        "reason": standing.reason,
        "instances_ready": len(view.seats),
    }


def _json(content: dict[str, object]) -> bytes:
    return json.dumps(content).encode()


def _response(answer: Answer) -> Response:
    return Response(
        answer.body,
        status_code=answer.status,
        headers=dict(answer.headers),
        media_type="application/json",
    )


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HpcserveError)
    answer = answer_to(error)
    if answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        log.warning("%s %s: %s", request.method, request.url.path, error.message)
    return _response(answer)


async def _on_invalid(request: Request, error: Exception) -> Response:  # noqa: ARG001 - Starlette's signature
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part not in {"body", "query", "path"})
    message = f"{where}: {first['msg']}." if where else f"{first['msg']}."
    return _response(error_answer(400, message, code="invalid_request", param=where or None))


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    answer = error_answer(
        error.status_code,
        f"{request.method} {request.url.path}: {error.detail}.",
        code=str(error.detail).lower().replace(" ", "_"),
    )
    return _response(answer)


async def _on_bug(request: Request, error: Exception) -> Response:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _response(
        error_answer(500, "The gateway failed; its log says why.", code="internal_error")
    )
