"""What an engine's answer means for a batch request: OpenAI's line, or not an answer at all.

A 2xx without an `error` in its body is a success and goes to the output file. An answer with
another status is the request's own failure and goes to the error file with that status and the
engine's body; top-level `error` stays null there. Payloads are embedded as they came, but for a
failure without OpenAI's envelope, such as FastAPI's `{"detail": ...}`, which gets one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

from hpcserve.domain.batch import RequestEvent
from hpcserve.ports.control import GrantedLine, Outcome

#: the engine is full or busy with its own end, or asks for another key: no fault of the request
_NOT_THE_REQUEST = frozenset(
    {HTTPStatus.UNAUTHORIZED, HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}
)
#: HTTP's codes end below
_STATUS_END = 600
#: of a body that is no JSON, quoted in the error
_QUOTED_BYTES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the engine answers to one request."""

    status: int
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer, understood."""

    #: what the answer amounts to: 200 with an error inside is not 200
    status: int
    #: one line of JSON
    body: bytes
    fields: Mapping[str, object]

    @property
    def is_success(self) -> bool:
        """Whether the request was served."""
        return self.status < HTTPStatus.MULTIPLE_CHOICES

    @property
    def blames_request(self) -> bool:
        """Whether the same request would fail again on any engine."""
        return (
            not self.is_success
            and self.status < HTTPStatus.INTERNAL_SERVER_ERROR
            and self.status not in _NOT_THE_REQUEST
        )

    @property
    def excuses_request(self) -> bool:
        """Whether the engine says nothing about the request: busy, or not our engine."""
        return self.status in _NOT_THE_REQUEST


def understand(answer: Answer) -> Reply:
    """Parse an answer; what is not a JSON object becomes an error of the engine."""
    try:
        fields = json.loads(answer.body)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        text = answer.body[:_QUOTED_BYTES].decode(errors="replace")
        status = max(answer.status, HTTPStatus.BAD_REQUEST)
        if answer.status < HTTPStatus.BAD_REQUEST:
            status = HTTPStatus.BAD_GATEWAY
        fields = _error(f"The engine answered with something that is no JSON object: {text}")
        return Reply(status=status, body=_json(fields), fields=fields)
    status = _status(answer.status, fields)
    if status >= HTTPStatus.BAD_REQUEST and not isinstance(fields.get("error"), dict):
        fields = _error(_message(fields))
        return Reply(status=status, body=_json(fields), fields=fields)
    body = answer.body if b"\n" not in answer.body else _json(fields)
    return Reply(status=status, body=body, fields=fields)


def outcome(line: GrantedLine, reply: Reply, *, lease_id: int) -> Outcome:
    """Return the finished line for a reply."""
    request_id = str(reply.fields.get("id") or f"{lease_id}-{line.line_no}")
    head = {"status_code": int(reply.status), "request_id": request_id}
    response = _json(head)[:-1] + b',"body":' + reply.body + b"}"
    read, cached, written = _usage(reply.fields)
    return Outcome(
        line_no=line.line_no,
        event=RequestEvent.ANSWERED if reply.is_success else RequestEvent.REFUSED,
        input_tokens=read,
        cached_tokens=cached,
        output_tokens=written,
        line=_line(line, lease_id, response, b"null"),
    )


def unanswered(line: GrantedLine, *, lease_id: int, code: str, message: str) -> Outcome:
    """Return the error line of a request to which no answer came."""
    return Outcome(
        line_no=line.line_no,
        event=RequestEvent.REFUSED,
        input_tokens=0,
        cached_tokens=0,
        output_tokens=0,
        line=_line(line, lease_id, b"null", _json({"code": code, "message": message})),
    )


def _line(line: GrantedLine, lease_id: int, response: bytes, error: bytes) -> bytes:
    head = {"id": f"batch_req_{lease_id}_{line.line_no}", "custom_id": line.custom_id}
    return _json(head)[:-1] + b',"response":' + response + b',"error":' + error + b"}"


def _status(status: int, fields: Mapping[str, object]) -> int:
    error = fields.get("error")
    if not error or status >= HTTPStatus.BAD_REQUEST:
        return status
    code = error.get("code") if isinstance(error, dict) else None
    if isinstance(code, int) and HTTPStatus.BAD_REQUEST <= code < _STATUS_END:
        return code
    return HTTPStatus.INTERNAL_SERVER_ERROR


def _message(fields: Mapping[str, object]) -> str:
    """Return what a failure says that is not in OpenAI's envelope."""
    said = (fields.get(name) for name in ("error", "message", "detail"))
    return next((one for one in said if isinstance(one, str)), _json(fields).decode())


def _usage(fields: Mapping[str, object]) -> tuple[int, int, int]:
    """Return tokens read, of those cached, and written, in either of OpenAI's two spellings."""
    usage = fields.get("usage")
    if not isinstance(usage, dict):
        return 0, 0, 0
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
    return (
        _count(usage, "prompt_tokens", "input_tokens"),
        _count(details, "cached_tokens"),
        _count(usage, "completion_tokens", "output_tokens"),
    )


def _count(fields: Mapping[str, object], *names: str) -> int:
    values = (fields.get(name) for name in names)
    return next((value for value in values if isinstance(value, int)), 0)


def _error(message: str) -> dict[str, object]:
    return {"error": {"message": message, "type": "engine_error", "param": None, "code": None}}


def _json(fields: Mapping[str, object]) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode()
