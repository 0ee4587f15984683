"""Commits results: those that arrive at the same time share one write, one fsync, one transaction.

While a group is being made durable the next one collects, so the group grows with the load and a
lone result never waits. A lease that was lost fails alone; its neighbours in the group commit.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from hpcserve.batching.segments import Segments, Slice
from hpcserve.config.tree import Batching
from hpcserve.domain.batch import RequestEvent, Result
from hpcserve.errors import FencedError, RequestError
from hpcserve.ports.clock import Clock
from hpcserve.ports.control import Outcome
from hpcserve.ports.ledger import Ledger, Tx

_FINAL = (RequestEvent.ANSWERED, RequestEvent.REFUSED)


@dataclass(slots=True)
class _Handed:
    instance_id: str
    lease_id: int
    outcomes: Sequence[Outcome]
    taken: asyncio.Future[frozenset[int]]


class Settling:
    """The group commit of this process."""

    def __init__(
        self, *, ledger: Ledger, clock: Clock, settings: Batching, segments: Segments
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._settings = settings
        self._segments = segments
        self._queue: deque[_Handed] = deque()
        self._worker: asyncio.Task[None] | None = None

    async def settle(
        self, instance_id: str, lease_id: int, outcomes: Sequence[Outcome]
    ) -> frozenset[int]:
        """Return the lines taken, once they are durable.

        Raises:
            FencedError: the lease is lost.
            BackendError: the disk or the ledger fails; hand them in again.
            RequestError: an outcome is none.

        """
        _check(outcomes)
        taken: asyncio.Future[frozenset[int]] = asyncio.get_running_loop().create_future()
        self._queue.append(_Handed(instance_id, lease_id, outcomes, taken))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._drain(), name="settling")
        return await taken

    async def _drain(self) -> None:
        while self._queue:
            size = min(len(self._queue), self._settings.settle_group)
            group = [self._queue.popleft() for _ in range(size)]
            group = [handed for handed in group if not handed.taken.done()]
            try:
                answers = await self._commit(group)
            except Exception as error:  # noqa: BLE001  # belongs to the callers: each gets it
                for handed in group:
                    if not handed.taken.done():
                        handed.taken.set_exception(error)
                continue
            for handed, answer in zip(group, answers, strict=True):
                if handed.taken.done():
                    continue
                if isinstance(answer, FencedError):
                    handed.taken.set_exception(answer)
                else:
                    handed.taken.set_result(answer)

    async def _commit(self, group: Sequence[_Handed]) -> list[frozenset[int] | FencedError]:
        lines = [outcome.line for handed in group for outcome in handed.outcomes]
        slices = await self._segments.append(lines) if lines else []
        place = iter(slices)
        results = [
            tuple(_result(outcome, next(place)) for outcome in handed.outcomes) for handed in group
        ]

        def work(tx: Tx) -> list[frozenset[int] | FencedError]:
            now = self._clock.now()
            answers: list[frozenset[int] | FencedError] = []
            for handed, rows in zip(group, results, strict=True):
                try:
                    answers.append(
                        tx.requests.settle(
                            lease_id=handed.lease_id,
                            instance_id=handed.instance_id,
                            results=rows,
                            now=now,
                        )
                    )
                except FencedError as error:
                    answers.append(error)
            return answers

        return await self._ledger.transact(work)


def _result(outcome: Outcome, place: Slice) -> Result:
    return Result(
        line_no=outcome.line_no,
        event=outcome.event,
        segment=place.segment,
        offset=place.offset,
        length=place.length,
        input_tokens=outcome.input_tokens,
        cached_tokens=outcome.cached_tokens,
        output_tokens=outcome.output_tokens,
    )


def _check(outcomes: Sequence[Outcome]) -> None:
    """Refuse what would spoil an output file; an agent that sends it is broken."""
    for outcome in outcomes:
        if outcome.event not in _FINAL:
            raise RequestError(f"{outcome.event!r} is no outcome of a request.", param="event")
        if b"\n" in outcome.line or not outcome.line:
            raise RequestError(
                f"The result of line {outcome.line_no} is not one line of JSON.", param="line"
            )
