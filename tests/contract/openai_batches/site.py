"""A site in one process: both routers behind uvicorn on loopback, a worker, a scripted agent."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from openai import AsyncOpenAI

from hpcserve.batching.services import BatchServices, services, worker
from hpcserve.batching.worker import BatchWorker
from hpcserve.config.tree import Batching
from hpcserve.domain.batch import Batch, RequestEvent
from hpcserve.domain.instance import Instance
from hpcserve.domain.lifecycle import Subject, Transition
from hpcserve.errors import HpcserveError, RefusedError, RequestError
from hpcserve.gateway import batches, files
from hpcserve.gateway.identity import Identity, Via
from hpcserve.ports.control import Grant, GrantedLine, Outcome
from hpcserve.ports.ledger import Leadership, Ledger, Tx
from hpcserve.wiring.system import SystemClock, SystemIds
from tests.builders import an_instance

MODEL = "tiny"


class ShiftedClock(SystemClock):
    """The machine's clock, which a test may move forward."""

    def __init__(self) -> None:
        self.shift = timedelta()

    def now(self) -> datetime:
        return super().now() + self.shift


@dataclass
class Site:
    """The running parts."""

    ledger: Ledger
    clock: ShiftedClock
    settings: Batching
    root: Path
    served: BatchServices
    worker: BatchWorker
    url: str = ""
    ended: list[Batch] = field(default_factory=list)
    clients: list[AsyncOpenAI] = field(default_factory=list)
    #: kinds of answers that the server is to lose on their way back, each once
    lose_answers: list[str] = field(default_factory=list)

    def client(self, owner: str = "ada") -> AsyncOpenAI:
        client = AsyncOpenAI(base_url=f"{self.url}/v1", api_key=owner)
        self.clients.append(client)
        return client

    async def settle_everything(self, batch_id: str, timeout_s: float = 20.0) -> Batch:
        """Wait for the end of a batch."""
        async with asyncio.timeout(timeout_s):
            while True:
                batch = await self.batch(batch_id)
                if batch.is_terminal:
                    return batch
                await asyncio.sleep(0.01)

    async def reach(self, batch_id: str, state: str) -> Batch:
        async with asyncio.timeout(20.0):
            while (batch := await self.batch(batch_id)).state != state:
                assert not batch.is_terminal, batch
                await asyncio.sleep(0.01)
        return batch

    async def batch(self, batch_id: str) -> Batch:
        batch = await self.ledger.transact(lambda tx: tx.batches.get(batch_id))
        assert batch is not None
        return batch


Answer = Callable[[Grant, GrantedLine], Outcome]


def echo(grant: Grant, line: GrantedLine) -> Outcome:
    """Answer with the request's own body."""
    body = {"id": f"cmpl-{line.line_no}", "echo": json.loads(line.body)}
    response = {"status_code": 200, "request_id": f"r{line.line_no}", "body": body}
    return _outcome(line, RequestEvent.ANSWERED, response)


def reject(grant: Grant, line: GrantedLine) -> Outcome:
    """Answer as an engine that does not like the body."""
    error = {"message": "too long", "type": "BadRequestError", "param": None, "code": 400}
    response = {"status_code": 400, "request_id": "r", "body": {"error": error}}
    return _outcome(line, RequestEvent.REFUSED, response)


def _outcome(line: GrantedLine, event: RequestEvent, response: object) -> Outcome:
    answered = event is RequestEvent.ANSWERED
    text = {
        "id": f"b{line.line_no}",
        "custom_id": line.custom_id,
        "response": response,
        "error": None,
    }
    return Outcome(
        line_no=line.line_no,
        event=event,
        input_tokens=3 if answered else 0,
        cached_tokens=1 if answered else 0,
        output_tokens=2 if answered else 0,
        line=json.dumps(text).encode(),
    )


