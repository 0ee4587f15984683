"""Turn the tokens of one sequence into vLLM's answer, whole or as server-sent events."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Protocol

from hpcserve.engines.fake import words
from hpcserve.engines.fake.faults import NO_FAULTS, Faults
from hpcserve.engines.fake.generation import Dialect, Generation
from hpcserve.engines.fake.sequences import Verdict

#: what vLLM says inside a stream when its core dies or stops
ENGINE_ERROR = {
    "error": {
        "message": "EngineCore encountered an issue. See stack trace (above) for the root cause.",
        "type": "InternalServerError",
        "param": None,
        "code": 500,
    }
}
DONE = b"data: [DONE]\n\n"


class Reply(Protocol):
    """The connection that waits for the answer."""

    def send(self, status: int, body: bytes, content_type: bytes = ...) -> None:
        """Answer whole."""
        ...

    def start_stream(self) -> None:
        """Send the head of an event stream."""
        ...

    def event(self, data: bytes) -> None:
        """Send one event as one chunk."""
        ...

    def end_stream(self) -> None:
        """End the body cleanly."""
        ...

    def reset(self) -> None:
        """Cut the connection."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Heading:
    """What every part of one answer repeats."""

    id: str
    created: int
    model: str


class Whole:
    """Collects the tokens and answers once."""

    def __init__(
        self, generation: Generation, heading: Heading, reply: Reply, faults: Faults
    ) -> None:
        """Take where the answer goes."""
        self._generation = generation
        self._heading = heading
        self._reply = reply
        self._faults = faults
        self._tokens: list[bytes] = []

    def token(self, packed: bytes, finish_reason: str | None) -> Verdict:
        """Keep the token; answer after the last."""
        if self._faults is not NO_FAULTS:
            match self._faults.at_token(len(self._tokens)):
                case "stall":
                    return Verdict.STALL
                case "malformed":
                    self._reply.send(200, b'{"id": "' + self._heading.id.encode())
                    return Verdict.LEAVE
                case "error":
                    self.cut_off()
                    return Verdict.LEAVE
                case "disconnect":
                    self._reply.reset()
                    return Verdict.LEAVE
                case None:
                    pass
        self._tokens.append(packed)
        if finish_reason:
            render = _WHOLE[self._generation.dialect]
            body = render(self._generation, self._heading, b"".join(self._tokens), finish_reason)
            self._reply.send(200, json.dumps(body).encode())
        return Verdict.GO_ON

    def cut_off(self) -> None:
        """Answer 500."""
        self._reply.send(500, json.dumps(ENGINE_ERROR).encode())


class Stream:
    """Sends each token as it comes."""

    def __init__(
        self, generation: Generation, heading: Heading, reply: Reply, faults: Faults
    ) -> None:
        """Send nothing yet: the head goes out with the first token, as vLLM's does."""
        self._generation = generation
        self._heading = heading
        self._reply = reply
        self._faults = faults
        self._emitted = 0
        self._started = False
        #: the whole text, which the last event of the Responses dialect repeats
        self._text = bytearray()
        self._before, self._after = _around_text(generation.dialect, heading)

    def token(self, packed: bytes, finish_reason: str | None) -> Verdict:
        """Send one event, and after the last token what ends the stream."""
        reply = self._reply
        if not self._started:
            self._started = True
            reply.start_stream()
            for event in _opening(self._generation, self._heading):
                reply.event(event)
        if self._faults is not NO_FAULTS:
            verdict = self._strike()
            if verdict is not Verdict.GO_ON:
                return verdict
        self._emitted += 1
        generation = self._generation
        if generation.dialect is Dialect.RESPONSE:
            self._text += packed
            reply.event(self._before + packed + self._after)
        elif finish_reason or generation.return_token_ids:
            reply.event(_event(self._chunk(packed, finish_reason)))
        else:
            reply.event(self._before + packed + self._after)
        if finish_reason:
            self._close(finish_reason)
        return Verdict.GO_ON

    def cut_off(self) -> None:
        """Say in the stream that the engine stops; answer 500 when nothing was sent yet."""
        if self._started:
            self._fail()
        else:
            self._reply.send(500, json.dumps(ENGINE_ERROR).encode())

    def _strike(self) -> Verdict:
        """Show the fault that is due before the next token."""
        match self._faults.at_token(self._emitted):
            case "stall":
                return Verdict.STALL
            case "malformed":
                self._reply.event(b'data: {"id": "' + self._heading.id.encode() + b"\n\n")
            case "error":
                self._fail()
                return Verdict.LEAVE
            case "disconnect":
                self._reply.reset()
                return Verdict.LEAVE
            case None:
                pass
        return Verdict.GO_ON

    def _fail(self) -> None:
        self._reply.event(_event(ENGINE_ERROR))
        self._reply.event(DONE)
        self._reply.end_stream()

    def _chunk(self, packed: bytes, finish_reason: str | None) -> dict[str, Any]:
        generation = self._generation
        choice: dict[str, Any] = {"index": 0}
        if generation.dialect is Dialect.CHAT:
            choice["delta"] = {"content": packed.decode()}
        else:
            choice["text"] = packed.decode()
        choice |= {"logprobs": None, "finish_reason": finish_reason}
        if generation.return_token_ids:
            choice["token_ids"] = words.unpack(packed)
            if generation.dialect is Dialect.COMPLETION and self._emitted == 1:
                choice["prompt_token_ids"] = words.unpack(generation.prompt)
        return _chunk_head(generation.dialect, self._heading) | {"choices": [choice]}

    def _close(self, finish_reason: str) -> None:
        """Send what stands behind the last token; vLLM's Responses end without `[DONE]`."""
        generation = self._generation
        is_response = generation.dialect is Dialect.RESPONSE
        if generation.include_usage and not is_response:
            head = _chunk_head(generation.dialect, self._heading)
            usage = _usage(generation, self._emitted)
            self._reply.event(_event(head | {"choices": [], "usage": usage}))
        if not self._faults.omit_done:
            last = DONE
            if is_response:
                body = _response(generation, self._heading, bytes(self._text), finish_reason)
                last = _response_event("response.completed", response=body)
            self._reply.event(last)
        self._reply.end_stream()


