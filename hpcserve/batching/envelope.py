"""One line of an input file: `{"custom_id", "method", "url", "body": {"model", ...}}`.

`Decoder` looks at these fields only and skips the payload, in a quarter of a microsecond; what it
rejects is looked at a second time by `fault`, which finds the words for it.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from hpcserve.domain.batch import LineError

#: code, message and param of a LineError
_Problem = tuple[str, str, str]

#: OpenAI's own limit is not written anywhere; longer ones are mistakes
MAX_CUSTOM_ID_CHARS = 512


class Body(msgspec.Struct, gc=False):
    """What intake looks at in the payload."""

    model: str
    stream: bool | None = None


class Envelope(msgspec.Struct, gc=False):
    """One line, as intake sees it."""

    custom_id: str
    method: str
    url: str
    body: Body


class Payload(msgspec.Struct, gc=False):
    """One line, as it is handed to an agent: the body's bytes as its user wrote them."""

    custom_id: str
    body: msgspec.Raw


decode = msgspec.json.Decoder(Envelope).decode
decode_payload = msgspec.json.Decoder(Payload).decode


def fault(line: bytes, number: int, *, endpoint: str, model: str | None) -> LineError | None:
    """Return what is wrong with a line, in the order in which a user would mend it.

    Args:
        line: without its line end.
        number: counted from 1.
        endpoint: the batch's; the line's `url` must be the same.
        model: that of the lines before, or None when this is the first.

    """
    parsed = _object(line)
    if isinstance(parsed, str):
        return LineError(code="invalid_json_line", message=parsed, line=number)
    problem = _wrong_type(parsed) or _wrong_value(parsed, endpoint, model)
    if problem is None:
        return None
    code, message, param = problem
    return LineError(code=code, message=message, line=number, param=param)


def _object(line: bytes) -> dict[str, Any] | str:
    """Return the line's object, or a sentence on why it is none."""
    if b"\0" in line:
        return "This line contains a NUL byte: is the file really text?"
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as problem:
        return f"This line is not valid UTF-8 at byte {problem.start + 1}: save it as UTF-8."
    try:
        msgspec.json.decode(line)  # stricter than json: no NaN, no lone surrogates
        parsed = json.loads(text)
    except (msgspec.MsgspecError, ValueError, RecursionError) as problem:
        return f"This line is not parseable as valid JSON: {problem}."
    return parsed if isinstance(parsed, dict) else "This line is not parseable as a JSON object."


def _wrong_type(parsed: dict[str, Any]) -> _Problem | None:
    for name, kind in (("custom_id", str), ("method", str), ("url", str), ("body", dict)):
        if name not in parsed:
            return "missing_required_parameter", f"The line has no `{name}`.", name
        if not isinstance(parsed[name], kind):
            wanted = "an object" if kind is dict else "a string"
            return "invalid_type", f"`{name}` must be {wanted}.", name
    model = parsed["body"].get("model")
    if not isinstance(model, str) or not model:
        return "missing_required_parameter", "The body has no `model`.", "body.model"
    return None


def _wrong_value(parsed: dict[str, Any], endpoint: str, model: str | None) -> _Problem | None:
    custom_id, method, url = parsed["custom_id"], parsed["method"], parsed["url"]
    own_model, stream = parsed["body"]["model"], parsed["body"].get("stream")
    checks = (
        (
            0 < len(custom_id) <= MAX_CUSTOM_ID_CHARS,
            "invalid_value",
            f"`custom_id` must have 1 to {MAX_CUSTOM_ID_CHARS} characters.",
            "custom_id",
        ),
        (
            method == "POST",
            "invalid_method",
            f"`method` must be POST, not {method[:20]!r}.",
            "method",
        ),
        (
            url == endpoint,
            "url_mismatch",
            f"`url` is {url[:80]!r}, but the batch's endpoint is {endpoint!r}.",
            "url",
        ),
        (
            stream in (None, False),
            "invalid_value",
            "`stream` is not allowed in a batch: leave it out.",
            "body.stream",
        ),
        (
            model in (None, own_model),
            "model_mismatch",
            f"The model is {own_model[:80]!r}, but the lines before ask for {model!r}.",
            "body.model",
        ),
    )
    wrong = ((code, text, param) for is_right, code, text, param in checks if not is_right)
    return next(wrong, None)
