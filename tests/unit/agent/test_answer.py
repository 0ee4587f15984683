"""What an engine's answer means for a line."""

from __future__ import annotations

import json

import pytest

from hpcserve.agent.answer import Answer, outcome, unanswered, understand
from hpcserve.domain.batch import RequestEvent
from hpcserve.ports.control import GrantedLine

LINE = GrantedLine(line_no=7, custom_id='a "quoted" id', attempts=0, body=b"{}")


def finished(status: int, body: bytes) -> tuple[RequestEvent, dict[str, object]]:
    result = outcome(LINE, understand(Answer(status=status, body=body)), lease_id=3)
    assert b"\n" not in result.line
    return result.event, json.loads(result.line)


def test_a_success_goes_to_the_output_as_it_came() -> None:
    body = b'{"id": "chatcmpl-1", "x": 1.50, "text": "Gr\\u00fc\xc3\x9fe"}'
    event, line = finished(200, body)
    assert event is RequestEvent.ANSWERED
    assert line == {
        "id": "batch_req_3_7",
        "custom_id": 'a "quoted" id',
        "response": {"status_code": 200, "request_id": "chatcmpl-1", "body": json.loads(body)},
        "error": None,
    }
    result = outcome(LINE, understand(Answer(status=200, body=body)), lease_id=3)
    assert body in result.line


def test_a_body_on_several_lines_becomes_one() -> None:
    _, line = finished(200, b'{\n "id": "x",\n "n": 1\n}')
    assert line["response"]["body"] == {"id": "x", "n": 1}  # type: ignore[index]  # JSON


def test_a_rejection_keeps_status_and_body() -> None:
    error = {"error": {"message": "too long", "type": "BadRequestError", "code": 400}}
    event, line = finished(400, json.dumps(error).encode())
    assert event is RequestEvent.REFUSED
    assert line["response"] == {"status_code": 400, "request_id": "3-7", "body": error}
    assert line["error"] is None


@pytest.mark.parametrize(("code", "status"), [(500, 500), (400, 400), (None, 500), ("x", 500)])
def test_an_error_inside_a_200_is_no_success(code: object, status: int) -> None:
    event, line = finished(200, json.dumps({"error": {"message": "m", "code": code}}).encode())
    assert event is RequestEvent.REFUSED
    assert line["response"]["status_code"] == status  # type: ignore[index]  # JSON


@pytest.mark.parametrize(("came", "status"), [(200, 502), (400, 400), (500, 500)])
@pytest.mark.parametrize("body", [b"", b"<html>", b"[1]", b"\xff"])
def test_what_is_no_json_object_is_an_error_that_quotes_it(
    came: int, status: int, body: bytes
) -> None:
    event, line = finished(came, body)
    assert event is RequestEvent.REFUSED
    response = line["response"]
    assert response["status_code"] == status  # type: ignore[index]  # JSON
    assert "no JSON object" in response["body"]["error"]["message"]  # type: ignore[index]  # JSON


@pytest.mark.parametrize(
    ("status", "blamed", "excused"),
    [(200, False, False), (400, True, False), (404, True, False), (422, True, False)]
    + [(status, False, True) for status in (401, 429, 503)]
    + [(500, False, False), (502, False, False)],
)
def test_who_is_to_blame(status: int, blamed: bool, excused: bool) -> None:  # noqa: FBT001 - a table
    reply = understand(Answer(status=status, body=b"{}"))
    assert (reply.blames_request, reply.excuses_request) == (blamed, excused)


@pytest.mark.parametrize(
    "usage",
    [
        {
            "prompt_tokens": 5,
            "completion_tokens": 2,
            "prompt_tokens_details": {"cached_tokens": 4},
        },
        {"input_tokens": 5, "output_tokens": 2, "input_tokens_details": {"cached_tokens": 4}},
    ],
)
def test_tokens_are_counted_in_both_spellings(usage: dict[str, object]) -> None:
    reply = understand(Answer(status=200, body=json.dumps({"usage": usage}).encode()))
    result = outcome(LINE, reply, lease_id=3)
    assert (result.input_tokens, result.cached_tokens, result.output_tokens) == (5, 4, 2)


@pytest.mark.parametrize("usage", [None, [], {}, {"prompt_tokens": None}, {"prompt_tokens": 1}])
def test_odd_usage_counts_what_is_there(usage: object) -> None:
    reply = understand(Answer(status=200, body=json.dumps({"usage": usage}).encode()))
    assert outcome(LINE, reply, lease_id=3).output_tokens == 0


def test_no_answer_has_no_response() -> None:
    result = unanswered(LINE, lease_id=3, code="engine_timeout", message="too slow")
    line = json.loads(result.line)
    assert result.event is RequestEvent.REFUSED
    assert line["response"] is None
    assert line["error"] == {"code": "engine_timeout", "message": "too slow"}


@pytest.mark.parametrize(
    ("came", "message"),
    [
        ({"detail": "Not Found"}, "Not Found"),
        ({"object": "error", "message": "too long", "code": 400}, "too long"),
        ({"error": "out of memory"}, "out of memory"),
        ({"detail": [{"loc": ["body"]}]}, '{"detail":[{"loc":["body"]}]}'),
    ],
)
def test_a_failure_without_openais_envelope_gets_one(came: dict[str, object], message: str) -> None:
    _, line = finished(500, json.dumps(came).encode())
    error = line["response"]["body"]["error"]  # type: ignore[index]  # JSON
    assert error["message"] == message
    assert set(error) == {"message", "type", "param", "code"}