def _event(body: object) -> bytes:
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


def _response_event(kind: str, **fields: object) -> bytes:
    return f"event: {kind}\n".encode() + _event({"type": kind, **fields})


def _chunk_head(dialect: Dialect, heading: Heading) -> dict[str, Any]:
    kind = "chat.completion.chunk" if dialect is Dialect.CHAT else "text_completion"
    return {"id": heading.id, "object": kind, "created": heading.created, "model": heading.model}


def _around_text(dialect: Dialect, heading: Heading) -> tuple[bytes, bytes]:
    """Return what stands before and after a token's text in the event of an ordinary token."""
    if dialect is Dialect.RESPONSE:
        before, _, after = _response_event("response.output_text.delta", delta="|").partition(b"|")
        return before, after
    head = _event(_chunk_head(dialect, heading)).removesuffix(b"}\n\n")
    middle = b'"delta":{"content":"' if dialect is Dialect.CHAT else b'"text":"'
    after = b'"}' if dialect is Dialect.CHAT else b'"'
    return (
        head + b',"choices":[{"index":0,' + middle,
        after + b',"logprobs":null,"finish_reason":null}]}\n\n',
    )


def _opening(generation: Generation, heading: Heading) -> list[bytes]:
    """Return the events before the first token."""
    if generation.dialect is Dialect.COMPLETION:
        return []
    if generation.dialect is Dialect.RESPONSE:
        response = {"id": heading.id, "object": "response", "status": "in_progress"}
        return [_response_event("response.created", response=response)]
    delta = {"role": "assistant", "content": ""}
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
    body: dict[str, Any] = _chunk_head(Dialect.CHAT, heading) | {"choices": [choice]}
    if generation.return_token_ids:
        body["prompt_token_ids"] = words.unpack(generation.prompt)
    return [_event(body)]


def _usage(generation: Generation, emitted: int) -> dict[str, Any]:
    return {
        "prompt_tokens": generation.prompt_tokens,
        "total_tokens": generation.prompt_tokens + emitted,
        "completion_tokens": emitted,
    }


def _chat(generation: Generation, heading: Heading, text: bytes, reason: str) -> dict[str, Any]:
    choice: dict[str, Any] = {
        "index": 0,
        "message": {"role": "assistant", "content": text.decode()},
        "logprobs": None,
        "finish_reason": reason,
    }
    body: dict[str, Any] = {
        "id": heading.id,
        "object": "chat.completion",
        "created": heading.created,
        "model": heading.model,
        "choices": [choice],
        "usage": _usage(generation, len(text) // words.BYTES_PER_TOKEN),
    }
    if generation.return_token_ids:
        choice["token_ids"] = words.unpack(text)
        body["prompt_token_ids"] = words.unpack(generation.prompt)
    return body


def _completion(
    generation: Generation, heading: Heading, text: bytes, reason: str
) -> dict[str, Any]:
    choice: dict[str, Any] = {
        "index": 0,
        "text": text.decode(),
        "logprobs": None,
        "finish_reason": reason,
    }
    if generation.return_token_ids:
        choice["token_ids"] = words.unpack(text)
        choice["prompt_token_ids"] = words.unpack(generation.prompt)
    return {
        "id": heading.id,
        "object": "text_completion",
        "created": heading.created,
        "model": heading.model,
        "choices": [choice],
        "usage": _usage(generation, len(text) // words.BYTES_PER_TOKEN),
    }


def _response(generation: Generation, heading: Heading, text: bytes, reason: str) -> dict[str, Any]:
    count = len(text) // words.BYTES_PER_TOKEN
    part = {"type": "output_text", "text": text.decode(), "annotations": []}
    return {
        "id": heading.id,
        "object": "response",
        "created_at": heading.created,
        "model": heading.model,
        "status": "completed" if reason == "stop" else "incomplete",
        "output": [{"type": "message", "role": "assistant", "content": [part]}],
        "usage": {
            "input_tokens": generation.prompt_tokens,
            "output_tokens": count,
            "total_tokens": generation.prompt_tokens + count,
        },
    }


_WHOLE = {Dialect.CHAT: _chat, Dialect.COMPLETION: _completion, Dialect.RESPONSE: _response}
