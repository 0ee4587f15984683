from __future__ import annotations

from zlib import crc32

import pytest

from hpcserve.engines.fake import words
from hpcserve.engines.fake.faults import NO_FAULTS, Faults
from hpcserve.engines.fake.generation import Dialect, read_generation, read_object
from hpcserve.errors import RequestError


def generate(prompt: bytes, count: int) -> bytes:
    state, text = words.start(prompt), b""
    for _ in range(count):
        token = words.following(state)
        state = crc32(token, state)
        text += token
    return text


@pytest.mark.parametrize("text", ["", "a", "word", "Grüße, 世界", "x" * 1001])
def test_text_survives_its_tokens(text: str) -> None:
    packed = words.encode(text)
    assert words.decode(packed) == text
    assert words.pack(words.unpack(packed)) == packed


@pytest.mark.parametrize("cut", [0, 1, 20, 49, 50])
def test_a_continuation_gives_the_same_tokens(cut: int) -> None:
    prompt = words.encode("Once upon a time")
    whole = generate(prompt, 50)
    emitted = whole[: cut * words.BYTES_PER_TOKEN]
    assert emitted + generate(prompt + emitted, 50 - cut) == whole


def test_another_order_of_the_same_tokens_gives_another_text() -> None:
    assert generate(words.encode("tickttac"), 8) != generate(words.encode("ttactick"), 8)


def test_the_vocabulary_has_no_twins() -> None:
    assert len(set(words.WORDS)) == len(words.WORDS) == 1024


@pytest.mark.parametrize(
    ("dialect", "body", "param"),
    [
        (Dialect.CHAT, {}, "messages"),
        (Dialect.CHAT, {"messages": []}, "messages"),
        (Dialect.CHAT, {"messages": ["hi"]}, "messages"),
        (Dialect.CHAT, {"messages": [{"role": "user", "content": 5}]}, "messages"),
        (Dialect.COMPLETION, {}, "prompt"),
        (Dialect.COMPLETION, {"prompt": ["a", "b"]}, "prompt"),
        (Dialect.COMPLETION, {"prompt": [1, -1]}, "prompt"),
        (Dialect.COMPLETION, {"prompt": "x", "max_tokens": 0}, "max_tokens"),
        (Dialect.COMPLETION, {"prompt": "x", "max_tokens": "5"}, "max_tokens"),
        (Dialect.COMPLETION, {"prompt": "x", "max_tokens": 100}, "max_tokens"),
        (Dialect.COMPLETION, {"prompt": "x" * 400}, "input_tokens"),
        (Dialect.COMPLETION, {"prompt": "x", "n": 2}, "n"),
        (Dialect.RESPONSE, {}, "messages"),
    ],
)
def test_a_bad_request_names_its_field(
    dialect: Dialect, body: dict[str, object], param: str
) -> None:
    with pytest.raises(RequestError) as refusal:
        read_generation(dialect, body, max_model_len=100)
    assert refusal.value.param == param
    assert refusal.value.http_status == 400


def test_a_chat_may_come_in_parts() -> None:
    parts = [{"type": "text", "text": "he"}, {"type": "text", "text": "llo"}]
    whole, split = (
        read_generation(
            Dialect.CHAT,
            {"messages": [{"role": "user", "content": content}]},
            max_model_len=100,
        )
        for content in ("hello", parts)
    )
    assert whole == split
    assert whole.open_ended


def test_another_model_is_unknown() -> None:
    with pytest.raises(RequestError, match="`other` does not exist") as refusal:
        read_object(b'{"model": "other"}', model="mine")
    assert refusal.value.http_status == 404


@pytest.mark.parametrize(
    "text",
    ["[]", "{", '{"x": 1}', '{"error_ratio": 2}', '{"omit_done": 1}', '{"crash_marker": ""}'],
)
def test_faults_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(RequestError, match=r"^faults: "):
        Faults.from_json(text)


def test_faults_survive_json() -> None:
    faults = Faults(stall_after_tokens=3, error_ratio=0.5, reject_marker="no")
    assert Faults.from_json(faults.as_json()) == faults
    assert Faults.from_json("{}") == NO_FAULTS
