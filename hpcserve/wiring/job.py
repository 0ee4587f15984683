"""What runs in a job: the agent with the real world in its hands."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpcserve.agent import job
from hpcserve.agent.allocation import Allocation
from hpcserve.config.tree import Agent as AgentSettings
from hpcserve.config.tree import Engine as EngineSettings
from hpcserve.domain.job import AgentOrder
from hpcserve.engines.failure import explain_failure
from hpcserve.engines.port import HeldPort
from hpcserve.engines.process import EngineProcesses
from hpcserve.engines.registry import engines
from hpcserve.errors import ConfigError
from hpcserve.wiring.gpus import open_gpus
from hpcserve.wiring.system import SystemClock

#: values of `[engine] plugin`
PLUGIN = ("auto", "off")


def run_agent(order: AgentOrder) -> None:
    """Serve one instance until its end; the function that submitit runs in the job."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    # Slurm's own handlers stay out of the way: the agent sets its own for all three signals
    sys.exit(asyncio.run(_run(order, order.settings)))


async def _run(order: AgentOrder, settings: Mapping[str, Any]) -> int:
    agent = AgentSettings(**settings["agent"])
    engine = EngineSettings(**settings["engine"])
    clock = SystemClock()
    hostname = socket.gethostname()
    adapters = engines(
        vllm=(engine.vllm,),
        allow_downloads=engine.allow_downloads,
        shutdown_timeout_s=round(agent.drain_s),
        preempts=chat_preempts(engine),
    )
    with HeldPort(engine.listen_host or "0.0.0.0") as port:  # noqa: S104 - held, never listens
        return await job.run_agent(
            order,
            settings=agent,
            listen_host=engine.listen_host,
            port=port.number,
            allocation=Allocation.from_environment(
                os.environ,
                hostname=hostname,
                now=clock.now(),
                time_limit_s=settings["time_limit_s"],
                notice_s=settings["notice_s"],
            ),
            engine=adapters[order.model.engine],
            explain=explain_failure,
            processes=EngineProcesses(os.environ),
            gpus=open_gpus(),
            clock=clock,
            jitter=random.Random().random,  # noqa: S311 - spreads retries
        )


def chat_preempts(settings: EngineSettings) -> bool:
    """Return whether chat may take slots from batch inside the engine; raise ConfigError."""
    if settings.plugin not in PLUGIN:
        raise ConfigError(
            f"[engine] plugin is {settings.plugin!r}; choose one of {', '.join(PLUGIN)}"
        )
    return settings.plugin != "off"


def engine_command(settings: EngineSettings, env: Mapping[str, str]) -> str:
    """Return the vllm command that jobs are to use: the setting, else what slurm/setup made."""
    if settings.vllm:
        return settings.vllm
    cache = env.get("HPCSERVE_CACHE") or Path(
        env.get("XDG_CACHE_HOME") or Path(env.get("HOME", "~")).expanduser() / ".cache", "hpcserve"
    )
    made = Path(cache) / "engine" / "bin" / "vllm"
    return str(made) if made.exists() else "vllm"
