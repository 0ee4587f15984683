"""Continuous batching in miniature: so many sequences run, the others wait in order of arrival.

With `interactive_first` a batch sequence gives its place up to an interactive one, waits with its
tokens kept, and is prefilled anew; who gives way is decided by the code that decides it in vLLM.

A sequence that gets a place is prefilled (`ttft_ms` and its prompt's share), then gives one token
each inter-token latency, which grows with the number that runs. Due times are absolute, so a loop
that lags catches up and the rate holds. With no latency set a whole answer is made in one go. As in
vLLM by default, the queue has no bound: whoever fills it has to set one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from enum import Enum
from itertools import chain
from random import Random
from typing import Protocol
from zlib import crc32

from hpcserve.engines.fake import words
from hpcserve.engines.fake.generation import Generation
from hpcserve.engines.fake.meters import Meters
from hpcserve.engines.fake.settings import Settings
from hpcserve.engines.vllm.plugins.hpcserve_slots import (
    BATCH,
    INTERACTIVE,
    Room,
    SlotsFile,
    allowed,
    class_of,
    leaving,
)

#: between two looks at the limit of batch, s
LOOK_S = 0.02


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

    __slots__ = (
        "arrival_time",
        "due",
        "emitted",
        "generation",
        "priority",
        "sink",
        "state",
        "timer",
    )

    def __init__(
        self, generation: Generation, sink: Sink, *, arrival_time: float, priority: int
    ) -> None:
        """Start at the end of the prompt; *priority* is the class, INTERACTIVE or BATCH."""
        self.generation = generation
        self.sink = sink
        self.arrival_time = arrival_time
        self.priority = priority
        self.due = arrival_time
        self.emitted = 0
        self.state = words.start(generation.prompt)
        self.timer: asyncio.TimerHandle | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt and of what was generated."""
        return self.generation.prompt_tokens + self.emitted


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
        #: by class; what gave way stands before what never ran
        self._waiting: dict[int, deque[Sequence]] = {INTERACTIVE: deque(), BATCH: deque()}
        self._interactive_first = settings.interactive_first
        self._slots_file = SlotsFile(settings.batch_slots_file)
        self._batch_slots: int | None = None
        if settings.batch_slots_file:
            self._look()
        self._generated = 0
        self._idle: asyncio.Future[None] | None = None

    async def wait_idle(self) -> None:
        """Wait until nothing runs or waits."""
        if self._running or any(self._waiting.values()):
            self._idle = self._loop.create_future()
            await self._idle

    def add(self, generation: Generation, sink: Sink, *, priority: int) -> Sequence:
        """Run the sequence now or let it wait."""
        kind = class_of(priority) if self._interactive_first else INTERACTIVE
        sequence = Sequence(generation, sink, arrival_time=self._loop.time(), priority=kind)
        if not any(self._waiting.values()) and len(self._running) < self._places(kind):
            self._run(sequence)
            return sequence
        self._waiting[kind].append(sequence)
        if kind == INTERACTIVE:
            self._make_room()
            self._fill()
        return sequence

    def abort(self, sequence: Sequence) -> None:
        """Free the sequence's place at once; vLLM counts no abort, so neither does this."""
        if sequence in self._running:
            self._leave(sequence)
        elif sequence in (waiting := self._waiting[sequence.priority]):
            waiting.remove(sequence)

    def cut_all(self) -> None:
        """End every sequence before its time, as a stopping engine does."""
        for sequence in (*self._running, *chain(*self._waiting.values())):
            self.abort(sequence)
            sequence.sink.cut_off()

    def measure(self) -> None:
        """Bring the gauges and the token counter up to date."""
        self._meters.generation_tokens.inc(self._generated)
        self._generated = 0
        self._meters.running.set(len(self._running))
        self._meters.waiting.set(sum(map(len, self._waiting.values())))
        used = sum(one.num_tokens for one in self._running)
        self._meters.kv_cache.set(used / self._kv_tokens)

    def _look(self) -> None:
        """Read the limit of batch, over and over, as an engine does in each of its steps."""
        if (limit := self._slots_file.read()) != self._batch_slots:
            self._batch_slots = limit
            self._make_room()
            self._fill()
        self._loop.call_later(LOOK_S, self._look)

    def _make_room(self) -> None:
        """Push out the batch sequences that give way."""
        for sequence in leaving(tuple(self._running), self._waiting[INTERACTIVE], self._room):
            # waiting first: with nothing running or waiting, the engine would count as idle
            self._waiting[BATCH].appendleft(sequence)
            self._leave(sequence)
            self._meters.preemptions.inc()

    @property
    def _room(self) -> Room:
        # The KV cache holds every sequence at its full length, so blocks are never short.
        return Room(
            slots=self._limit,
            batch_slots=self._batch_slots,
            blocks=self._kv_tokens,
            block_tokens=1,
        )

    def _places(self, kind: int) -> int:
        """Return how many sequences may run for another one of its class to be added."""
        if kind == INTERACTIVE or self._batch_slots is None:
            return self._limit
        return allowed(tuple(self._running), (), self._room)

    def _run(self, sequence: Sequence) -> None:
        self._running[sequence] = None
        prompt_tokens = sequence.generation.prompt_tokens
        if not sequence.emitted:
            self._meters.prompt_tokens.inc(prompt_tokens)
            self._meters.prefix_queries.inc(prompt_tokens)
        # A sequence that waited starts its clock when it gets its place.
        sequence.due = self._loop.time()
        self._step_after(sequence, self._ttft_s + sequence.num_tokens * self._s_per_prompt_token)

    def _step_after(self, sequence: Sequence, delay_s: float) -> None:
        if not delay_s:
            self._step(sequence)
            return
        if self._jitter:
            delay_s *= 1 + self._random.uniform(-self._jitter, self._jitter)
        sequence.due += delay_s
        wait_s = max(0.0, sequence.due - self._loop.time())
        sequence.timer = self._loop.call_later(wait_s, self._step, sequence)

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
                self._meters.ttft_s.observe(self._loop.time() - sequence.arrival_time)
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
        self._meters.e2e_s.observe(self._loop.time() - sequence.arrival_time)
        self._leave(sequence)

    def _leave(self, sequence: Sequence) -> None:
        if sequence.timer is not None:
            sequence.timer.cancel()
            sequence.timer = None
        del self._running[sequence]
        if any(self._waiting.values()):
            # Not from here: with no latency set, one end would lead to the next without end.
            self._loop.call_soon(self._fill)
        elif not self._running and self._idle and not self._idle.done():
            self._idle.set_result(None)

    def _fill(self) -> None:
        """Give free places to what waits, interactive sequences first."""
        for kind, waiting in self._waiting.items():
            places = self._places(kind)
            while waiting and len(self._running) < places:
                self._run(waiting.popleft())
