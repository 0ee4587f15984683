"""One line of an input file: `{"custom_id", "method", "url", "body": {"model", ...}}`.

`Decoder` looks at these fields only and skips the payload, in a quarter of a microsecond; what it
rejects is looked at a second time by `fault`, which finds the words for it.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from hpcserve.domain.batch import LineError

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
    parsed = _object(line, number)
    if isinstance(parsed, LineError):
        return parsed

    def error(code: str, message: str, param: str) -> LineError:
        return LineError(code=code, message=message, line=number, param=param)

    for name, kind in (("custom_id", str), ("method", str), ("url", str), ("body", dict)):
        if name not in parsed:
            return error("missing_required_parameter", f"The line has no `{name}`.", name)
        if not isinstance(parsed[name], kind):
            wanted = "an object" if kind is dict else "a string"
            return error("invalid_type", f"`{name}` must be {wanted}.", name)
    custom_id, body = parsed["custom_id"], parsed["body"]
    if not 0 < len(custom_id) <= MAX_CUSTOM_ID_CHARS:
        text = f"`custom_id` must have 1 to {MAX_CUSTOM_ID_CHARS} characters."
        return error("invalid_value", text, "custom_id")
    if parsed["method"] != "POST":
        return error(
            "invalid_method", f"`method` must be POST, not {parsed['method'][:20]!r}.", "method"
        )
    if parsed["url"] != endpoint:
        text = f"`url` is {parsed['url'][:80]!r}, but the batch's endpoint is {endpoint!r}."
        return error("url_mismatch", text, "url")
    if not isinstance(body.get("model"), str) or not body["model"]:
        return error("missing_required_parameter", "The body has no `model`.", "body.model")
    if body.get("stream") not in (None, False):
        text = "`stream` is not allowed in a batch: leave it out."
        return error("invalid_value", text, "body.stream")
    if model is not None and body["model"] != model:
        text = f"The model is {body['model'][:80]!r}, but the lines before ask for {model!r}."
        return error("model_mismatch", text, "body.model")
    return None


def _object(line: bytes, number: int) -> dict[str, Any] | LineError:
    def error(message: str) -> LineError:
        return LineError(code="invalid_json_line", message=message, line=number)

    if b"\0" in line:
        return error("This line contains a NUL byte: is the file really text?")
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as problem:
        return error(f"This line is not valid UTF-8 at byte {problem.start + 1}: save it as UTF-8.")
    try:
        msgspec.json.decode(line)  # stricter than json: no NaN, no lone surrogates
        parsed = json.loads(text)
    except (ValueError, RecursionError) as problem:
        return error(f"This line is not parseable as valid JSON: {problem}.")
    if not isinstance(parsed, dict):
        return error("This line is not parseable as a JSON object.")
    return parsed
