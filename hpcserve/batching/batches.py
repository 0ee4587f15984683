"""The Batches API: create, retrieve, list, cancel. What follows is the worker's business."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from hpcserve.batching.files import PURPOSE_INPUT, owned
from hpcserve.batching.window import window
from hpcserve.config.tree import Batching
from hpcserve.domain.batch import Batch, BatchEvent, BatchState
from hpcserve.domain.lifecycle import Subject, Transition
from hpcserve.errors import RequestError
from hpcserve.ports.clock import Clock, Ids
from hpcserve.ports.ledger import Ledger, Tx

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
#: OpenAI's bounds
METADATA_PAIRS, METADATA_KEY_CHARS, METADATA_VALUE_CHARS = 16, 64, 512
LIST_MAX = 100
#: batches of one owner that a repeated create is compared with
_RETRY_LOOK_BACK = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class NewBatch:
    """What a client asks for."""

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: Mapping[str, str]
    idempotency_key: str | None
    #: the client says that it sent this before and got no answer
    is_retry: bool


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list of batches."""

    data: tuple[Batch, ...]
    has_more: bool


class Batches:
    """The service behind `/v1/batches`."""

    def __init__(self, *, ledger: Ledger, clock: Clock, ids: Ids, settings: Batching) -> None:
        self._ledger = ledger
        self._clock = clock
        self._ids = ids
        self._settings = settings

    async def create(self, owner: str, asked: NewBatch) -> Batch:
        """Store a batch to be validated, or return the one that an earlier try has made.

        Raises:
            RequestError: a parameter is wrong, or the file is not this owner's input file.

        """
        length = window(asked.completion_window, self._settings)
        _check(asked)
        batch_id = self._ids.new("batch")

        def work(tx: Tx) -> Batch:
            now = self._clock.now()
            earlier = self._made_before(tx, owner, asked)
            if earlier is not None:
                return earlier
            file = owned(tx, owner, asked.input_file_id, param="input_file_id")
            if file.purpose != PURPOSE_INPUT:
                raise RequestError(
                    f"The purpose of {file.id} is {file.purpose!r}; a batch needs `batch`.",
                    code="invalid_value",
                    param="input_file_id",
                )
            batch = Batch(
                id=batch_id,
                owner=owner,
                model="",
                endpoint=asked.endpoint,
                input_file_id=file.id,
                completion_window=asked.completion_window,
                state=BatchState.VALIDATING,
                created_at=now,
                deadline_at=now + length,
                metadata=dict(asked.metadata),
                idempotency_key=asked.idempotency_key,
            )
            created = Transition(
                subject=Subject.BATCH,
                subject_id=batch.id,
                at=now,
                event="created",
                from_state=None,
                to_state=batch.state,
                reason=f"{owner} submitted {file.filename} ({file.size_bytes} bytes), "
                f"to be done within {asked.completion_window}",
            )
            return tx.batches.add(batch, created)

        return await self._ledger.transact(work)

    async def get(self, owner: str | None, batch_id: str) -> Batch:
        """Return one batch of this owner (None: of anybody)."""
        return await self._ledger.transact(lambda tx: _owned(tx, owner, batch_id))

    async def list(self, owner: str | None, *, after: str | None, limit: int) -> Page:
        """Return one page, newest first."""

        def work(tx: Tx) -> tuple[Batch, ...]:
            if after is not None:
                _owned(tx, owner, after, param="after")
            return tx.batches.list(owner, after=after, limit=limit + 1)

        found = await self._ledger.transact(work)
        return Page(found[:limit], has_more=len(found) > limit)

    async def cancel(self, owner: str | None, batch_id: str) -> Batch:
        """Ask for the end of a batch; finished lines are kept. May be repeated."""

        def work(tx: Tx) -> Batch:
            batch = _owned(tx, owner, batch_id)
            if batch.state is BatchState.CANCELLING:
                return batch
            if batch.is_terminal or batch.state is BatchState.FINALIZING:
                raise RequestError(
                    f"Cannot cancel a batch with status '{batch.state}'.",
                    code="invalid_batch_status",
                    param="batch_id",
                )
            reason = f"cancelled by {owner or 'an administrator'}"
            cancelling, transition = batch.on(
                BatchEvent.CANCEL, at=self._clock.now(), reason=reason
            )
            tx.batches.save(cancelling, transition)
            return _owned(tx, owner, batch_id)

        return await self._ledger.transact(work)

    def _made_before(self, tx: Tx, owner: str, asked: NewBatch) -> Batch | None:
        """Return the batch of an earlier try.

        A key recognises it for ever. Without one (the `openai` client sends none) a request that
        calls itself a retry is recognised by its content, while a client may still be retrying.
        """
        if asked.idempotency_key is not None:
            batch = tx.batches.by_idempotency_key(owner, asked.idempotency_key)
            if batch is not None and not _is_same(batch, asked):
                raise RequestError(
                    f"This Idempotency-Key was used for {batch.id} with other parameters; "
                    "use a new key.",
                    code="idempotency_key_reused",
                )
            return batch
        if not asked.is_retry:
            return None
        since = self._clock.now() - timedelta(seconds=self._settings.retry_window_s)
        for batch in tx.batches.list(owner, after=None, limit=_RETRY_LOOK_BACK):
            if batch.created_at >= since and _is_same(batch, asked):
                return batch
        return None


def _is_same(batch: Batch, asked: NewBatch) -> bool:
    return (
        batch.input_file_id == asked.input_file_id
        and batch.endpoint == asked.endpoint
        and batch.completion_window == asked.completion_window
        and dict(batch.metadata) == dict(asked.metadata)
    )


def _check(asked: NewBatch) -> None:
    if asked.endpoint not in ENDPOINTS:
        raise RequestError(
            f"The endpoint {asked.endpoint[:80]!r} is not supported in a batch; supported are "
            f"{', '.join(ENDPOINTS)}.",
            code="invalid_value",
            param="endpoint",
        )
    if len(asked.metadata) > METADATA_PAIRS:
        raise _metadata(f"metadata has {len(asked.metadata)} pairs; at most {METADATA_PAIRS}.")
    for key, value in asked.metadata.items():
        if len(key) > METADATA_KEY_CHARS:
            raise _metadata(
                f"metadata key {key[:20]!r}...: at most {METADATA_KEY_CHARS} characters."
            )
        if len(value) > METADATA_VALUE_CHARS:
            raise _metadata(f"metadata[{key!r}]: at most {METADATA_VALUE_CHARS} characters.")


def _metadata(message: str) -> RequestError:
    return RequestError(message, code="invalid_value", param="metadata")


def _owned(tx: Tx, owner: str | None, batch_id: str, *, param: str = "batch_id") -> Batch:
    batch = tx.batches.get(batch_id)
    if batch is None or (owner is not None and batch.owner != owner):
        raise RequestError(
            f"No batch found with id {batch_id[:80]!r}.",
            http_status=404,
            code="batch_not_found",
            param=param,
        )
    return batch
