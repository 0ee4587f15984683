"""One model's requests as flows over its instances: what `study` needs to run a month in seconds.

- Chat: the router spreads requests evenly (`least_loaded`), so the READY instances of a model are
  one pool: C requests in it, each done after L tokens at the pool's inter-token latency. Arrivals
  wait in arrival order when no slot is free, and are refused after the gateway's queue timeout.
- Batch: fills what the local limit leaves: on chat instances its equilibrium (ITL within the
  promise, an eighth of the slots free while chat is there), on batch instances all seats. Batches
  are served in the order of the production packer.
- Prefill holds the engine: it is taken off the decoding time.
- A step is short against a request; within it everything is linear.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from hpcserve.domain.model import Model
from hpcserve.sim.performance import Performance

#: part of an engine's time that prefill may take
_PREFILL_MAX = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Mean tokens of one kind of request."""

    prompt: float
    output: float

    @property
    def held(self) -> float:
        """KV tokens that a request holds, on average over its life."""
        return self.prompt + self.output / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class SimBatch:
    """One batch."""

    at_s: float
    requests: int
    #: completion window
    within_s: float
    shape: Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class SimModel:
    """One model with its load."""

    model: Model
    performance: Performance
    chat: Shape
    #: interactive requests that arrive in each step
    arrivals: Sequence[int]
    batches: tuple[SimBatch, ...] = ()
    #: engine slots that the local limit may use; without a local limit `max_num_seqs` is all
    engine_seqs: int | None = None


@dataclass(slots=True)
class OpenBatch:
    """A batch that is not done."""

    id: str
    batch: SimBatch
    left: float

    @property
    def deadline_s(self) -> float:
        """When its window closes."""
        return self.batch.at_s + self.batch.within_s


@dataclass(slots=True)
class Served:
    """What one model's users got."""

    chat: float = 0.0
    chat_refused: float = 0.0
    #: first token within the promise
    ttft_kept: float = 0.0
    #: tokens within the promise, weighted by requests in flight
    itl_kept: float = 0.0
    itl_seen: float = 0.0
    #: in flight on an instance that was lost: computed again elsewhere
    chat_replayed: float = 0.0
    batch: float = 0.0
    batch_late: float = 0.0
    output_tokens: float = 0.0
    #: chat was wanted and nobody served, s: before the first instance, and later
    cold_s: float = 0.0
    gap_s: float = 0.0


