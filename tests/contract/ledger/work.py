"""Nouns and transactions that the tests of the ledger share."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from hpcserve.domain.batch import (
    Batch,
    BatchState,
    InputFile,
    Lease,
    NewRequest,
    RequestCounts,
    RequestEvent,
    RequestState,
    Result,
)
from hpcserve.domain.instance import Instance
from hpcserve.domain.lifecycle import Subject, Transition
from hpcserve.ports.ledger import Ledger
from tests.builders import NOW, ahead, an_instance

TTL_S = 60.0


def a_batch(batch_id: str = "batch-1", **fields: object) -> Batch:
    base = {
        "id": batch_id,
        "owner": "ada",
        "model": "m",
        "endpoint": "/v1/chat/completions",
        "input_file_id": "file-1",
        "completion_window": "24h",
        "state": BatchState.IN_PROGRESS,
        "created_at": NOW,
        "deadline_at": ahead(86_400),
    }
    return Batch(**{**base, **fields})


def a_file(file_id: str = "file-1", **fields: object) -> InputFile:
    base = {
        "id": file_id,
        "owner": "ada",
        "filename": "prompts.jsonl",
        "purpose": "batch",
        "size_bytes": 300_000_000_000,
        "created_at": NOW,
        "expires_at": None,
        "path": "/shared/prompts.jsonl",
        "is_ours": False,
        "mtime_ns": 1_772_366_400_123_456_789,
    }
    return InputFile(**{**base, **fields})


def born(subject: Subject, subject_id: str, **fields: object) -> Transition:
    base = {
        "subject": subject,
        "subject_id": subject_id,
        "at": NOW,
        "event": "created",
        "from_state": None,
        "to_state": "there",
        "reason": "a test wants it",
    }
    return Transition(**{**base, **fields})


def lines(numbers: Iterable[int]) -> list[NewRequest]:
    return [NewRequest(line_no=n, offset=n * 100, length=90) for n in numbers]


def answer(line_no: int, event: RequestEvent = RequestEvent.ANSWERED) -> Result:
    return Result(
        line_no=line_no,
        event=event,
        segment=7,
        offset=line_no * 1000,
        length=500,
        input_tokens=10,
        cached_tokens=2,
        output_tokens=30,
    )


async def add_instance(ledger: Ledger, instance: Instance | None = None) -> Instance:
    made = instance or an_instance()
    await ledger.transact(lambda tx: tx.instances.add(made, born(Subject.INSTANCE, made.id)))
    return made


async def add_batch(
    ledger: Ledger, n_lines: int = 0, *, batch_id: str = "batch-1", **fields: object
) -> Batch:
    """Add a batch in progress with lines 1 to *n_lines*."""
    batch = a_batch(batch_id, **fields)
    added = await ledger.transact(lambda tx: tx.batches.add(batch, born(Subject.BATCH, batch.id)))
    await ledger.transact(lambda tx: tx.requests.add(added.seq, lines(range(1, n_lines + 1))))
    return added


async def lease(
    ledger: Ledger, batch: Batch, limit: int, *, instance_id: str = "inst-1", now: datetime = NOW
) -> Lease | None:
    return await ledger.transact(
        lambda tx: tx.requests.lease(
            batch=batch, instance_id=instance_id, limit=limit, now=now, ttl_s=TTL_S
        )
    )


async def must_lease(
    ledger: Ledger, batch: Batch, limit: int, *, instance_id: str = "inst-1"
) -> Lease:
    granted = await lease(ledger, batch, limit, instance_id=instance_id)
    assert granted is not None
    return granted


async def settle(ledger: Ledger, held: Lease, *results: Result) -> frozenset[int]:
    return await ledger.transact(
        lambda tx: tx.requests.settle(
            lease_id=held.id, instance_id=held.instance_id, results=results, now=NOW
        )
    )


async def release(ledger: Ledger, held: Lease, *line_nos: int) -> int:
    return await ledger.transact(
        lambda tx: tx.requests.release(
            lease_id=held.id, instance_id=held.instance_id, line_nos=line_nos or None
        )
    )


async def counts(ledger: Ledger, batch: Batch) -> RequestCounts:
    stored = await ledger.transact(lambda tx: tx.batches.get(batch.id))
    assert stored is not None
    return stored.counts


async def ended_lines(ledger: Ledger, batch: Batch, state: RequestState) -> list[int]:
    rows = await ledger.transact(
        lambda tx: tx.requests.results(batch.seq, state, after_line=-1, limit=10_000)
    )
    return [row[0] for row in rows]


def line_nos(held: Lease) -> list[int]:
    return [request.line_no for request in held.requests]
