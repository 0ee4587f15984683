"""The processes of a site: `hpcserve up`, `hpcserve controller`, `hpcserve gateway`.

A process ends on SIGTERM or SIGINT: the gateway takes no more connections and lets answers finish,
the controller gives its leadership up. Jobs go on; the next controller finds them by their tokens.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from dataclasses import replace

import uvloop

from hpcserve.config import Config
from hpcserve.gateway.server import bind_tcp
from hpcserve.ports.notes import CLOSED
from hpcserve.wiring.front import run_gateway
from hpcserve.wiring.leader import run_controller
from hpcserve.wiring.system import log_to_stderr
from hpcserve.wiring.workers import keep_workers
from hpcserve.wiring.world import World, open_world


def run(config: Config, *, controller: bool, gateway: bool, opening: bool = False) -> None:
    """Run the parts that are asked for until a signal ends them; *opening* reopens the site."""
    log_to_stderr()
    uvloop.run(_run(config, controller=controller, gateway=gateway, opening=opening))


async def _run(config: Config, *, controller: bool, gateway: bool, opening: bool) -> None:
    world = open_world(config)
    if opening:
        await world.ledger.transact(lambda tx: tx.notes.put(CLOSED, {}))
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    wakers: list[Callable[[], None]] = []

    def wake() -> None:
        for waker in wakers:
            waker()

    front = asyncio.create_task(_front(world, stop, wake)) if gateway else None
    leader = asyncio.create_task(run_controller(world, wakers.append)) if controller else None
    stopped = asyncio.create_task(stop.wait())
    tasks = [task for task in (front, leader, stopped) if task is not None]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        stop.set()
        for task in done:
            await task
        if front is not None:
            await front
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await world.ledger.close()


async def _front(world: World, stop: asyncio.Event, wake: Callable[[], None]) -> None:
    """Run all gateway processes; this one is the first."""
    settings = world.config.gateway
    several = settings.workers > 1
    if several:
        # a port that others may share says nothing when a stranger has it already
        bind_tcp(settings.host, settings.port).close()
    tcp = bind_tcp(settings.host, settings.port, shared=several)
    shared = replace(settings, port=tcp.getsockname()[1])
    others = asyncio.create_task(keep_workers(replace(world.config, gateway=shared), stop))
    try:
        await run_gateway(world, stop, wake, tcp=tcp)
    finally:
        stop.set()
        await others
