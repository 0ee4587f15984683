"""`/v1/files`, OpenAI's Files API, and `/hpcserve/v1/files` for files that need no upload."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict, Field

from hpcserve.batching.files import (
    EXPIRES_AFTER_S,
    LIST_MAX,
    PURPOSE_INPUT,
    Files,
    content,
)
from hpcserve.batching.uploads import chunks_of
from hpcserve.domain.batch import InputFile
from hpcserve.errors import RefusedError, RequestError
from hpcserve.gateway.bodies import parsed
from hpcserve.gateway.identity import Identity, Via, identified
from hpcserve.gateway.uploads import Form

User = Annotated[Identity, Depends(identified)]


class Registration(BaseModel):
    """Body of `POST /hpcserve/v1/files`."""

    model_config = ConfigDict(extra="forbid")

    path: str = Field(max_length=4096)
    expires_after_s: int | None = Field(default=None, ge=EXPIRES_AFTER_S[0], le=EXPIRES_AFTER_S[1])


def routes(files: Files, *, block_bytes: int, server_uid: int) -> APIRouter:
    """Return the routes.

    Args:
        files: the service.
        block_bytes: what an upload holds in memory.
        server_uid: only this user's login-node processes may register files by path, since only
            for them our reading a file tells nothing that they could not read themselves.

    """
    router = APIRouter()

    @router.post("/v1/files")
    async def create(request: Request, user: User) -> dict[str, object]:
        upload = await files.receive(user.owner)
        try:
            form = Form(request.headers.get("content-type", ""), upload.write)
            await form.read(chunks_of(request.stream(), block_bytes))
            if form.fields.get("purpose") != PURPOSE_INPUT:
                raise RequestError(
                    "The purpose must be `batch`.", code="invalid_value", param="purpose"
                )
            file = await upload.finish(
                filename=form.filename or "input.jsonl",
                expires_after_s=_expires_after_s(form.fields),
            )
        finally:
            await upload.discard()
        return shape(file)

    @router.get("/v1/files")
    async def index(
        user: User,
        purpose: str | None = None,
        limit: Annotated[int, Query(ge=1, le=LIST_MAX)] = LIST_MAX,
        order: Literal["asc", "desc"] = "desc",
        after: str | None = None,
    ) -> dict[str, object]:
        page = await files.list(
            user.owner, purpose=purpose, limit=limit, after=after, ascending=order == "asc"
        )
        return {
            "object": "list",
            "data": [shape(file) for file in page.data],
            "first_id": page.data[0].id if page.data else None,
            "last_id": page.data[-1].id if page.data else None,
            "has_more": page.has_more,
        }

    @router.get("/v1/files/{file_id}")
    async def retrieve(user: User, file_id: str) -> dict[str, object]:
        return shape(await files.get(user.owner, file_id))

    @router.delete("/v1/files/{file_id}")
    async def delete(user: User, file_id: str) -> dict[str, object]:
        await files.delete(user.owner, file_id)
        return {"id": file_id, "object": "file", "deleted": True}

    @router.get("/v1/files/{file_id}/content")
    async def read(user: User, file_id: str) -> FileResponse:
        file = await files.get(user.owner, file_id)
        return download(file, await content(file))

    @router.post("/hpcserve/v1/files")
    async def register(request: Request, user: User) -> dict[str, object]:
        asked = parsed(Registration, await request.body())
        if user.via is not Via.SOCKET or user.uid != server_uid:
            raise RefusedError(
                "Only the user who runs this server may register a file by path, over the Unix "
                "socket; upload it instead (POST /v1/files).",
                http_status=403,
                code="upload_required",
                should_retry=False,
            )
        file = await files.register(user.owner, asked.path, expires_after_s=asked.expires_after_s)
        return shape(file)

    return router


def shape(file: InputFile) -> dict[str, object]:
    """Return OpenAI's FileObject, every field present."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.size_bytes,
        "created_at": int(file.created_at.timestamp()),
        "expires_at": int(file.expires_at.timestamp()) if file.expires_at else None,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }


def download(file: InputFile, path: Path) -> FileResponse:
    """Return the bytes of a file; honours Range."""
    return FileResponse(path, media_type="application/jsonl", filename=file.filename)


def _expires_after_s(fields: dict[str, str]) -> int | None:
    text = fields.get("expires_after[seconds]")
    if text is None:
        return None
    anchor = fields.get("expires_after[anchor]", "created_at")
    low, high = EXPIRES_AFTER_S
    if anchor != "created_at" or not text.isdecimal() or not low <= int(text) <= high:
        raise RequestError(
            f"expires_after takes the anchor `created_at` and {low} to {high} seconds.",
            code="invalid_value",
            param="expires_after",
        )
    return int(text)
