"""Further gateway processes beside the first one: `[gateway] workers`.

They share the TCP port, over which the kernel spreads new connections. Each has a connection to the
ledger and a Unix socket of its own (`gateway-2.sock` beside `gateway.sock`), where its metrics can
be read. A worker that ends by itself is started again; when the first process ends, by whatever
cause, the workers end.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import signal
from multiprocessing.context import SpawnProcess

import uvloop

from hpcserve.config import Config
from hpcserve.gateway.server import bind_tcp
from hpcserve.wiring.front import run_gateway
from hpcserve.wiring.system import log_to_stderr
from hpcserve.wiring.world import open_world

log = logging.getLogger(__name__)

# a fork would copy the threads' locks and the event loop of the first process
_SPAWN = multiprocessing.get_context("spawn")
#: a worker that ended by itself is started again after so long, s
RESTART_S = 1.0
#: time beyond `stop_s` that a worker gets before it is killed, s
KILL_AFTER_S = 5.0


async def keep_workers(config: Config, stop: asyncio.Event) -> None:
    """Run all workers but the first until *stop*; the port in *config* is the one they share."""
    async with asyncio.TaskGroup() as tasks:
        for number in range(2, config.gateway.workers + 1):
            tasks.create_task(_keep(config, number, stop))


async def _keep(config: Config, number: int, stop: asyncio.Event) -> None:
    while not stop.is_set():
        process = _SPAWN.Process(target=_work, args=(config, number), daemon=True)
        process.start()
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(process.sentinel, ended.set)
        try:
            await _first_of(stop, ended)
            if not ended.is_set():
                await _end(process, ended, config.gateway.stop_s + KILL_AFTER_S)
                return
        finally:
            loop.remove_reader(process.sentinel)
            process.kill()
            process.join()
        log.error("gateway worker %d ended with code %s", number, process.exitcode)
        await asyncio.sleep(RESTART_S)


async def _first_of(*events: asyncio.Event) -> None:
    waits = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


async def _end(process: SpawnProcess, ended: asyncio.Event, seconds: float) -> None:
    process.terminate()
    try:
        async with asyncio.timeout(seconds):
            await ended.wait()
    except TimeoutError:
        log.warning("a gateway worker did not end within %.0f s and is killed", seconds)


def _work(config: Config, number: int) -> None:
    log_to_stderr()
    uvloop.run(_serve(config, number))


async def _serve(config: Config, number: int) -> None:
    """Be worker *number*, in a process of its own."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    # readable once the first process is gone
    loop.add_reader(parent.sentinel, stop.set)
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, stop.set)
    world = open_world(config)
    try:
        tcp = bind_tcp(config.gateway.host, config.gateway.port, shared=True)
        # the controller is elsewhere, and looks at the reported demand with its next tick
        await run_gateway(world, stop, lambda: None, tcp=tcp, number=number)
    finally:
        await world.ledger.close()
