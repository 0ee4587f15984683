"""Tokens of one request as the engine counted them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

#: tail of an answer in which its usage is looked for, bytes
_TAIL = 4096
#: as vLLM writes it, and as OpenAI does
_USUAL = re.compile(
    rb'"usage": ?\{"prompt_tokens": ?(\d+),\s?(?:"total_tokens": ?\d+,\s?)?'
    rb'"completion_tokens": ?(\d+)(?:,\s?"total_tokens": ?\d+)?'
    rb'(?:,\s?"prompt_tokens_details": ?null)?\}'
)
_PROMPT = re.compile(rb'"(?:prompt|input)_tokens": ?(\d+)')
_COMPLETION = re.compile(rb'"(?:completion|output)_tokens": ?(\d+)')
_CACHED = re.compile(rb'"cached_tokens": ?(\d+)')


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Prompt and completion tokens; `cached` is the part of the prompt that was not computed."""

    prompt: int
    completion: int
    cached: int = 0


def usage_at_end(body: bytes) -> Usage | None:
    """Return the usage that stands near the end of a complete answer.

    The quotes around the name cannot stem from text, which escapes them.
    """
    at = body.rfind(b'"usage":', max(0, len(body) - _TAIL))
    if at < 0:
        return None
    usual = _USUAL.match(body, at)
    if usual is not None:
        return Usage(prompt=int(usual[1]), completion=int(usual[2]))
    prompt = _PROMPT.search(body, at)
    if prompt is None:
        return None
    completion = _COMPLETION.search(body, at)
    cached = _CACHED.search(body, at)
    return Usage(
        prompt=int(prompt[1]),
        completion=int(completion[1]) if completion else 0,
        cached=int(cached[1]) if cached else 0,
    )


def read_usage(content: Mapping[str, object]) -> Usage | None:
    """Return the usage in a decoded answer or event of any of the served APIs."""
    usage = content.get("usage")
    if usage is None:
        for nested in (content.get("response"), content.get("message")):
            if isinstance(nested, Mapping):
                usage = nested.get("usage")
    if not isinstance(usage, Mapping):
        return None
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
    return Usage(
        prompt=_count(usage, "prompt_tokens", "input_tokens"),
        completion=_count(usage, "completion_tokens", "output_tokens"),
        cached=_count(details, "cached_tokens") if isinstance(details, Mapping) else 0,
    )


def _count(fields: Mapping[str, object], *names: str) -> int:
    for name in names:
        value = fields.get(name)
        if isinstance(value, int):
            return value
    return 0
