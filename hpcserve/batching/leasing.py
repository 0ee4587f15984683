"""The port `Work`: hands requests out to instances and takes their results in.

- The packing policy chooses the batch; the ledger chooses the lines, in input order, so that equal
  prompt prefixes stay together.
- Requests that were lost before travel in small company (`policy.isolation`): the lines of one
  lease are equally suspect, so an innocent one is not charged for its neighbour again.
- A lease with its payload is one answer of the control API, so its bytes have a bound.
- An input that has changed or vanished fails the lines that still wait, each with a clear error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import accumulate, takewhile

from typing_extensions import override

from hpcserve.batching.durations import Durations
from hpcserve.batching.payload import read_bodies
from hpcserve.batching.settling import Settling
from hpcserve.config.tree import Batching
from hpcserve.domain.batch import (
    Batch,
    BatchState,
    InputFile,
    Lease,
    LeasedRequest,
    RequestState,
)
from hpcserve.domain.instance import Instance, InstanceState
from hpcserve.domain.lifecycle import Subject, Transition
from hpcserve.errors import RequestError
from hpcserve.policy.isolation import company, suspicion
from hpcserve.policy.packing.registry import Packer
from hpcserve.policy.packing.view import Ask, Nothing, PackingSettings, PackingView
from hpcserve.ports.clock import Clock
from hpcserve.ports.control import Grant, Outcome
from hpcserve.ports.ledger import Ledger, Tx
from hpcserve.ports.work import Work

#: the event that marks a batch whose input was changed; `finalise` reads it
INPUT_LOST = "input_lost"
#: the event that an instance begins to work on a batch; the manifest reads it
JOINED = "joined"


@dataclass(frozen=True, slots=True)
class _Leased:
    lease: Lease
    batch: Batch
    file: InputFile | None


class Leasing(Work):
    """Leases with their payload, and results."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        clock: Clock,
        settings: Batching,
        settling: Settling,
        packer: Packer,
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._settings = settings
        self._settling = settling
        self._packer = packer
        self._packing = PackingSettings(
            deadline_bucket_s=settings.deadline_bucket_s, request_s=settings.request_s
        )
        self._durations = Durations(settings.leases_measured)
        self._joined: set[tuple[str, str]] = set()

    @override
    async def lease(self, instance: Instance, limit: int) -> Grant | None:
        if instance.state is not InstanceState.READY:
            return None
        ask = Ask(
            instance_id=instance.id,
            model=instance.model,
            limit=min(limit, self._settings.lease_size),
            ends_at=instance.ends_at,
        )
        leased = await self._ledger.transact(lambda tx: self._choose(tx, ask))
        if leased is None:
            return None
        lease, batch = leased.lease, leased.batch
        try:
            lines = await asyncio.to_thread(read_bodies, leased.file, lease.requests)
        except RequestError as error:
            await self._fail_waiting(lease, batch.id, error)
            return None
        await self._note_join(instance, batch.id)
        self._durations.granted(lease.id, batch.id, self._clock.monotonic_s())
        return Grant(
            lease_id=lease.id,
            batch_id=batch.id,
            route=batch.endpoint,
            expires_at=lease.expires_at,
            lines=lines,
        )

    @override
    async def settle(
        self, instance_id: str, lease_id: int, outcomes: Sequence[Outcome]
    ) -> frozenset[int]:
        taken = await self._settling.settle(instance_id, lease_id, outcomes)
        self._durations.settled(lease_id, self._clock.monotonic_s())
        return taken

    @override
    async def release(
        self, instance_id: str, lease_id: int, line_nos: Sequence[int] | None
    ) -> None:
        await self._ledger.transact(
            lambda tx: tx.requests.release(
                lease_id=lease_id, instance_id=instance_id, line_nos=line_nos
            )
        )

    def _choose(self, tx: Tx, ask: Ask) -> _Leased | None:
        now = self._clock.now()
        view = PackingView(
            ask=ask, backlog=tx.batches.backlog(), request_s=self._durations.request_s()
        )
        pick = self._packer(view, self._packing, now)
        if isinstance(pick, Nothing):
            return None
        batch = tx.batches.get(pick.batch_id)
        if batch is None or batch.state is not BatchState.IN_PROGRESS:
            return None
        lease = self._take(tx, batch, ask.instance_id, pick.limit, now)
        return _Leased(lease, batch, tx.files.get(batch.input_file_id)) if lease else None

    def _take(
        self, tx: Tx, batch: Batch, instance_id: str, limit: int, now: datetime
    ) -> Lease | None:
        """Lease the first waiting lines that travel together."""
        lease = tx.requests.lease(
            batch=batch,
            instance_id=instance_id,
            limit=limit,
            now=now,
            ttl_s=self._settings.lease_ttl_s,
        )
        if lease is None:
            return None
        kept = together(lease.requests, limit=limit, max_bytes=self._settings.lease_max_bytes)
        if len(kept) < len(lease.requests):
            numbers = {r.line_no for r in kept}
            others = [r.line_no for r in lease.requests if r.line_no not in numbers]
            tx.requests.release(lease_id=lease.id, instance_id=instance_id, line_nos=others)
        return replace(lease, requests=kept)

    async def _fail_waiting(self, lease: Lease, batch_id: str, error: RequestError) -> None:
        """Fail this lease's lines and all that wait; those in flight elsewhere may still finish."""

        def work(tx: Tx) -> None:
            now = self._clock.now()
            batch = tx.batches.get(batch_id)
            if batch is None or batch.state is not BatchState.IN_PROGRESS:
                return
            numbers: list[int] = [r.line_no for r in lease.requests]
            failed = 0
            while numbers:
                failed += tx.requests.close(batch.seq, RequestState.FAILED, line_nos=numbers)
                more = tx.requests.lease(
                    batch=batch,
                    instance_id=lease.instance_id,
                    limit=self._settings.validate_chunk,
                    now=now,
                    ttl_s=self._settings.lease_ttl_s,
                )
                numbers = [r.line_no for r in more.requests] if more else []
            tx.events.append(
                _about(
                    batch_id, now, INPUT_LOST, error.message, {"lines": failed, "code": error.code}
                )
            )

        await self._ledger.transact(work)

    async def _note_join(self, instance: Instance, batch_id: str) -> None:
        """Write into the batch's story, once, that an instance works on it."""
        if (batch_id, instance.id) in self._joined:
            return
        if len(self._joined) >= self._settings.leases_measured:
            self._joined.clear()
        self._joined.add((batch_id, instance.id))
        facts = {
            "instance": instance.id,
            "job": instance.job_id,
            "partition": instance.partition,
            "nodes": list(instance.nodes),
            "gpus": instance.gpus,
        }
        where = f", partition {instance.partition}" if instance.partition else ""
        reason = (
            f"{instance.id} ({instance.role}, job {instance.job_id}{where}) works on it; it was "
            f"asked for because {instance.reason}"
        )
        now = self._clock.now()
        await self._ledger.transact(
            lambda tx: tx.events.append(_about(batch_id, now, JOINED, reason, facts))
        )


def together(
    requests: Sequence[LeasedRequest], *, limit: int, max_bytes: int
) -> tuple[LeasedRequest, ...]:
    """Return the first lines that are as suspect as the first of them and fit into one answer.

    At least one line, however long it is.
    """
    suspect = suspicion(requests[0].attempts)
    alike = [r for r in requests if suspicion(r.attempts) == suspect][: company(suspect, limit)]
    total = accumulate(r.length for r in alike)
    fitting = sum(1 for _ in takewhile(lambda size: size <= max_bytes, total))
    return tuple(alike[: max(1, fitting)])


def _about(
    batch_id: str, at: datetime, event: str, reason: str, detail: Mapping[str, object]
) -> Transition:
    return Transition(
        subject=Subject.BATCH,
        subject_id=batch_id,
        at=at,
        event=event,
        from_state=None,
        to_state=None,
        reason=reason,
        detail=detail,
    )
