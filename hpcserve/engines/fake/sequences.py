"""Continuous batching in miniature: so many sequences run, the others wait in order of arrival.

A sequence that gets a place is prefilled (`ttft_ms` and its prompt's share), then gives one token
each inter-token latency, which grows with the number that runs. Due times are absolute, so a loop
that lags catches up and the rate holds. With no latency set a whole answer is made in one go. As in
vLLM by default, the queue has no bound: whoever fills it has to set one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from enum import Enum
from random import Random
from typing import Protocol
from zlib import crc32

from hpcserve.engines.fake import words
from hpcserve.engines.fake.generation import Generation
from hpcserve.engines.fake.meters import Meters
from hpcserve.engines.fake.settings import Settings


class Verdict(Enum):
    """What becomes of a sequence after a token."""

    GO_ON = "go on"
    #: keep the place and never give another token
    STALL = "stall"
    #: give up the place
    LEAVE = "leave"


class Sink(Protocol):
    """Where the tokens of one sequence go."""

    def token(self, packed: bytes, finish_reason: str | None) -> Verdict:
        """Take one token and say how it goes on; ignored after a token with a finish reason."""
        ...

    def cut_off(self) -> None:
        """Learn that the engine stops before the answer is complete."""
        ...


class Sequence:
    """One request on its way through the engine."""

    __slots__ = ("arrived", "due", "emitted", "generation", "sink", "state", "timer")

    def __init__(self, generation: Generation, sink: Sink, arrived: float) -> None:
        """Start at the end of the prompt."""
        self.generation = generation
        self.sink = sink
        self.arrived = arrived
        self.due = arrived
        self.emitted = 0
        self.state = words.start(generation.prompt)
        self.timer: asyncio.TimerHandle | None = None


class Sequences:
    """The running batch and the queue before it."""

    def __init__(self, settings: Settings, meters: Meters, loop: asyncio.AbstractEventLoop) -> None:
        """Take the timing from the settings."""
        self._limit = settings.max_num_seqs
        self._kv_tokens = settings.max_num_seqs * settings.max_model_len
        self._ttft_s = settings.ttft_ms / 1000
        self._s_per_prompt_token = (
            1 / settings.prefill_tokens_per_s if settings.prefill_tokens_per_s else 0.0
        )
        self._itl_s = settings.itl_ms / 1000
        self._itl_s_per_seq = settings.itl_ms_per_seq / 1000
        self._jitter = settings.jitter_ratio
        self._random = Random(settings.seed)  # noqa: S311 - jitter, not a secret
        self._meters = meters
        self._loop = loop
        self._running: dict[Sequence, None] = {}
        self._waiting: deque[Sequence] = deque()
        self._generated = 0
        self._idle: asyncio.Future[None] | None = None

    async def wait_idle(self) -> None:
        """Wait until nothing runs or waits."""
        if self._running:
            self._idle = self._loop.create_future()
            await self._idle

    def add(self, generation: Generation, sink: Sink) -> Sequence:
        """Run the sequence now or let it wait."""
        sequence = Sequence(generation, sink, self._loop.time())
        if len(self._running) < self._limit and not self._waiting:
            self._run(sequence)
        else:
            self._waiting.append(sequence)
        return sequence

    def abort(self, sequence: Sequence) -> None:
        """Free the sequence's place at once; vLLM counts no abort, so neither does this."""
        if sequence in self._running:
            self._leave(sequence)
        elif sequence in self._waiting:
            self._waiting.remove(sequence)

    def cut_all(self) -> None:
        """End every sequence before its time, as a stopping engine does."""
        for sequence in (*self._running, *self._waiting):
            self.abort(sequence)
            sequence.sink.cut_off()

    def measure(self) -> None:
        """Bring the gauges and the token counter up to date."""
        self._meters.generation_tokens.inc(self._generated)
        self._generated = 0
        self._meters.running.set(len(self._running))
        self._meters.waiting.set(len(self._waiting))
        used = sum(one.generation.prompt_tokens + one.emitted for one in self._running)
        self._meters.kv_cache.set(used / self._kv_tokens)

    def _run(self, sequence: Sequence) -> None:
        self._running[sequence] = None
        prompt_tokens = sequence.generation.prompt_tokens
        self._meters.prompt_tokens.inc(prompt_tokens)
        self._meters.prefix_queries.inc(prompt_tokens)
        self._step_after(sequence, self._ttft_s + prompt_tokens * self._s_per_prompt_token)

    def _step_after(self, sequence: Sequence, delay_s: float) -> None:
        if not delay_s:
            self._step(sequence)
            return
        if self._jitter:
            delay_s *= 1 + self._random.uniform(-self._jitter, self._jitter)
        now = self._loop.time()
        # A sequence that waited starts its clock when it gets its place.
        sequence.due = (now if not sequence.emitted else sequence.due) + delay_s
        sequence.timer = self._loop.call_later(max(0.0, sequence.due - now), self._step, sequence)

    def _step(self, sequence: Sequence) -> None:
        """Give tokens until the next one is not due yet."""
        generation = sequence.generation
        sink = sequence.sink
        while True:
            packed = words.following(sequence.state)
            sequence.state = state = crc32(packed, sequence.state)
            sequence.emitted = emitted = sequence.emitted + 1
            reason = None
            if generation.open_ended and words.ends(state):
                reason = "stop"
            elif emitted == generation.max_tokens:
                reason = "length"
            if emitted == 1:
                self._meters.ttft_s.observe(self._loop.time() - sequence.arrived)
            self._generated += 1
            verdict = sink.token(packed, reason)
            if reason:
                self._finish(sequence, reason)
                return
            if verdict is not Verdict.GO_ON:
                if verdict is Verdict.LEAVE:
                    self._leave(sequence)
                return
            itl_s = self._itl_s + self._itl_s_per_seq * (len(self._running) - 1)
            if itl_s:
                self._meters.itl_s.observe(itl_s)
                self._step_after(sequence, itl_s)
                return

    def _finish(self, sequence: Sequence, reason: str) -> None:
        self._meters.finished[reason].inc()
        self._meters.e2e_s.observe(self._loop.time() - sequence.arrived)
        self._leave(sequence)

    def _leave(self, sequence: Sequence) -> None:
        if sequence.timer is not None:
            sequence.timer.cancel()
            sequence.timer = None
        del self._running[sequence]
        if self._waiting:
            # Not from here: with no latency set, one end would lead to the next without end.
            self._loop.call_soon(self._fill)
        elif not self._running and self._idle and not self._idle.done():
            self._idle.set_result(None)

    def _fill(self) -> None:
        while self._waiting and len(self._running) < self._limit:
            self._run(self._waiting.popleft())
