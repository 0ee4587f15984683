"""The port Cluster over the model of Slurm, with outages and lost answers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import final

from typing_extensions import override

from hpcserve.domain.job import EndReason, JobSpec, JobsView, JobView, Partition
from hpcserve.errors import BackendError
from hpcserve.ports.cluster import Cluster, Refused
from hpcserve.sim.faults import Faults
from hpcserve.sim.slurm import Changes, Job, SlurmModel
from hpcserve.sim.world import at

#: a scheduler command takes so long
_CALL_S = 0.1
#: between two scheduling passes
_PASS_S = 5.0


@final
class SimCluster(Cluster):
    """Jobs that start, warn and end as the model says; `watch` is told of each change."""

    def __init__(
        self,
        model: SlurmModel,
        faults: Faults,
        rng: random.Random,
        watch: Callable[[Changes], None],
    ) -> None:
        self._model = model
        self._faults = faults
        self._rng = rng
        self._watch = watch
        self._down_until_s = 0.0
        #: what each job serves, by token: the payload of a real job
        self.model_of: dict[str, str] = {}

    @property
    @override
    def description(self) -> str:
        return "a simulated Slurm"

    async def run(self) -> None:
        """Pass after pass, until cancelled."""
        while True:
            self._pass()
            await asyncio.sleep(_PASS_S)

    @override
    async def submit(self, spec: JobSpec) -> str | Refused:
        await self._call()
        unheard = self._rng.random() < self._faults.submit_error_ratio * self._trouble
        if unheard and self._rng.random() < 0.5:  # noqa: PLR2004 - a coin
            raise BackendError("sbatch: Socket timed out on send/recv operation", retryable=True)
        job = self._model.submit(
            _now_s(),
            token=spec.token,
            partition=spec.partition,
            gpus=spec.nodes * spec.gpus_per_node,
            limit_s=spec.time_limit_s,
            min_s=spec.time_min_s,
        )
        if isinstance(job, str):
            return Refused(message=job)
        self.model_of[spec.token] = spec.order.model.name
        if unheard:
            raise BackendError("sbatch: Socket timed out on send/recv operation", retryable=True)
        return job.id

    @override
    def script(self, spec: JobSpec) -> str:
        return f"#!/bin/sh\n# {spec.name}\n"

    @override
    async def cancel(self, job_ids: Sequence[str]) -> None:
        await self._call()
        ended = [job for i in job_ids if (job := self._model.cancel(_now_s(), i)) is not None]
        self._watch(Changes(ended=ended))

    @override
    async def jobs(self) -> JobsView:
        await self._call()
        return JobsView(asked_at=at(_now_s()), jobs=self._model.views())

    @override
    async def accounted(self, tokens: Mapping[str, str]) -> Mapping[str, JobView]:
        await self._call()
        return {}

    @override
    async def partitions(self) -> tuple[Partition, ...]:
        await self._call()
        return self._model.describe(_now_s())

    @override
    async def estimate_start(self, spec: JobSpec) -> datetime | None:
        await self._call()
        return None

    def exit(self, job: Job, reason: EndReason | None) -> None:
        """Let a job's program end by itself; None is exit 0."""
        self._model.end(job, _now_s(), reason)
        self._watch(Changes(ended=[job]))

    @property
    def _trouble(self) -> bool:
        return _now_s() < self._faults.until_s

    async def _call(self) -> None:
        await asyncio.sleep(_CALL_S)
        if _now_s() < self._down_until_s:
            raise BackendError("squeue: Unable to contact slurm controller", retryable=True)

    def _pass(self) -> None:
        now_s = _now_s()
        changes = self._model.advance(now_s)
        if self._trouble:
            self._harm(changes, now_s)
        self._watch(changes)

    def _harm(self, changes: Changes, now_s: float) -> None:
        faults, draw = self._faults, self._rng.random
        if draw() < faults.outages_per_hour * _PASS_S / 3600:
            self._down_until_s = min(now_s + faults.outage_s, faults.until_s)
        for job in list(self._model.listed()):
            if job.started_s is None or job.end_reason is not None or job.ends_s <= now_s:
                continue
            if draw() < faults.node_failures_per_hour * _PASS_S / 3600:
                self._model.end(job, now_s, EndReason.NODE_FAILED)
                changes.ended.append(job)
            elif not job.preempted and draw() < faults.preemptions_per_hour * _PASS_S / 3600:
                self._model.preempt(job, now_s)
                changes.warned.append(job)


def _now_s() -> float:
    return asyncio.get_running_loop().time()
