"""`python -m tests.contract.agent.entry FILE`: one agent as a job runs it, with a fake engine.

The file holds one JSON object: the order's fields, `model` with its fields, `settings` of the
agent, and `ends_in_s`, the time that the allocation has left (null: Slurm does not say).
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pynvml

from hpcserve.agent.allocation import Allocation
from hpcserve.agent.job import run_agent
from hpcserve.config.tree import Agent as AgentSettings
from hpcserve.domain.job import AgentOrder
from hpcserve.domain.model import EngineKind, Model
from hpcserve.engines.failure import explain_failure
from hpcserve.engines.port import HeldPort
from hpcserve.engines.process import EngineProcesses
from hpcserve.engines.registry import engines
from hpcserve.hardware.nvml import NvmlGpus
from tests.contract.control.site import WallClock


async def _main(given: dict[str, Any]) -> int:
    clock = WallClock()
    model = Model(engine=EngineKind.FAKE, weights="none", **given["model"])
    now = clock.now()
    env = {"SLURM_JOB_ID": "inst-1-job"}
    if given["ends_in_s"] is not None:
        end = now + timedelta(seconds=given["ends_in_s"])
        env["SLURM_JOB_END_TIME"] = str(int(end.timestamp()))
    kinds = engines(vllm=(), allow_downloads=False, shutdown_timeout_s=1)
    with HeldPort("127.0.0.1") as port:
        return await run_agent(
            AgentOrder(
                instance_id="inst-1",
                token="token-1",
                model=model,
                role="mixed",
                settings={},
                **given["order"],
            ),
            settings=AgentSettings(**given["settings"]),
            listen_host="127.0.0.1",
            port=port.number,
            allocation=Allocation.from_environment(
                env, hostname="localhost", now=now, time_limit_s=3600, notice_s=120
            ),
            engine=kinds[model.engine],
            explain=explain_failure,
            processes=EngineProcesses(os.environ),
            gpus=NvmlGpus(pynvml, visible_devices=None),
            clock=clock,
            jitter=random.Random(1).random,
        )


if __name__ == "__main__":
    # as submitit leaves them: its handlers are in place when our function begins
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    sys.exit(asyncio.run(_main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))
