"""What runs in the job: puts the parts of one agent together and lets it live.

The job's payload calls `hpcserve.wiring`, which hands the real world in: engine kind, processes,
GPUs, clock, randomness, and what the environment says of the allocation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import aiohttp

from hpcserve.agent.agent import Agent
from hpcserve.agent.allocation import Allocation
from hpcserve.agent.batch_slots import BatchSlots
from hpcserve.agent.control_client import ControlClient
from hpcserve.agent.engine_calls import EngineCalls
from hpcserve.agent.feeder import Feeder
from hpcserve.agent.supervisor import Supervisor
from hpcserve.config.tree import Agent as AgentSettings
from hpcserve.domain.job import AgentOrder
from hpcserve.policy.local_limit import LocalLimit
from hpcserve.ports.clock import Clock
from hpcserve.ports.control import Registration
from hpcserve.ports.engine import Engine
from hpcserve.ports.gateways import read_addresses
from hpcserve.ports.gpus import Gpus
from hpcserve.ports.process import Processes

#: every interface, for a node that other nodes know by its own name; the engine asks for a key
_EVERY_INTERFACE = "0.0.0.0"  # noqa: S104 - guarded on every route


async def run_agent(
    order: AgentOrder,
    *,
    settings: AgentSettings,
    listen_host: str,
    port: int,
    allocation: Allocation,
    engine: Engine,
    explain: Callable[[str], str],
    processes: Processes,
    gpus: Gpus,
    clock: Clock,
    jitter: Callable[[], float],
) -> int:
    """Serve until the end of the allocation, an order or a fault; return the exit code.

    Args:
        order: what this instance is.
        settings: `[agent]` of the configuration.
        listen_host: `[engine] listen_host`; empty: the node's own name.
        port: a free one, held for the engine.
        allocation: the job that we run in.
        engine: the model's kind of engine.
        explain: finds in the end of an engine's log what it died of.
        processes: starts it.
        gpus: reads the node's GPUs.
        clock: time.
        jitter: numbers from 0 to 1, for pauses.

    """
    model = order.model
    host = listen_host or allocation.hostname
    logs, scratch = _folders(Path(order.instance_dir))
    launch = engine.launch(
        model,
        host=listen_host or _EVERY_INTERFACE,
        port=port,
        key=order.engine_key,
        scratch_dir=str(scratch),
    )
    health, news = asyncio.Event(), asyncio.Event()
    pool = aiohttp.TCPConnector(limit=0, ssl=False)
    async with (
        aiohttp.ClientSession(connector=pool, auto_decompress=False) as to_engine,
        aiohttp.ClientSession() as to_gateways,
    ):
        control = ControlClient(
            to_gateways,
            instance_id=order.instance_id,
            job_id=allocation.job_id,
            key=order.control_key,
            gateways=lambda: read_addresses(Path(order.gateways_dir))[: settings.gateways_max],
            settings=settings,
        )
        calls = EngineCalls(
            to_engine,
            base_url=f"http://{host}:{port}",
            key=order.engine_key,
            probe_timeout_s=settings.probe_timeout_s,
            line_timeout_s=settings.line_timeout_s,
            answer_max_bytes=settings.answer_max_bytes,
            batch_headers=launch.batch_headers,
        )
        feeder = Feeder(
            control=control,
            calls=calls,
            clock=clock,
            jitter=jitter,
            settings=settings,
            limit=LocalLimit(
                cap=model.max_num_seqs,
                ceiling=model.max_num_seqs,
                itl_slo_s=model.itl_slo_ms / 1000,
                memory_s=settings.interactive_memory_s,
            ),
            slots=BatchSlots(Path(launch.slots_file) if launch.slots_file else None),
            health=health,
        )
        supervisor = Supervisor(
            model=model,
            launch=launch,
            log_path=logs / "engine.log",
            engine=engine,
            explain=explain,
            processes=processes,
            calls=calls,
            clock=clock,
            settings=settings,
            health=health,
            news=news,
            observed=feeder.observe,
        )
        agent = Agent(
            registration=Registration(
                job_id=allocation.job_id,
                node=allocation.node,
                host=host,
                port=port,
                log_path=str(supervisor.log_path),
                ends_at=allocation.ends_at if allocation.is_certain else None,
            ),
            allocation=allocation,
            control=control,
            supervisor=supervisor,
            feeder=feeder,
            gpus=gpus,
            clock=clock,
            jitter=jitter,
            settings=settings,
            news=news,
        )
        return await agent.run()


def _folders(instance_dir: Path) -> tuple[Path, Path]:
    """Make the instance's folders, for its owner only; return the ones for logs and scratch."""
    folders = instance_dir / "logs", instance_dir / "scratch"
    for folder in (instance_dir, *folders):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folders
