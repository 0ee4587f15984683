r"""Reads from a request body the few top-level fields that routing needs, and no others.

A body is a JSON object. Small ones are parsed whole, which is the definition of right. In large
ones (long prompts) a scanner walks over the top level only: it jumps from quote to quote and from
bracket to bracket, decodes the keys, and parses just the values that are wanted, so a prompt of a
megabyte costs a search for its closing quote. Hence:

- a `"model"` inside of `messages`, or in the text of a prompt, is never taken for the real one,
  since nested values and strings are stepped over as a whole;
- of duplicate keys the last one counts, and escapes in keys (`"mod\u0065l"`) are decoded, both as
  Python's json does, which is what the engine parses the body with;
- what is stepped over is not validated: the engine refuses what is broken there. Where both this
  scanner and json.loads accept a body, they agree (property suite).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from json.scanner import make_scanner

from hpcserve.errors import RequestError
from hpcserve.gateway.resume import RESUME_FIELDS

#: bodies up to here are parsed whole: faster than scanning, bytes
PARSE_WHOLE_BYTES = 4096

#: what routing, accounting and resuming want to know
WANTED = RESUME_FIELDS | frozenset(
    {
        "model",
        "stream",
        "stream_options",
        "max_tokens",
        "max_completion_tokens",
        "max_output_tokens",
        "n",
        "user",
        "session_id",
        "prompt_cache_key",
        "return_token_ids",
    }
)

_BLANK = " \t\n\r"
_scan_once = make_scanner(json.JSONDecoder())  # type: ignore[arg-type]  # the stub is wrong
_SPACE = re.compile(rb"[ \t\n\r]*")
_SCALAR = re.compile(rb"[-+.0-9A-Za-z]+")
#: in nested values only these matter
_MARK = re.compile(rb'["\[\]{}]')
_QUOTE = b'"'
_BACKSLASH = 0x5C


class _Malformed(ValueError):  # noqa: N818 - never leaves this module
    """The text is not a JSON object at its top level."""


def peek(body: bytes) -> Mapping[str, object]:
    """Return the WANTED top-level fields of *body* that it has.

    Raises:
        RequestError: it is not a JSON object in UTF-8.

    """
    try:
        if len(body) > PARSE_WHOLE_BYTES:
            return scan(body)
        fields = _parse(body.decode())
    except (ValueError, RecursionError) as error:
        raise RequestError(
            f"The request body is not valid JSON: {error}.", code="invalid_json"
        ) from error
    if not isinstance(fields, dict):
        raise RequestError("The request body must be a JSON object.", code="invalid_json")
    return fields


def _parse(text: str) -> object:
    """Do what json.loads does, less the detours that cost as much as a small body itself."""
    begin = len(text) - len(text.lstrip(_BLANK))
    try:
        content, end = _scan_once(text, begin)
    except StopIteration as error:
        raise _Malformed(f"a value is expected at character {error.value}") from error
    if text[end:].strip(_BLANK):
        raise _Malformed(f"more text follows at character {end}")
    return content


def scan(body: bytes) -> Mapping[str, object]:
    """Return the WANTED top-level fields without parsing the others.

    Raises:
        ValueError: the top level is malformed, or a wanted value is.

    """
    found: dict[str, object] = {}
    at = _skip_space(body, 0)
    if body[at : at + 1] != b"{":
        raise _Malformed("it does not begin with `{`")
    at = _skip_space(body, at + 1)
    if body[at : at + 1] == b"}":
        return _ended(body, at, found)
    while True:
        if body[at : at + 1] != _QUOTE:
            raise _Malformed(f"a key is expected at byte {at}")
        end = _end_of_string(body, at)
        key = json.loads(body[at:end].decode())
        at = _skip_space(body, end)
        if body[at : at + 1] != b":":
            raise _Malformed(f"`:` is expected at byte {at}")
        at = _skip_space(body, at + 1)
        end = _end_of_value(body, at)
        if key in WANTED:
            found[key] = json.loads(body[at:end].decode())
        at = _skip_space(body, end)
        mark = body[at : at + 1]
        if mark == b"}":
            return _ended(body, at, found)
        if mark != b",":
            raise _Malformed(f"`,` or `}}` is expected at byte {at}")
        at = _skip_space(body, at + 1)


def _ended(body: bytes, at: int, found: dict[str, object]) -> Mapping[str, object]:
    if _skip_space(body, at + 1) != len(body):
        raise _Malformed(f"more text follows the object at byte {at + 1}")
    return found


def _skip_space(body: bytes, at: int) -> int:
    match = _SPACE.match(body, at)
    assert match is not None
    return match.end()


def _end_of_value(body: bytes, at: int) -> int:
    first = body[at : at + 1]
    if first == _QUOTE:
        return _end_of_string(body, at)
    if first in {b"{", b"["}:
        return _end_of_nested(body, at)
    match = _SCALAR.match(body, at)
    if match is None:
        raise _Malformed(f"a value is expected at byte {at}")
    return match.end()


def _end_of_string(body: bytes, at: int) -> int:
    """Return the index behind the closing quote of the string that begins at *at*."""
    end = at
    while True:
        end = body.find(_QUOTE, end + 1)
        if end < 0:
            raise _Malformed(f"the string at byte {at} has no end")
        before = end - 1
        while body[before] == _BACKSLASH:
            before -= 1
        # an even number of backslashes in front escape one another, not the quote
        if (end - before) % 2 == 1:
            return end + 1


def _end_of_nested(body: bytes, at: int) -> int:
    """Return the index behind the bracket that closes the one at *at*."""
    depth = 0
    position = at
    while True:
        match = _MARK.search(body, position)
        if match is None:
            raise _Malformed(f"the bracket at byte {at} is never closed")
        mark = match.group()
        position = match.end()
        if mark == _QUOTE:
            position = _end_of_string(body, position - 1)
        elif mark in {b"{", b"["}:
            depth += 1
        else:
            depth -= 1
            if depth == 0:
                return position
