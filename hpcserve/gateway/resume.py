"""Continues a stream on another instance after its own was lost: one stream to the client.

While a stream passes, a Transcript notes the ids of its tokens (the engine is asked for them, and
they are taken out again). When the instance is lost, the Continuation asks another one to complete
the prompt's ids plus the delivered ids through `/v1/completions`, and writes what comes as chunks
of the stream that the client already reads.

What is guaranteed: no token is lost or doubled; `usage` counts the request once. With greedy
sampling the text is that of an undisturbed run as far as the engine itself is deterministic: the
prefix is computed by prefill where it was computed by decode, which rounds otherwise in bfloat16.
With sampling the rest is drawn from the same distribution. What depends on the past in other ways
than through the tokens is not continued (`obstacle`); such a stream ends with an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from hpcserve.gateway.routes import Route
from hpcserve.gateway.sse import decoded
from hpcserve.gateway.usage import Usage, read_usage

#: fields with which a stream cannot be continued faithfully, and why
_OBSTACLES: Mapping[str, str] = {
    "tools": "a tool call may be half sent",
    "functions": "a function call may be half sent",
    "response_format": "the state of the grammar is lost",
    "structured_outputs": "the state of the grammar is lost",
    "guided_json": "the state of the grammar is lost",
    "guided_regex": "the state of the grammar is lost",
    "guided_choice": "the state of the grammar is lost",
    "guided_grammar": "the state of the grammar is lost",
    "logprobs": "chunks with log probabilities have another shape",
    "prompt_logprobs": "chunks with log probabilities have another shape",
    "stop": "a stop word may be half sent",
    "seed": "the state of the seeded sampler is lost",
    "presence_penalty": "the penalty counts the tokens of the answer",
    "frequency_penalty": "the penalty counts the tokens of the answer",
    "echo": "the prompt would come twice",
    "best_of": "several answers are compared",
    "use_beam_search": "several answers are compared",
    "stream_interval": "chunks are cut otherwise",
    "logits_processors": "the state of the processor is lost",
}
#: fields that go on to the other instance as they are
_KEPT = (
    "model",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "logit_bias",
    "stop_token_ids",
    "ignore_eos",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "priority",
    "user",
    "cache_salt",
)
RESUME_FIELDS = frozenset({*_OBSTACLES, *_KEPT, "min_tokens"})

_PROMPT_IDS = re.compile(rb',?"prompt_token_ids": ?\[([0-9, ]*)\]')
_IDS = re.compile(rb',"token_ids": ?(?:\[([0-9, ]*)\]|null)')
_IDS_BEGIN = b',"token_ids":['
_NO_TEXT = re.compile(rb'"(?:content|text)": ?""')
_FINISHED = re.compile(rb'"finish_reason": ?"')
#: an empty string somewhere, perhaps the text; a finish reason
_LOOK_CLOSER = (b'":""', b'": ""', b'_reason":"', b'_reason": "', b'"reasoning', b'"tool_calls"')
_BORDER = b"\n\n"
_DONE = b"data: [DONE]\n\n"


def obstacle(fields: Mapping[str, object]) -> str | None:
    """Return why a request cannot be continued elsewhere; None: it can."""
    for name, value in fields.items():
        # an empty list, a zero, false and null mean that it is not asked for
        if value and name in _OBSTACLES:
            return f"`{name}`: {_OBSTACLES[name]}"
    if fields.get("n", 1) not in {1, None}:
        return "`n`: several answers are interleaved"
    return None


class Transcript:
    """What a client has been sent so far of one stream, as token ids."""

    __slots__ = ("_hide_ids", "_prompt", "_sent", "_unheard", "finished", "head", "odd")

    def __init__(self, *, hide_ids: bool) -> None:
        """Take whether the ids are ours only; otherwise the client asked for them."""
        self._hide_ids = hide_ids
        self._prompt = b""
        #: ids of delivered text, and of tokens that have not shown as text yet
        self._sent: list[bytes] = []
        self._unheard: list[bytes] = []
        #: id, created and model of the stream
        self.head: dict[str, object] = {}
        #: its finish reason has been delivered
        self.finished = False
        #: it holds what a continuation could not go on with
        self.odd = False

    def note(self, events: bytes) -> bytes:
        """Note whole *events* on their way to the client; return them as the client gets them."""
        if not self.head or self._unheard or any(mark in events for mark in _LOOK_CLOSER):
            # the first event, the last ones, and those without text are looked at one by one
            return b"".join(self._note_one(event + _BORDER) for event in events.split(_BORDER)[:-1])
        if b'"token_ids"' not in events:
            return events
        self._sent += _IDS.findall(events)
        return _IDS.sub(b"", events) if self._hide_ids else events

    def note_plain(self, chunk: bytes, begin: int) -> bytes | None:
        """Note a whole chunk that `is_plain`; return it as the client gets it, None: not this way.

        The chunk comes and goes with its framing; its data begin at *begin*.
        """
        if not self.head or self._unheard:
            return None
        at = chunk.find(_IDS_BEGIN)
        if at < 0:
            return None if b'token_ids"' in chunk else chunk
        end = chunk.find(b"]", at)
        if end < 0 or chunk.find(b'token_ids"', end) >= 0:
            return None
        self._sent.append(chunk[at + len(_IDS_BEGIN) : end])
        if not self._hide_ids:
            return chunk
        cut = end + 1 - at
        return b"%x\r\n%b%b" % (len(chunk) - begin - 2 - cut, chunk[begin:at], chunk[end + 1 :])

    def _note_one(self, event: bytes) -> bytes:
        if not event.startswith(b"data: {"):
            return event
        if not self.head:
            content = decoded(event)
            self.head = {name: content.get(name) for name in ("id", "created", "model")}
        if not self._prompt:
            prompt = _PROMPT_IDS.search(event)
            if prompt is not None:
                self._prompt = prompt[1]
        if b'"reasoning' in event or b'"tool_calls":[{' in event:
            self.odd = True
        self._unheard += _IDS.findall(event)
        if _FINISHED.search(event):
            self.finished = True
        if self.finished or not _NO_TEXT.search(event):
            # what has no text yet (half a character) is generated again rather than lost
            self._sent += self._unheard
            self._unheard.clear()
        if not self._hide_ids:
            return event
        return _IDS.sub(b"", _PROMPT_IDS.sub(b"", event))

    @property
    def ready(self) -> bool:
        """Whether enough is known to go on elsewhere."""
        return bool(self._prompt) and not self.odd

    def prompt_ids(self) -> list[int]:
        """Return the prompt."""
        return [int(number) for number in self._prompt.split(b",") if number.strip()]

    def sent_ids(self) -> list[int]:
        """Return the delivered tokens."""
        return [int(number) for part in self._sent for number in part.split(b",") if number.strip()]

    def rewind(self) -> None:
        """Forget tokens that never showed as text: they are generated again."""
        self._unheard.clear()

    def add(self, ids: list[int], *, heard: bool) -> None:
        """Note tokens of a continuation."""
        self._unheard.append(",".join(map(str, ids)).encode())
        if heard:
            self._sent += self._unheard
            self._unheard.clear()


class Continuation:
    """The rest of one stream, asked of another instance."""

    def __init__(
        self,
        transcript: Transcript,
        route: Route,
        fields: Mapping[str, object],
        *,
        context_tokens: int,
    ) -> None:
        """Take what was sent, the request's RESUME_FIELDS, and the model's context length."""
        self._transcript = transcript
        self._chat = route.name == "chat"
        transcript.rewind()
        self._prompt = transcript.prompt_ids()
        self._sent = transcript.sent_ids()
        limit = _limit(fields)
        room = context_tokens - len(self._prompt)
        #: tokens that may still come
        self.left = min(limit if limit is not None else room, room) - len(self._sent)
        options = fields.get("stream_options")
        self._wants_usage = isinstance(options, Mapping) and bool(options.get("include_usage"))
        self._fields = fields
        #: whole request's usage, once the other instance has said its part
        self.usage: Usage | None = None

    def body(self) -> bytes:
        """Return the request to `/v1/completions`."""
        request: dict[str, object] = {
            name: self._fields[name] for name in _KEPT if name in self._fields
        }
        request |= {
            "prompt": [*self._prompt, *self._sent],
            "max_tokens": self.left,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
            "add_special_tokens": False,
        }
        fewest = self._fields.get("min_tokens")
        if isinstance(fewest, int):
            request["min_tokens"] = max(0, fewest - len(self._sent))
        return json.dumps(request).encode()

    def translate(self, events: bytes) -> bytes:
        """Return *events* of the other instance as events of the client's stream."""
        return b"".join(self._one(event) for event in events.split(_BORDER) if event)

    def ending(self) -> bytes:
        """Return what is missing when all tokens were sent but not the end of the stream."""
        last = b""
        if not self._transcript.finished:
            last = self._event({"index": 0, **self._text(""), "finish_reason": "length"})
        self.usage = Usage(prompt=len(self._prompt), completion=len(self._sent))
        return last + self._usage_event() + _DONE

    def _one(self, event: bytes) -> bytes:
        if not event.startswith(b"data:"):
            return event + _BORDER
        payload = event[5:].strip()
        if payload == b"[DONE]":
            return _DONE
        content = decoded(event)
        usage = read_usage(content)
        if usage is not None:
            self.usage = Usage(
                prompt=len(self._prompt),
                completion=len(self._sent) + usage.completion,
                cached=usage.cached if not self._sent else 0,
            )
        choices = content.get("choices")
        if not isinstance(choices, list) or not choices:
            return self._usage_event() if usage is not None else b""
        choice = choices[0]
        text = choice.get("text") or ""
        finish = choice.get("finish_reason")
        self._transcript.add(choice.get("token_ids") or [], heard=bool(text or finish))
        if finish:
            self._transcript.finished = True
        return self._event({"index": 0, **self._text(text), "finish_reason": finish})

    def _text(self, text: str) -> dict[str, object]:
        return {"delta": {"content": text}} if self._chat else {"text": text}

    def _event(self, choice: dict[str, object]) -> bytes:
        return self._write({"choices": [{**choice, "logprobs": None}]})

    def _usage_event(self) -> bytes:
        usage = self.usage
        if not self._wants_usage or usage is None:
            return b""
        counts = {
            "prompt_tokens": usage.prompt,
            "completion_tokens": usage.completion,
            "total_tokens": usage.prompt + usage.completion,
        }
        return self._write({"choices": [], "usage": counts})

    def _write(self, content: dict[str, object]) -> bytes:
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        event = {**self._transcript.head, "object": kind, **content}
        return b"data: " + json.dumps(event, separators=(",", ":")).encode() + _BORDER


def _limit(fields: Mapping[str, object]) -> int | None:
    """Return the client's limit of tokens."""
    for name in ("max_completion_tokens", "max_tokens"):
        value = fields.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None
