"""A gateway process's parts: the server, its routes, and its presence in the ledger."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path

from fastapi import APIRouter

from hpcserve.batching.estimate_records import score
from hpcserve.batching.services import BatchServices, services
from hpcserve.errors import BackendError
from hpcserve.gateway import batches, files, keys, operations, progress, status
from hpcserve.gateway.access_log import AccessLog
from hpcserve.gateway.control import control_router
from hpcserve.gateway.control_service import ControlService
from hpcserve.gateway.dispatch import Dispatch
from hpcserve.gateway.metrics import Metrics
from hpcserve.gateway.server import GatewayServer
from hpcserve.ports.notes import COVERAGE, LISTENING
from hpcserve.wiring.world import World

log = logging.getLogger(__name__)

#: a gateway says so often that it listens to agents, s
PRESENCE_S = 5.0
#: the score of the estimates is read so often, s
SCORES_S = 30.0


async def run_gateway(
    world: World,
    stop: asyncio.Event,
    wake: Callable[[], None],
    *,
    tcp: socket.socket,
    number: int = 1,
) -> None:
    """Serve on *tcp* until *stop*; *wake* makes the controller look soon.

    Of several processes on one port the first alone (*number* 1) speaks for the site: it writes the
    address file and says since when agents can be heard.
    """
    config, paths = world.config, world.paths
    first = number == 1
    unix = paths.socket(config)
    batch = services(
        ledger=world.ledger,
        clock=world.clock,
        ids=world.ids,
        settings=config.batching,
        root=paths.batches,
    )
    dispatch = Dispatch(
        gateway_id=world.ids.new("gw"),
        settings=config.gateway,
        catalog=world.catalog,
        secret=world.secret,
        ledger=world.ledger,
        clock=world.clock,
        access_log=AccessLog(_append_to(paths.state / "access.log")),
        wake=wake,
    )
    server = GatewayServer(
        dispatch,
        settings=config.gateway,
        tcp=tcp,
        socket_path=unix if first else unix.with_stem(f"{unix.stem}-{number}"),
        gateways_dir=paths.gateways if first else None,
        admin_uids=frozenset({0, os.getuid()}),
        routers=_routers(world, batch, wake),
    )
    aside = [
        asyncio.create_task(_stop_when(stop, server)),
        asyncio.create_task(_scores(world, dispatch.metrics)),
    ]
    if first:
        aside.append(asyncio.create_task(_presence(world)))
    try:
        await server.serve()
    finally:
        for task in aside:
            task.cancel()
        await asyncio.gather(*aside, return_exceptions=True)
        batch.close()


def _routers(world: World, batch: BatchServices, wake: Callable[[], None]) -> tuple[APIRouter, ...]:
    ledger, clock, ids, config = world.ledger, world.clock, world.ids, world.config
    control = ControlService(
        ledger=ledger,
        work=batch.work,
        clock=clock,
        lease_ttl_s=config.batching.lease_ttl_s,
        wake=wake,
    )
    return (
        control_router(control, secret=world.secret, max_body_bytes=config.agent.call_max_bytes),
        files.routes(
            batch.files,
            block_bytes=config.batching.read_block_bytes,
            server_uid=os.getuid(),
        ),
        batches.routes(
            batch.batches,
            batch.files,
            batch.results,
            window_default=config.batching.window_default,
        ),
        progress.routes(
            batch.batches,
            batch.again,
            ledger=ledger,
            clock=clock,
            catalog=world.catalog,
            partition=config.slurm.opportunistic_partition or config.slurm.partition,
        ),
        status.routes(ledger=ledger, clock=clock, catalog=world.catalog),
        keys.routes(ledger=ledger, clock=clock, ids=ids),
        operations.routes(ledger=ledger, clock=clock, catalog=world.catalog, wake=wake),
    )


async def _presence(world: World) -> None:
    """Say again and again since when agents can be heard here: not while the ledger is away."""
    since = None
    while True:
        now = world.clock.now().isoformat()
        since = since or now
        note = {"since": since, "at": now}
        try:
            await world.ledger.transact(lambda tx, note=note: tx.notes.put(LISTENING, note))  # type: ignore[misc]  # bound now, not at the call
        except BackendError as error:
            log.warning("%s", error.message)
            since = None
        await world.clock.sleep(PRESENCE_S)


async def _scores(world: World, metrics: Metrics) -> None:
    """Read again and again how good the estimates of batches were, for who scrapes the metrics."""
    while True:
        try:
            note = await world.ledger.transact(lambda tx: tx.notes.get(COVERAGE))
            metrics.estimates = score(note)
        except BackendError as error:
            log.warning("%s", error.message)
        await world.clock.sleep(SCORES_S)


async def _stop_when(stop: asyncio.Event, server: GatewayServer) -> None:
    await stop.wait()
    server.stop()


def _append_to(path: Path) -> Callable[[bytes], object]:
    """Return what appends whole lines to a log that only its owner can read."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    return lambda lines: os.write(handle, lines)
