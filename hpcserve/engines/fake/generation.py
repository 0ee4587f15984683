"""Read the bodies of inference calls into a Generation, or refuse them as vLLM does."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from hpcserve.engines.fake import words
from hpcserve.errors import RequestError

#: what vLLM takes for a completion that names no length, tokens
COMPLETION_DEFAULT_TOKENS = 16


class Dialect(Enum):
    """Which of OpenAI's calls a generation answers."""

    CHAT = "chatcmpl"
    COMPLETION = "cmpl"
    RESPONSE = "resp"


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One checked request."""

    dialect: Dialect
    #: packed tokens
    prompt: bytes
    max_tokens: int
    #: the answer may use all of the context, so it ends where its text says so
    open_ended: bool
    stream: bool
    include_usage: bool
    return_token_ids: bool
    #: of the body; smaller is sooner
    priority: int = 0

    @property
    def prompt_tokens(self) -> int:
        """Number of tokens of the prompt."""
        return len(self.prompt) // words.BYTES_PER_TOKEN


def read_object(body: bytes, *, model: str) -> dict[str, Any]:
    """Return the JSON object of a body; refuse bad JSON with 400 and another model with 404."""
    try:
        raw = json.loads(body)
    except ValueError as error:
        raise RequestError(f"the body is not valid JSON: {error}") from error
    if not isinstance(raw, dict):
        raise RequestError("the body must be a JSON object")
    wanted = raw.get("model", model)
    if wanted != model:
        raise RequestError(f"The model `{wanted}` does not exist.", http_status=404, param="model")
    return raw


def read_generation(dialect: Dialect, raw: Mapping[str, Any], *, max_model_len: int) -> Generation:
    """Check the fields that the fake engine knows and ignore the others."""
    if raw.get("n", 1) not in {1, None}:
        raise RequestError("the fake engine gives one choice: n must be 1", param="n")
    prompt = _PROMPTS[dialect](raw)
    length = len(prompt) // words.BYTES_PER_TOKEN
    room = max_model_len - length
    if room < 1:
        raise RequestError(
            f"This model's maximum context length is {max_model_len} tokens, and the prompt"
            f" contains {length}.",
            param="input_tokens",
        )
    max_tokens = _max_tokens(dialect, raw)
    if max_tokens is None:
        max_tokens = min(COMPLETION_DEFAULT_TOKENS, room) if dialect is Dialect.COMPLETION else room
    if max_tokens > room:
        raise RequestError(
            f"This model's maximum context length is {max_model_len} tokens. However, you requested"
            f" {max_tokens} output tokens and your prompt contains {length} input tokens.",
            param="max_tokens",
        )
    priority = raw.get("priority", 0)
    if not isinstance(priority, int):
        raise RequestError(f"priority must be an integer, got {priority!r}.", param="priority")
    options = raw.get("stream_options") or {}
    return Generation(
        dialect=dialect,
        prompt=prompt,
        max_tokens=max_tokens,
        open_ended=max_tokens == room and not raw.get("ignore_eos"),
        stream=bool(raw.get("stream")),
        include_usage=isinstance(options, Mapping) and bool(options.get("include_usage")),
        return_token_ids=bool(raw.get("return_token_ids")),
        priority=priority,
    )


def read_prompt(value: object, *, param: str) -> bytes:
    """Return the packed tokens of one prompt given as text or as token ids."""
    if isinstance(value, str) and value:
        return words.encode(value)
    if isinstance(value, list) and value:
        if len(value) == 1 and isinstance(value[0], str | list):
            return read_prompt(value[0], param=param)
        try:
            return words.pack(value)
        except struct.error as error:
            raise RequestError(
                f"{param} must be one text or one list of token ids", param=param
            ) from error
    raise RequestError(f"{param} must be one text or one list of token ids", param=param)


def read_messages(messages: object) -> bytes:
    """Return the packed tokens of a conversation under the fake engine's chat template."""
    if not isinstance(messages, list) or not messages:
        raise RequestError("messages must be a list with at least one message", param="messages")
    turns = [_turn(message) for message in messages]
    return words.encode("".join(turns) + "<|assistant|>")


def read_inputs(value: object) -> Sequence[bytes]:
    """Return the packed tokens of each input of an embeddings call."""
    if isinstance(value, list) and value and isinstance(value[0], str | list):
        return [read_prompt(one, param="input") for one in value]
    return [read_prompt(value, param="input")]


def _turn(message: object) -> str:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise RequestError("each message must be an object with a role", param="messages")
    content = message.get("content") or ""
    if isinstance(content, list):
        content = "".join(
            str(part.get("text", "")) if isinstance(part, Mapping) else str(part)
            for part in content
        )
    if not isinstance(content, str):
        raise RequestError("a message's content must be text or parts", param="messages")
    return f"<|{message['role']}|>{content}"


def _response_prompt(raw: Mapping[str, Any]) -> bytes:
    value = raw.get("input")
    return read_messages([{"role": "user", "content": value}] if isinstance(value, str) else value)


def _max_tokens(dialect: Dialect, raw: Mapping[str, Any]) -> int | None:
    names = _LENGTH_FIELDS[dialect]
    value = next((raw[name] for name in names if raw.get(name) is not None), None)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise RequestError(f"{names[-1]} must be at least 1, got {value!r}.", param=names[-1])
    return value


_PROMPTS = {
    Dialect.CHAT: lambda raw: read_messages(raw.get("messages")),
    Dialect.COMPLETION: lambda raw: read_prompt(raw.get("prompt"), param="prompt"),
    Dialect.RESPONSE: _response_prompt,
}

_LENGTH_FIELDS = {
    Dialect.CHAT: ("max_completion_tokens", "max_tokens"),
    Dialect.COMPLETION: ("max_tokens",),
    Dialect.RESPONSE: ("max_output_tokens",),
}
