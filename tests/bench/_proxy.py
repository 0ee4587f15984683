"""Runs one gateway process for the benches: everything on, an in-memory ledger.

Usage: python -m tests.bench._proxy PORT FOLDER ENGINE_PORT...
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import uvloop

from hpcserve.config.tree import Gateway as GatewaySettings
from hpcserve.domain.instance import Instance, InstanceState, Role
from hpcserve.domain.key import ApiKey, digest
from hpcserve.domain.lifecycle import Subject, Transition
from hpcserve.domain.model import Model
from hpcserve.gateway.access_log import AccessLog, to_descriptor
from hpcserve.gateway.dispatch import Dispatch
from hpcserve.gateway.server import GatewayServer
from hpcserve.ledger.memory.ledger import MemoryLedger
from hpcserve.ports.ledger import Tx

KEY = "hps-bench"


class _Clock:
    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic_s(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


async def _serve(port: int, folder: Path, engines: list[int]) -> None:
    clock = _Clock()
    ledger = MemoryLedger()

    def fill(tx: Tx) -> None:
        for number, engine in enumerate(engines):
            made = Instance(
                id=f"inst-{number}",
                token=f"t{number}",
                model="m",
                role=Role.INTERACTIVE,
                state=InstanceState.READY,
                partition=None,
                gpus=1,
                time_limit_s=3600,
                reason="bench",
                requested_at=clock.now(),
                host="127.0.0.1",
                port=engine,
            )
            tx.instances.add(
                made,
                Transition(
                    subject=Subject.INSTANCE,
                    subject_id=made.id,
                    at=clock.now(),
                    event="healthy",
                    from_state=None,
                    to_state="ready",
                    reason="bench",
                    detail={},
                ),
            )
        tx.keys.add(
            ApiKey(
                id="key-1",
                digest=digest(KEY),
                prefix="hps-",
                owner="bench",
                name="",
                created_at=clock.now(),
                expires_at=None,
                revoked_at=None,
            )
        )

    await ledger.transact(fill)
    settings = GatewaySettings(port=port)
    log = os.open(folder / "access.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    dispatch = Dispatch(
        gateway_id="gw-bench",
        settings=settings,
        catalog=lambda: {"m": Model(name="m", weights="/w")},
        secret=b"s" * 32,
        ledger=ledger,
        clock=clock,
        access_log=AccessLog(to_descriptor(log)),
        wake=lambda: None,
    )
    server = GatewayServer(
        dispatch,
        settings=settings,
        socket_path=folder / "gateway.sock",
        gateways_dir=folder / "gateways",
        admin_uids=frozenset(),
    )
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, server.stop)
    await server.serve()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1]), Path(sys.argv[2]), [int(port) for port in sys.argv[3:]]))
