"""`/v1/batches`, OpenAI's Batches API, and results while a batch runs below `/hpcserve/v1`."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel

from hpcserve.batching.batches import LIST_MAX, Batches, NewBatch
from hpcserve.batching.files import Files, content
from hpcserve.batching.results import Results
from hpcserve.domain.batch import Batch, RequestState
from hpcserve.gateway.bodies import parsed
from hpcserve.gateway.files import download
from hpcserve.gateway.identity import Identity, identified

User = Annotated[Identity, Depends(identified)]
#: the openai client counts its tries here
_RETRY_COUNT = "x-stainless-retry-count"


class Creation(BaseModel):
    """Body of `POST /v1/batches`."""

    input_file_id: str
    endpoint: str
    completion_window: str | None = None
    metadata: dict[str, str] | None = None


def routes(batches: Batches, files: Files, results: Results, *, window_default: str) -> APIRouter:
    """Return the routes; an administrator sees everybody's batches."""
    router = APIRouter()

    @router.post("/v1/batches")
    async def create(request: Request, user: User) -> dict[str, object]:
        body = parsed(Creation, await request.body())
        asked = NewBatch(
            input_file_id=body.input_file_id,
            endpoint=body.endpoint,
            completion_window=body.completion_window or window_default,
            metadata=body.metadata or {},
            idempotency_key=request.headers.get("idempotency-key"),
            is_retry=request.headers.get(_RETRY_COUNT, "0") != "0",
        )
        return shape(await batches.create(user.owner, asked))

    @router.get("/v1/batches")
    async def index(
        user: User,
        after: str | None = None,
        limit: Annotated[int, Query(ge=1, le=LIST_MAX)] = 20,
    ) -> dict[str, object]:
        page = await batches.list(_whose(user), after=after, limit=limit)
        return {
            "object": "list",
            "data": [shape(batch) for batch in page.data],
            "first_id": page.data[0].id if page.data else None,
            "last_id": page.data[-1].id if page.data else None,
            "has_more": page.has_more,
        }

    @router.get("/v1/batches/{batch_id}")
    async def retrieve(user: User, batch_id: str) -> dict[str, object]:
        return shape(await batches.get(_whose(user), batch_id))

    @router.post("/v1/batches/{batch_id}/cancel")
    async def cancel(user: User, batch_id: str) -> dict[str, object]:
        return shape(await batches.cancel(_whose(user), batch_id))

    @router.get("/hpcserve/v1/batches/{batch_id}/results")
    async def finished(
        user: User,
        batch_id: str,
        kind: Literal["output", "errors"] = "output",
        after_line: Annotated[int, Query(ge=0)] = 0,
    ) -> Response:
        """Return what is finished, in input order.

        Of a finished batch this is the output (or error) file, and Range resumes it; of one that
        runs, the results behind the input line *after_line*.
        """
        batch = await batches.get(_whose(user), batch_id)
        head = {"hpcserve-batch-status": batch.state.value}
        if batch.is_terminal:
            file_id = batch.output_file_id if kind == "output" else batch.error_file_id
            if file_id is None:
                return Response(media_type="application/jsonl", headers=head)
            file = await files.get(batch.owner, file_id)
            response = download(file, await content(file))
            response.headers.update(head)
            return response
        state = RequestState.COMPLETED if kind == "output" else RequestState.FAILED
        lines = results.stream(batch, state, after_line=after_line)
        return StreamingResponse(lines, media_type="application/jsonl", headers=head)

    return router


def shape(batch: Batch) -> dict[str, object]:
    """Return OpenAI's Batch, every field present."""
    counts, usage = batch.counts, batch.usage
    unfinished = counts.cancelled + counts.expired
    errors = [
        {"code": e.code, "message": e.message, "param": e.param, "line": e.line}
        for e in batch.errors
    ]
    is_accepted = bool(batch.model)
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "model": batch.model or None,
        "errors": {"object": "list", "data": errors} if errors else None,
        "input_file_id": batch.input_file_id,
        "completion_window": batch.completion_window,
        "status": batch.state.value,
        "output_file_id": batch.output_file_id,
        "error_file_id": batch.error_file_id,
        "created_at": _seconds(batch.created_at),
        "in_progress_at": _seconds(batch.in_progress_at),
        "expires_at": _seconds(batch.deadline_at),
        "finalizing_at": _seconds(batch.finalizing_at),
        "completed_at": _seconds(batch.completed_at),
        "failed_at": _seconds(batch.failed_at),
        "expired_at": _seconds(batch.expired_at),
        "cancelling_at": _seconds(batch.cancelling_at),
        "cancelled_at": _seconds(batch.cancelled_at),
        "request_counts": {
            "total": counts.total if is_accepted else 0,
            "completed": counts.completed,
            "failed": counts.failed + unfinished,
        },
        "usage": {
            "input_tokens": usage.input_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens},
            "output_tokens": usage.output_tokens,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
            "total_tokens": usage.input_tokens + usage.output_tokens,
        },
        "metadata": dict(batch.metadata),
        # what OpenAI's object has no word for
        "hpcserve": {
            "owner": batch.owner,
            "waiting": counts.waiting if is_accepted else 0,
            "running": counts.leased,
            "validated_lines": batch.validated_lines,
            "validated_bytes": batch.validated_bytes,
            "first_result_at": _seconds(batch.first_result_at),
        },
    }


def _whose(user: Identity) -> str | None:
    return None if user.is_admin else user.owner


def _seconds(at: datetime | None) -> int | None:
    return int(at.timestamp()) if at is not None else None
