"""Talks to the gateway: over the Unix socket on the login node, else over HTTP with a key.

`HPCSERVE_URL` and `HPCSERVE_API_KEY` choose the second way. An error of the server becomes the
error of `hpcserve.errors` that it was.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from hpcserve.config import Config
from hpcserve.errors import BackendError, RefusedError, RequestError

#: the server answers at once, or the command says so; streams have their own bound
TIMEOUT_S = 30.0


def connect(config: Config) -> httpx.Client:
    """Return a client of this site's gateway; use it with `with`."""
    url = os.environ.get("HPCSERVE_URL")
    if url:
        key = os.environ.get("HPCSERVE_API_KEY", "")
        return httpx.Client(
            base_url=url.rstrip("/").removesuffix("/v1"),
            headers={"authorization": f"Bearer {key}"},
            timeout=TIMEOUT_S,
        )
    socket = socket_path(config)
    return httpx.Client(
        base_url="http://hpcserve",
        transport=httpx.HTTPTransport(uds=str(socket)),
        timeout=TIMEOUT_S,
    )


def socket_path(config: Config) -> Path:
    """Return where the gateway's Unix socket lies."""
    if config.gateway.socket:
        return Path(config.gateway.socket).expanduser()
    return Path(config.site.state_dir).expanduser() / "run" / "gateway.sock"


def call(
    client: httpx.Client,
    method: str,
    path: str,
    *,
    body: Mapping[str, object] | None = None,
    headers: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return the JSON answer of one call, or raise what the server says."""
    try:
        response = client.request(method, path, json=body, headers=headers)
    except httpx.TransportError as error:
        raise unreachable(error) from error
    check(response)
    answer: dict[str, Any] = response.json()
    return answer


def unreachable(error: Exception) -> BackendError:
    """Return the error of a gateway that does not answer."""
    where = os.environ.get("HPCSERVE_URL") or "its Unix socket"
    return BackendError(
        f"The gateway does not answer on {where} ({error}): is `hpcserve up` running, and does "
        "site.state_dir or HPCSERVE_URL name the same site?",
        retryable=True,
    )


def check(response: httpx.Response) -> None:
    """Raise the error that an answer carries, if it carries one."""
    if response.is_success:
        return
    response.read()
    try:
        error = response.json()["error"]
        message, code, param = error["message"], error.get("code"), error.get("param")
    except (ValueError, KeyError, TypeError):
        message, code, param = f"The gateway answers {response.status_code}.", None, None
    if response.status_code in (403, 429):
        raise RefusedError(message, http_status=response.status_code, code=code)
    if response.status_code >= 500:  # noqa: PLR2004 - HTTP's classes
        raise BackendError(message, retryable=True)
    raise RequestError(message, http_status=response.status_code, code=code, param=param)
