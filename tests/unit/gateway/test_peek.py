"""What `peek` reads, and refuses."""

from __future__ import annotations

import json

import pytest

from hpcserve.errors import RequestError
from hpcserve.gateway.peek import PARSE_WHOLE_BYTES, peek, scan


@pytest.mark.parametrize("read", [peek, scan])
@pytest.mark.parametrize(
    ("body", "model"),
    [
        (b'{"model":"a"}', "a"),
        (b' {\n"model" :\t"a" } ', "a"),
        (b'{"model":"a","model":"b"}', "b"),
        (b'{"messages":[{"model":"x"}],"model":"a"}', "a"),
        (b'{"model":"a","prompt":"\\",\\"model\\":\\"x"}', "a"),
        (b'{"mod\\u0065l":"a"}', "a"),
        (b'{"model":"\\u00e9\\\\"}', "é\\"),
        (b'{"prompt":"\\\\","model":"a"}', "a"),
        (b'{"x":[[{"y":"]}"}],{}],"model":"a","n":1e3}', "a"),
    ],
)
def test_model_is_the_top_level_one(read, body, model):
    assert read(body)["model"] == model


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"nonsense",
        b'{"model":"a"',
        b'{"model":"a"} x',
        b'{"model"}',
        b'{"a":1,}',
        b'{"a":"',
        b'{"a":[1',
        b"\xff\xfe{}",
        '{"model":"a"}'.encode("utf-16"),
        b"[" * 100_000,
        b'{"a":' + b"[" * 100_000,
    ],
)
def test_malformed_body_is_the_clients_error(body):
    with pytest.raises(RequestError) as caught:
        peek(body)
    assert caught.value.http_status == 400


def test_long_body_is_scanned():
    prompt = 'say "model" \\ {[' * 10_000
    body = json.dumps({"prompt": prompt, "model": "a", "stream": True}).encode()
    assert len(body) > PARSE_WHOLE_BYTES
    assert peek(body) == {"model": "a", "stream": True}
