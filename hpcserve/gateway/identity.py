"""Who asks. The server puts an Identity on every request before any route sees it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from fastapi import Request

from hpcserve.errors import RequestError


class Via(StrEnum):
    """How an identity was proved."""

    #: the kernel told the user id of the peer on the Unix socket
    SOCKET = "socket"
    KEY = "key"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """One authenticated user."""

    owner: str
    is_admin: bool
    via: Via
    #: user id of the peer when it came over the Unix socket
    uid: int | None = None


def identified(request: Request) -> Identity:
    """Return who asks, or raise the 401 of OpenAI's envelope (a FastAPI dependency)."""
    identity = getattr(request.state, "identity", None)
    if not isinstance(identity, Identity):
        raise unidentified()
    return identity


def unidentified() -> RequestError:
    """Return the error for a request without a valid key."""
    return RequestError(
        "No valid API key: send `Authorization: Bearer <key>`; "
        "`hpcserve keys create` on the login node makes one.",
        http_status=401,
        code="invalid_api_key",
    )
