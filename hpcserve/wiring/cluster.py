"""The scheduler of this site."""

from __future__ import annotations

import asyncio
import os
import sys
from datetime import datetime
from pathlib import Path

import hpcserve
from hpcserve.config import Config
from hpcserve.controller.act import order_for
from hpcserve.domain.instance import Role
from hpcserve.domain.job import JobSpec
from hpcserve.errors import RequestError
from hpcserve.policy.placement import place
from hpcserve.ports.clock import Clock
from hpcserve.slurm.choose import Choice, Parts, choose
from hpcserve.slurm.commands import Commands
from hpcserve.slurm.submission import Submission
from hpcserve.slurm.tag import Tag
from hpcserve.wiring.gpus import count_gpus
from hpcserve.wiring.job import run_agent
from hpcserve.wiring.site import Catalog, Paths, open_site
from hpcserve.wiring.system import SystemClock


async def open_cluster(config: Config, paths: Paths, clock: Clock) -> Choice:
    """Return the scheduler's back end and why it was chosen."""
    submission = Submission(
        tag=Tag(config.site.name),
        jobs_dir=paths.jobs,
        entry=run_agent,
        python=sys.executable,
        python_path=_python_path(),
        setup=config.slurm.setup,
    )
    parts = Parts(
        commands=Commands(env=os.environ, timeout_s=config.slurm.command_timeout_s),
        submission=submission,
        clock=clock,
        python=sys.executable,
        local_gpus=count_gpus(),
    )
    return await choose(config.slurm.backend, parts)


def _python_path() -> tuple[str, ...]:
    """Return what makes hpcserve importable in a job when it runs from a checkout."""
    package = Path(hpcserve.__file__).parent.parent
    return () if package.name == "site-packages" else (str(package),)


def plan_instance(config: Config, name: str) -> tuple[JobSpec, str, datetime | None]:
    """Return the job of an instance of model *name*, its script, and when it would start."""
    models = Catalog(config)()
    if name not in models:
        known = ", ".join(models) or "none; put a file into one of site.catalog_dirs"
        raise RequestError(f"The catalog has no model {name!r}; it knows: {known}.")
    paths = open_site(config)
    model = models[name]
    order = order_for(
        "inst-example", model, Role.MIXED, state_dir=paths.state, secret=b"", config=config
    )
    spec = place(model, Role.MIXED, order, config.slurm)

    async def ask() -> tuple[str, datetime | None]:
        choice = await open_cluster(config, paths, SystemClock())
        try:
            return choice.cluster.script(spec), await choice.cluster.estimate_start(spec)
        finally:
            await choice.close()

    return (spec, *asyncio.run(ask()))
