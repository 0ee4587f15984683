"""A controller process's parts: the loop over the fleet, and the worker over the batches."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import asdict

from hpcserve import __version__
from hpcserve.batching.estimates import Estimates
from hpcserve.batching.services import worker
from hpcserve.batching.worker import BatchWorker
from hpcserve.controller.act import Actor
from hpcserve.controller.loop import Controller
from hpcserve.controller.observe import Observer
from hpcserve.controller.tidy import Tidy
from hpcserve.errors import BackendError, ConfigError
from hpcserve.policy.scaling.registry import SCALERS
from hpcserve.policy.scaling.remembered import Remembered
from hpcserve.policy.scaling.target import Scaler
from hpcserve.slurm.choose import Choice
from hpcserve.wiring.cluster import open_cluster
from hpcserve.wiring.ended import EndCommand
from hpcserve.wiring.world import World

log = logging.getLogger(__name__)


async def run_controller(world: World, on_wake: Callable[[Callable[[], None]], None]) -> None:
    """Run until cancelled; *on_wake* is told what makes the next tick come sooner."""
    choice = await _until_open(world)
    log.info("%s: %s", choice.cluster.description, choice.reason)
    ledger, clock, config = world.ledger, world.clock, world.config
    scaler = Remembered(_scaler(world))
    controller = Controller(
        holder=f"{socket.gethostname()}-{os.getpid()}",
        ledger=ledger,
        observer=Observer(
            ledger=ledger,
            cluster=choice.cluster,
            clock=clock,
            config=config,
            catalog=world.catalog,
        ),
        actor=Actor(
            ledger=ledger,
            cluster=choice.cluster,
            clock=clock,
            ids=world.ids,
            config=config,
            state_dir=world.paths.state,
            secret=world.secret,
        ),
        scaler=scaler,
        clock=clock,
        config=config,
        cluster_description=choice.cluster.description,
    )
    on_wake(controller.wake)
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(controller.run())
            tasks.create_task(_batch_worker(world, controller).run())
            tasks.create_task(_estimates(world, controller, scaler).run())
            tasks.create_task(_tidy(world, controller).run())
    finally:
        await choice.close()


async def _until_open(world: World) -> Choice:
    """Wait for the scheduler: a controller may start while Slurm is away."""
    while True:
        try:
            return await open_cluster(world.config, world.paths, world.clock)
        except BackendError as error:
            if not error.retryable:
                raise
            log.warning("%s", error.message)
        await world.clock.sleep(world.config.controller.tick_s)


def _tidy(world: World, controller: Controller) -> Tidy:
    return Tidy(
        ledger=world.ledger,
        clock=world.clock,
        folders=(world.paths.instances, world.paths.jobs),
        keep_s=world.config.controller.keep_logs_s,
        leads=lambda: controller.leadership is not None,
    )


def _scaler(world: World) -> Scaler:
    settings = world.config.scaling
    try:
        return SCALERS[settings.policy](settings)
    except KeyError:
        raise ConfigError(
            f"[scaling] policy is {settings.policy!r}; choose one of {', '.join(SCALERS)}"
        ) from None


def _batch_worker(world: World, controller: Controller) -> BatchWorker:
    def describe(model: str) -> Mapping[str, object]:
        known = world.catalog().get(model)
        return {} if known is None else asdict(known)

    return worker(
        ledger=world.ledger,
        clock=world.clock,
        ids=world.ids,
        settings=world.config.batching,
        root=world.paths.batches,
        leadership=lambda: controller.leadership,
        models=world.catalog,
        describe=describe,
        version=__version__,
        ended_max=world.config.controller.ended_shown,
        notify=EndCommand(world.config.batching),
    )


def _estimates(world: World, controller: Controller, scaler: Remembered) -> Estimates:
    return Estimates(
        ledger=world.ledger,
        clock=world.clock,
        settings=world.config.batching,
        scaling=world.config.scaling,
        ended_max=world.config.controller.ended_shown,
        leadership=lambda: controller.leadership,
        targets=lambda: scaler.last,
    )
