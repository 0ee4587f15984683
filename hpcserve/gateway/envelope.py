"""Answers of our own: OpenAI's error envelope, the right status, and when to try again.

What the openai client makes of each decides the mapping: it retries 408, 409, 429 and 5xx unless
`x-should-retry` says no, waits `retry-after` seconds, and gives up at once when that is above 120.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

from hpcserve.errors import (
    BackendError,
    ConfigError,
    ConflictError,
    FencedError,
    HpcserveError,
    InvalidTransitionError,
    RefusedError,
    RequestError,
)

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
}
#: a short pause before a retryable failure of ours is tried again, s
BACKEND_RETRY_S = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A whole answer that no engine gave."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


def error_answer(
    status: int,
    message: str,
    *,
    code: str | None = None,
    param: str | None = None,
    retry_after_s: float | None = None,
    should_retry: bool | None = None,
    detail: Mapping[str, object] | None = None,
) -> Answer:
    """Return OpenAI's envelope around *message*; *detail* joins the error object."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")  # noqa: PLR2004 - HTTP's own border
    error: dict[str, object] = {"message": message, "type": kind, "param": param, "code": code}
    error.update(detail or {})
    headers = []
    if retry_after_s is not None:
        # `retry-after: 0` counts as absent for the client
        headers.append(("retry-after", str(max(1, round(retry_after_s)))))
    if should_retry is not None:
        headers.append(("x-should-retry", "true" if should_retry else "false"))
    if status == HTTPStatus.UNAUTHORIZED:
        headers.append(("www-authenticate", "Bearer"))
    return Answer(status=status, body=json.dumps({"error": error}).encode(), headers=tuple(headers))


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A refusal as a value: what `error_answer` takes."""

    status: int
    message: str
    code: str
    retry_after_s: float | None = None
    should_retry: bool | None = None
    detail: Mapping[str, object] = field(default_factory=dict)

    def answer(self) -> Answer:
        """Return it as an answer."""
        return error_answer(
            self.status,
            self.message,
            code=self.code,
            retry_after_s=self.retry_after_s,
            should_retry=self.should_retry,
            detail=self.detail,
        )


def answer_to(error: HpcserveError) -> Answer:
    """Return the answer that tells a client of *error*."""
    match error:
        case RequestError():
            # a conflict that will not go away must not be retried, and 409 is by default
            retry = False if error.http_status == HTTPStatus.CONFLICT else None
            return error_answer(
                error.http_status,
                error.message,
                code=error.code,
                param=error.param,
                should_retry=retry,
            )
        case RefusedError():
            return error_answer(
                error.http_status,
                error.message,
                code=error.code,
                retry_after_s=error.retry_after_s,
                should_retry=error.should_retry,
            )
        case BackendError():
            return error_answer(
                503 if error.retryable else 500,
                error.message,
                code="backend_unavailable" if error.retryable else "backend_failed",
                retry_after_s=BACKEND_RETRY_S if error.retryable else None,
                should_retry=error.retryable,
            )
        case ConflictError() | FencedError():
            return error_answer(409, error.message, code="conflict", should_retry=False)
        case ConfigError() | InvalidTransitionError():
            return error_answer(500, error.message, code="internal_error", should_retry=False)
        case _:
            return _unlisted(error)


def _unlisted(error: HpcserveError) -> Answer:
    return error_answer(500, error.message, code="internal_error", should_retry=False)
