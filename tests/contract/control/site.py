"""A control plane on a ledger in memory: one instance, one batch, a gateway that can go away."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import uvicorn
from fastapi import FastAPI, Request, Response

from hpcserve.agent.control_client import ControlClient
from hpcserve.config.tree import Agent as AgentSettings
from hpcserve.domain.batch import Batch, BatchState, NewRequest, Result
from hpcserve.domain.credentials import control_key
from hpcserve.domain.instance import Instance, InstanceState
from hpcserve.domain.lifecycle import Subject, Transition
from hpcserve.errors import HpcserveError
from hpcserve.gateway.control import control_router
from hpcserve.gateway.control_service import ControlService
from hpcserve.gateway.envelope import answer_to
from hpcserve.ledger.memory.ledger import MemoryLedger
from hpcserve.ports.control import Control, Grant, GrantedLine, Outcome
from hpcserve.ports.gateways import GatewayAddress, read_addresses, write_address
from hpcserve.ports.ledger import Tx
from tests.builders import NOW, ahead, an_instance

SECRET = b"s" * 32
LEASE_TTL_S = 60.0
MAX_BODY_BYTES = 1024 * 1024


class WallClock:
    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic_s(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@dataclass
class LedgerWork:
    """The port Work on a ledger's own leases; bodies and results stay in this process."""

    ledger: MemoryLedger
    clock: WallClock
    bodies: dict[int, bytes] = field(default_factory=dict)
    results: dict[int, list[Outcome]] = field(default_factory=dict)
    #: when each result was taken
    settled_at: list[datetime] = field(default_factory=list)

    async def lease(self, instance: Instance, limit: int) -> Grant | None:
        def work(tx: Tx) -> Grant | None:
            batch = tx.batches.get("batch-1")
            if batch is None or batch.state is not BatchState.IN_PROGRESS:
                return None
            lease = tx.requests.lease(
                batch=batch,
                instance_id=instance.id,
                limit=limit,
                now=self.clock.now(),
                ttl_s=LEASE_TTL_S,
            )
            return lease and Grant(
                lease_id=lease.id,
                batch_id=batch.id,
                route=batch.endpoint,
                expires_at=lease.expires_at,
                lines=tuple(
                    GrantedLine(
                        line_no=request.line_no,
                        custom_id=f"line-{request.line_no}",
                        attempts=request.attempts,
                        body=self.bodies[request.line_no],
                    )
                    for request in lease.requests
                ),
            )

        return await self.ledger.transact(work)

    async def settle(
        self, instance_id: str, lease_id: int, outcomes: Sequence[Outcome]
    ) -> frozenset[int]:
        rows = [
            Result(
                line_no=outcome.line_no,
                event=outcome.event,
                segment=0,
                offset=0,
                length=len(outcome.line),
                input_tokens=outcome.input_tokens,
                cached_tokens=outcome.cached_tokens,
                output_tokens=outcome.output_tokens,
            )
            for outcome in outcomes
        ]
        taken = await self.ledger.transact(
            lambda tx: tx.requests.settle(
                lease_id=lease_id, instance_id=instance_id, results=rows, now=self.clock.now()
            )
        )
        for outcome in outcomes:
            if outcome.line_no in taken:
                self.results.setdefault(outcome.line_no, []).append(outcome)
                self.settled_at.append(self.clock.now())
        return taken

    async def release(
        self, instance_id: str, lease_id: int, line_nos: Sequence[int] | None
    ) -> None:
        await self.ledger.transact(
            lambda tx: tx.requests.release(
                lease_id=lease_id, instance_id=instance_id, line_nos=line_nos
            )
        )