@dataclass(slots=True)
class Flow:
    """The state of one model's flows."""

    of: SimModel
    step_s: float
    queue_timeout_s: float
    #: whether the agents' local limit lets batch use what chat leaves
    local_limit: bool
    served: Served = field(default_factory=Served)
    #: chat in flight on instances
    chat: float = 0.0
    #: (arrived at, how many)
    waiting: deque[tuple[float, float]] = field(default_factory=deque)
    queued: float = 0.0
    #: waits to be served again
    replayed: float = 0.0
    batches: list[OpenBatch] = field(default_factory=list)
    #: batch requests in flight on a chat instance, and on a batch instance
    batch_mixed: float = 0.0
    batch_only: float = 0.0
    requests_total: float = 0.0
    itl_s: float = 0.0
    #: as an engine's histogram counts them: s, and tokens
    itl_sum_s: float = 0.0
    itl_count: float = 0.0
    _prefill: float = 0.0
    _admitted: float = 0.0
    #: somebody served once
    _warm: bool = False

    def arrive(self, now_s: float, count: int) -> None:
        """Take interactive requests in."""
        if count:
            self.waiting.append((now_s, float(count)))
            self.queued += count
            self.served.chat += count

    def lose(self, instances: int, before: int) -> None:
        """Some chat instances are gone at once: their requests are served again elsewhere."""
        if before > 0 and self.chat > 0:
            lost = self.chat * instances / before
            self.chat -= lost
            self.served.chat_replayed += lost
            self.replayed += lost

    def step(self, now_s: float, mixed: int, batch_only: int) -> None:
        """Let a step pass with so many READY instances of either kind."""
        perf, model = self.of.performance, self.of.model
        shape = self.of.chat
        seats = perf.seats(shape.prompt + shape.output, model.max_num_seqs)
        self._refuse(now_s)
        if mixed == 0:
            self.batch_mixed = 0.0
            if self.queued + self.replayed > 0:
                if self._warm:
                    self.served.gap_s += self.step_s
                else:
                    self.served.cold_s += self.step_s
        else:
            self._warm = True
            self._admit(now_s, mixed, seats)
            self._decode_chat(mixed)
        self._decode_batch(now_s, mixed, batch_only)

    def _refuse(self, now_s: float) -> None:
        while self.waiting and self.waiting[0][0] < now_s - self.queue_timeout_s:
            _, count = self.waiting.popleft()
            self.queued -= count
            self.served.chat_refused += count

    def _admit(self, now_s: float, mixed: int, seats: int) -> None:
        again = min(self.replayed, max(0.0, mixed * seats - self.chat))
        self.replayed -= again
        self.chat += again
        # slots that fall free within the step are taken again within it
        lasts_s = self.of.chat.output * (self.itl_s or self.of.performance.itl_s(0, 0))
        free = max(0.0, mixed * seats - self.chat) + mixed * seats * min(1.0, self.step_s / lasts_s)
        prefill_s = self.of.performance.prefill_s(self.of.chat.prompt)
        promised_s = self.of.model.ttft_slo_ms / 1000
        admitted = 0.0
        while self.waiting and free > 0:
            arrived_s, count = self.waiting[0]
            taken = min(count, free)
            free -= taken
            admitted += taken
            self.queued -= taken
            # a step's prompts go through one after another on each instance
            ttft_s = now_s - arrived_s + prefill_s * (1 + admitted / mixed / 2)
            if ttft_s <= promised_s:
                self.served.ttft_kept += taken
            if taken < count:
                self.waiting[0] = (arrived_s, count - taken)
            else:
                self.waiting.popleft()
        if not self.waiting:
            # exactly none: what is left of sums of fractions would hold batch back for ever
            self.queued = 0.0
        self._admitted = admitted
        self._prefill = min(_PREFILL_MAX, admitted / mixed * prefill_s / self.step_s)

    def _decode_chat(self, mixed: int) -> None:
        perf, model, shape = self.of.performance, self.of.model, self.of.chat
        each = (self.chat + self._admitted / 2) / mixed
        self.batch_mixed = self._room(each) if self.batches else 0.0
        held = each * shape.held + self._held(self.batch_mixed)
        self.itl_s = perf.itl_s(each + self.batch_mixed, held) / (1 - self._prefill)
        tokens = (each * mixed + mixed * self.batch_mixed) * self.step_s / self.itl_s
        self.itl_sum_s += tokens * self.itl_s
        self.itl_count += tokens
        if self.chat + self._admitted > 0:
            self.served.itl_seen += self.chat
            if self.itl_s <= model.itl_slo_ms / 1000:
                self.served.itl_kept += self.chat
            lasts_s = shape.output * self.itl_s
            left = math.exp(-self.step_s / lasts_s)
            flow = self._admitted / self.step_s
            end = self.chat * left + flow * lasts_s * (1 - left)
            done = self.chat + self._admitted - end
            self.chat = end
            self.requests_total += done
            self.served.output_tokens += done * shape.output

    def _room(self, chat_each: float) -> float:
        """Return the batch requests that the local limit comes to beside so much chat."""
        perf, model = self.of.performance, self.of.model
        shape = self.batches[0].batch.shape
        ceiling = (self.of.engine_seqs if self.local_limit else None) or model.max_num_seqs
        seats = perf.seats(shape.prompt + shape.output, ceiling)
        if self.queued > 0:
            # the agents shed batch for the chat that waits
            return 0.0
        room = seats - max(1, ceiling // 8) - chat_each if chat_each >= 1 else float(seats)
        if chat_each >= 1 and self.local_limit:
            each_s = perf.itl_per_request_s + perf.itl_per_kv_token_s * shape.held
            slack_s = model.itl_slo_ms / 1000 * (1 - self._prefill) - perf.itl_s(
                chat_each, chat_each * self.of.chat.held
            )
            room = min(room, slack_s / max(each_s, 1e-9))
        return max(0.0, room)

    def _held(self, batch: float) -> float:
        return batch * self.batches[0].batch.shape.held if self.batches else 0.0

    def _decode_batch(self, now_s: float, mixed: int, batch_only: int) -> None:
        self.batch_only = 0.0
        if not self.batches:
            return
        perf, model = self.of.performance, self.of.model
        shape = self.batches[0].batch.shape
        rate = 0.0
        if mixed:
            rate += mixed * self._rate(self.batch_mixed, self.itl_s, shape)
        if batch_only:
            ceiling = (self.of.engine_seqs if self.local_limit else None) or model.max_num_seqs
            self.batch_only = float(perf.seats(shape.prompt + shape.output, ceiling))
            itl_s = perf.itl_s(self.batch_only, self.batch_only * shape.held)
            rate += batch_only * self._rate(self.batch_only, itl_s, shape)
        work = rate * self.step_s
        for batch in list(self.batches):
            if work <= 0:
                break
            done = min(batch.left, work)
            work -= done
            batch.left -= done
            self.requests_total += done
            self.served.output_tokens += done * batch.batch.shape.output
            if now_s > batch.deadline_s:
                self.served.batch_late += done
            self.served.batch += done
            if batch.left <= 0.5:  # noqa: PLR2004 - less than one request is left
                self.batches.remove(batch)

    def _rate(self, running: float, itl_s: float, shape: Shape) -> float:
        """Return requests a second; their own prefill takes its part of the time."""
        if running <= 0:
            return 0.0
        decode = running / (itl_s * shape.output)
        return decode / (1 + decode * self.of.performance.prefill_s(shape.prompt))

    def kv_used_ratio(self, mixed: int, *, batch_only: bool) -> float:
        """Return how full the KV cache of one instance is."""
        held = self._held(self.batch_only)
        if not batch_only:
            held = self._held(self.batch_mixed) + self.chat / max(1, mixed) * self.of.chat.held
        return min(1.0, held / self.of.performance.kv_tokens)