class ScriptedAgent:
    """Leases and settles until it is told to stop."""

    def __init__(self, site: Site, *, answer: Answer = echo, limit: int = 4) -> None:
        self.site = site
        self.answer = answer
        self.limit = limit
        self.instance: Instance = an_instance(
            "inst-a", model=MODEL, ends_at=site.clock.now() + timedelta(hours=4)
        )

    async def introduce(self) -> None:
        """Enter the instance into the ledger."""
        born = Transition(
            subject=Subject.INSTANCE,
            subject_id=self.instance.id,
            at=self.site.clock.now(),
            event="requested",
            from_state=None,
            to_state=self.instance.state,
            reason="a test wants it",
        )
        await self.site.ledger.transact(lambda tx: tx.instances.add(self.instance, born))

    async def once(self) -> int:
        """Do one lease; return how many lines."""
        work = self.site.served.work
        grant = await work.lease(self.instance, self.limit)
        if grant is None:
            return 0
        outcomes = [self.answer(grant, line) for line in grant.lines]
        taken = await work.settle(self.instance.id, grant.lease_id, outcomes)
        return len(taken)

    async def run(self) -> None:
        while True:
            if not await self.once():
                await asyncio.sleep(0.01)


@asynccontextmanager
async def running(ledger: Ledger, root: Path, settings: Batching) -> AsyncIterator[Site]:
    clock, ids = ShiftedClock(), SystemIds()
    leads: list[Leadership | None] = [None]
    ended: list[Batch] = []

    async def notify(batch: Batch) -> None:
        ended.append(batch)

    def lead(tx: Tx) -> Leadership | None:
        return tx.leader.acquire("test", clock.now(), 365 * 24 * 3600)

    leads[0] = await ledger.transact(lead)
    site = Site(
        ledger=ledger,
        clock=clock,
        settings=settings,
        root=root,
        served=services(ledger=ledger, clock=clock, ids=ids, settings=settings, root=root),
        worker=worker(
            ledger=ledger,
            clock=clock,
            ids=ids,
            settings=settings,
            root=root,
            leadership=lambda: leads[0],
            models=lambda: (MODEL, "other"),
            describe=lambda name: {"weights": f"/weights/{name}"},
            version="test",
            ended_max=10,
            notify=notify,
        ),
        ended=ended,
    )
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        site.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        config = uvicorn.Config(_app(site), log_level="warning", lifespan="off")
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        working = asyncio.create_task(site.worker.run())
        try:
            while not server.started:  # noqa: ASYNC110  # uvicorn has no event for it
                await asyncio.sleep(0.005)
            yield site
        finally:
            for client in site.clients:
                await client.close()
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
            server.should_exit = True
            await serving
            site.served.close()
            await ledger.close()


def _app(site: Site) -> FastAPI:
    app = FastAPI()
    served, settings = site.served, site.settings

    @app.middleware("http")
    async def identify(request: Request, call_next):
        key = request.headers.get("authorization", "").removeprefix("Bearer ")
        on_socket = key.startswith("socket:")
        owner = key.removeprefix("socket:")
        if owner:
            request.state.identity = Identity(
                owner=owner,
                is_admin=owner == "root",
                via=Via.SOCKET if on_socket else Via.KEY,
                uid=os.getuid() if on_socket else None,
            )
        response = await call_next(request)
        if request.url.path in site.lose_answers:
            site.lose_answers.remove(request.url.path)
            return JSONResponse({"error": {"message": "lost"}}, status_code=503)
        return response

    @app.exception_handler(HpcserveError)
    async def envelope(_: Request, error: HpcserveError) -> JSONResponse:
        is_client = isinstance(error, RequestError | RefusedError)
        body = {
            "message": error.message,
            "type": "invalid_request_error",
            "param": getattr(error, "param", None),
            "code": getattr(error, "code", None),
        }
        status = error.http_status if is_client else 503
        return JSONResponse({"error": body}, status_code=status)

    app.include_router(
        files.routes(
            served.files,
            block_bytes=settings.read_block_bytes,
            server_uid=os.getuid(),
        )
    )
    app.include_router(
        batches.routes(
            served.batches, served.files, served.results, window_default=settings.window_default
        )
    )
    return app


def jsonl(n: int, *, model: str = MODEL, url: str = "/v1/chat/completions") -> bytes:
    """Return an input file of *n* lines."""
    lines = (
        {
            "custom_id": f"id-{i}",
            "method": "POST",
            "url": url,
            "body": {"model": model, "messages": [{"role": "user", "content": f"say {i}"}]},
        }
        for i in range(n)
    )
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)