class Site:
    """What the control plane knows, and how to look at it."""

    def __init__(self) -> None:
        self.ledger = MemoryLedger()
        self.clock = WallClock()
        self.work = LedgerWork(self.ledger, self.clock)
        self.wakes = 0
        self.service = ControlService(
            ledger=self.ledger,
            work=self.work,
            clock=self.clock,
            lease_ttl_s=LEASE_TTL_S,
            wake=self._wake,
        )

    def _wake(self) -> None:
        self.wakes += 1

    async def add_instance(
        self, state: InstanceState = InstanceState.ALLOCATED, **fields: object
    ) -> Instance:
        instance = an_instance("inst-1", state, **fields)
        await self.ledger.transact(lambda tx: tx.instances.add(instance, _added("inst-1")))
        return instance

    async def add_batch(
        self, bodies: Sequence[object], endpoint: str = "/v1/chat/completions"
    ) -> Batch:
        """Add a batch in progress, a body a line."""
        batch = Batch(
            id="batch-1",
            owner="ada",
            model="m",
            endpoint=endpoint,
            input_file_id="file-1",
            completion_window="24h",
            state=BatchState.IN_PROGRESS,
            created_at=NOW,
            deadline_at=ahead(86400),
        )
        self.work.bodies = {n: json.dumps(body).encode() for n, body in enumerate(bodies)}

        def work(tx: Tx) -> Batch:
            stored = tx.batches.add(batch, _added(batch.id, Subject.BATCH))
            tx.requests.add(
                stored.seq,
                [
                    NewRequest(line_no=n, offset=0, length=len(body))
                    for n, body in self.work.bodies.items()
                ],
            )
            return stored

        return await self.ledger.transact(work)

    async def instance(self) -> Instance:
        found = await self.ledger.transact(lambda tx: tx.instances.get("inst-1"))
        assert found is not None
        return found

    async def batch(self) -> Batch:
        found = await self.ledger.transact(lambda tx: tx.batches.get("batch-1"))
        assert found is not None
        return found

    async def attempts(self) -> dict[int, int]:
        """Return attempts of waiting lines that have some, by leasing them all and giving back."""
        instance, seen = await self.instance(), {}
        while grant := await self.work.lease(instance, 10_000):
            seen |= {line.line_no: line.attempts for line in grant.lines}
        for lease_id in await self.ledger.transact(
            lambda tx: tx.requests.renew(instance.id, NOW, 1)
        ):
            await self.work.release(instance.id, lease_id, None)
        return seen

    async def story(self) -> list[str]:
        lines = await self.ledger.transact(lambda tx: tx.events.story(Subject.INSTANCE, "inst-1"))
        return [line.event for line in lines]

    async def change(self, change: Callable[[Instance], tuple[Instance, Transition]]) -> None:
        """Do to the instance what the controller would."""

        def work(tx: Tx) -> None:
            instance = tx.instances.get("inst-1")
            assert instance is not None
            changed, transition = change(instance)
            tx.instances.save(changed, transition)

        await self.ledger.transact(work)


def _added(subject_id: str, subject: Subject = Subject.INSTANCE) -> Transition:
    return Transition(
        subject=subject,
        subject_id=subject_id,
        at=NOW,
        event="added",
        from_state=None,
        to_state=None,
        reason="a test wants it",
    )


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@asynccontextmanager
async def gateway(site: Site, folder: Path, port: int) -> AsyncIterator[str]:
    """Serve the control API on *port* and write its address into *folder*."""
    app = FastAPI()
    app.include_router(control_router(site.service, secret=SECRET, max_body_bytes=MAX_BODY_BYTES))

    async def refuse(_: Request, error: Exception) -> Response:
        assert isinstance(error, HpcserveError)
        answer = answer_to(error)
        return Response(answer.body, answer.status, dict(answer.headers), "application/json")

    app.add_exception_handler(HpcserveError, refuse)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off", ws="none"))
    listening = socket.create_server(("127.0.0.1", port))
    serving = asyncio.create_task(server._serve(sockets=[listening]))
    url = f"http://127.0.0.1:{port}"
    address = GatewayAddress(gateway_id=f"gw-{port}", url=url, written_at=datetime.now(UTC))
    write_address(folder / f"gw-{port}.json", address)
    try:
        yield url
    finally:
        server.should_exit = True
        server.force_exit = True
        await serving


@asynccontextmanager
async def client(
    folder: Path, *, instance_id: str = "inst-1", job_id: str = "inst-1-job", key: str = ""
) -> AsyncIterator[Control]:
    """Return a client as the agent has one."""
    async with aiohttp.ClientSession() as session:
        yield ControlClient(
            session,
            instance_id=instance_id,
            job_id=job_id,
            key=key or control_key(SECRET, instance_id),
            gateways=lambda: read_addresses(folder),
            settings=AgentSettings(call_timeout_s=5),
        )
