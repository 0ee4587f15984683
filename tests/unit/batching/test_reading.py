"""Every bad input ends in one clear error with its line number."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest

from hpcserve.batching.reading import Reading
from hpcserve.config.tree import Batching
from hpcserve.domain.batch import NewRequest

CHAT = "/v1/chat/completions"
SETTINGS = Batching(read_block_bytes=512, max_line_bytes=4096, validate_chunk=3)


def line(custom_id: object = "a", **changes: object) -> bytes:
    """Return a good line, but for *changes*; a change to ... leaves the field out."""
    fields = {
        "custom_id": custom_id,
        "method": "POST",
        "url": CHAT,
        "body": {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
        **changes,
    }
    return json.dumps({k: v for k, v in fields.items() if v is not ...}).encode()


def read(data: bytes, settings: Batching = SETTINGS) -> tuple[Reading, list[NewRequest], bytes]:
    custom_ids = io.BytesIO()
    reading = Reading(lambda: io.BytesIO(data), custom_ids, endpoint=CHAT, settings=settings)
    requests = [request for chunk in reading.chunks() for request in chunk.requests]
    return reading, requests, custom_ids.getvalue()


def codes(data: bytes, settings: Batching = SETTINGS) -> list[tuple[str, int | None]]:
    return [(error.code, error.line) for error in read(data, settings)[0].errors]


def test_good_lines_are_found_where_they_lie() -> None:
    data = b"".join(line(f"id-{i}") + b"\n" for i in range(50))
    reading, requests, custom_ids = read(data)
    assert reading.errors == []
    assert reading.model == "m"
    assert [r.line_no for r in requests] == list(range(1, 51))
    for request in requests:
        found = json.loads(data[request.offset : request.offset + request.length])
        assert found["custom_id"] == f"id-{request.line_no - 1}"
    assert [json.loads(i) for i in custom_ids.splitlines()] == [f"id-{i}" for i in range(50)]


MODELLESS = {"messages": []}
OTHER = {"model": "n", "messages": []}
STREAM = {"model": "m", "messages": [], "stream": True}


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (b"{", "invalid_json_line"),
        (b"nonsense", "invalid_json_line"),
        (b"[1]", "invalid_json_line"),
        (b'"text"', "invalid_json_line"),
        (line("b") + b" trailing", "invalid_json_line"),
        (line("b").replace(b'"hi"', b"NaN"), "invalid_json_line"),
        (line("b").replace(b"hi", b"\\ud800"), "invalid_json_line"),
        (line("b").replace(b"hi", b"h\0i"), "invalid_json_line"),
        (line("b").replace(b"hi", b"caf\xe9"), "invalid_json_line"),
        (b"\xff\xfe" + line("b"), "invalid_json_line"),
        (b"[" * 3000, "invalid_json_line"),
        (line(...), "missing_required_parameter"),
        (line("b", method=...), "missing_required_parameter"),
        (line("b", url=...), "missing_required_parameter"),
        (line("b", body=...), "missing_required_parameter"),
        (line("b", body=MODELLESS), "missing_required_parameter"),
        (line("b", body={"model": ""}), "missing_required_parameter"),
        (line("b", body={"model": 3}), "missing_required_parameter"),
        (line(3), "invalid_type"),
        (line(None), "invalid_type"),
        (line("b", body=[]), "invalid_type"),
        (line(""), "invalid_value"),
        (line("x" * 513), "invalid_value"),
        (line("b", method="GET"), "invalid_method"),
        (line("b", url="/v1/embeddings"), "url_mismatch"),
        (line("b", body=STREAM), "invalid_value"),
        (line("b", body={**STREAM, "stream": "yes"}), "invalid_value"),
        (line("b", body=OTHER), "model_mismatch"),
        (line("a"), "duplicate_custom_id"),
        (line("\u0061").replace(b'"a"', b'"\\u0061"'), "duplicate_custom_id"),
        (line("b", body={"model": "m", "messages": ["x" * 5000]}), "line_too_long"),
    ],
)
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_bad_line_is_named(bad: bytes, code: str, end: bytes) -> None:
    data = end.join((line("a"), bad, line("c"), b""))
    assert codes(data) == [(code, 2)]


@pytest.mark.parametrize("data", [b"", b"\n", b"\r\n \n", b"\xef\xbb\xbf"])
def test_a_file_without_requests_is_empty(data: bytes) -> None:
    assert codes(data) == [("empty_file", None)]


def test_crlf_a_byte_order_mark_and_blank_lines_do_no_harm() -> None:
    data = b"\xef\xbb\xbf" + line("a") + b"\r\n\r\n" + line("b") + b"\r\n\n"
    reading, requests, custom_ids = read(data)
    assert reading.errors == []
    assert [r.line_no for r in requests] == [1, 3]
    assert custom_ids.splitlines()[:3] == [b'"a"', b"null", b'"b"']
    last = requests[-1]
    assert json.loads(data[last.offset : last.offset + last.length])["custom_id"] == "b"


def test_stream_may_be_false_or_null() -> None:
    for value in (False, None):
        assert codes(line("a", body={"model": "m", "stream": value}) + b"\n") == []


def test_text_of_any_language_is_taken() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "日本語 Привет 🎉"}]}
    data = json.dumps(
        {"custom_id": "ключ", "method": "POST", "url": CHAT, "body": body}, ensure_ascii=False
    ).encode()
    assert codes(data) == []


def test_errors_are_listed_in_order_up_to_a_limit() -> None:
    data = b"{\n" * 500
    found = codes(data, replace(SETTINGS, max_errors=7))
    assert found == [("invalid_json_line", n) for n in range(1, 8)]


def test_too_many_lines_end_the_reading() -> None:
    data = b"".join(line(f"id-{i}") + b"\n" for i in range(100))
    assert ("too_many_tasks", None) in codes(data, replace(SETTINGS, max_lines=10))


def test_each_repetition_names_the_first_line() -> None:
    data = b"\n".join((line("a"), line("b"), line("a"), line("b"), line("a")))
    reading, _, _ = read(data)
    assert [(e.line, e.message) for e in reading.errors] == [
        (3, "The custom_id 'a' stands in line 1 already."),
        (4, "The custom_id 'b' stands in line 2 already."),
        (5, "The custom_id 'a' stands in line 1 already."),
    ]
