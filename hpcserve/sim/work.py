"""The port Work without files: the production packer and ledger, and a book of what was answered.

Bodies and results of a simulated request are nothing, so there is no input file and no segment; who
gets which lines, and who may settle them, is decided as in `batching.leasing`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from typing_extensions import override

from hpcserve.config import Batching
from hpcserve.domain.batch import BatchState, Lease, Result
from hpcserve.domain.instance import Instance, InstanceState
from hpcserve.policy.packing.registry import packer
from hpcserve.policy.packing.view import Ask, Nothing, PackingSettings, PackingView
from hpcserve.ports.clock import Clock
from hpcserve.ports.control import Grant, GrantedLine, Outcome
from hpcserve.ports.ledger import Ledger, Tx
from hpcserve.ports.work import Work


@dataclass(slots=True, kw_only=True)
class SimWork(Work):
    """Leases and results of one site."""

    ledger: Ledger
    clock: Clock
    settings: Batching
    #: (batch, line) -> how many results were taken; a checker reads it
    answered: dict[tuple[int, int], int] = field(default_factory=dict)
    #: leases to instances whose allocation was over by then; a checker reads it
    beyond: list[str] = field(default_factory=list)
    #: lease -> its batch
    _batches: dict[int, int] = field(default_factory=dict)

    @override
    async def lease(self, instance: Instance, limit: int) -> Grant | None:
        if instance.state is not InstanceState.READY:
            return None
        lease = await self.ledger.transact(lambda tx: self._choose(tx, instance, limit))
        if lease is None:
            return None
        self._batches[lease.id] = lease.batch_seq
        if instance.ends_at is not None and instance.ends_at <= lease.granted_at:
            self.beyond.append(f"lease {lease.id} of {instance.id}")
        return Grant(
            lease_id=lease.id,
            batch_id=lease.batch_id,
            route="/v1/chat/completions",
            expires_at=lease.expires_at,
            lines=tuple(
                GrantedLine(
                    line_no=line.line_no,
                    custom_id=str(line.line_no),
                    attempts=line.attempts,
                    body=b"{}",
                )
                for line in lease.requests
            ),
        )

    @override
    async def settle(
        self, instance_id: str, lease_id: int, outcomes: Sequence[Outcome]
    ) -> frozenset[int]:
        results = [
            Result(
                line_no=outcome.line_no,
                event=outcome.event,
                segment=1,
                offset=0,
                length=len(outcome.line),
                input_tokens=outcome.input_tokens,
                cached_tokens=0,
                output_tokens=outcome.output_tokens,
            )
            for outcome in outcomes
        ]
        taken = await self.ledger.transact(
            lambda tx: tx.requests.settle(
                lease_id=lease_id,
                instance_id=instance_id,
                results=results,
                now=self.clock.now(),
            )
        )
        for line_no in sorted(taken):
            key = (self._batches[lease_id], line_no)
            self.answered[key] = self.answered.get(key, 0) + 1
        return taken

    @override
    async def release(
        self, instance_id: str, lease_id: int, line_nos: Sequence[int] | None
    ) -> None:
        await self.ledger.transact(
            lambda tx: tx.requests.release(
                lease_id=lease_id, instance_id=instance_id, line_nos=line_nos
            )
        )

    def _choose(self, tx: Tx, instance: Instance, limit: int) -> Lease | None:
        settings, now = self.settings, self.clock.now()
        pick = packer(settings.packing)(
            PackingView(
                ask=Ask(
                    instance_id=instance.id,
                    model=instance.model,
                    limit=min(limit, settings.lease_size),
                    ends_at=instance.ends_at,
                ),
                backlog=tx.batches.backlog(),
            ),
            PackingSettings(
                deadline_bucket_s=settings.deadline_bucket_s, request_s=settings.request_s
            ),
            now,
        )
        if isinstance(pick, Nothing):
            return None
        batch = tx.batches.get(pick.batch_id)
        if batch is None or batch.state is not BatchState.IN_PROGRESS:
            return None
        return tx.requests.lease(
            batch=batch,
            instance_id=instance.id,
            limit=pick.limit,
            now=now,
            ttl_s=settings.lease_ttl_s,
        )
