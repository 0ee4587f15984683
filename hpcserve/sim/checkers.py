"""What must hold after every step of a simulated site, whatever goes wrong.

Each check returns the sentences of what it found; nothing found is an empty answer. They look from
outside: at the model of Slurm, at the ledger through its port, at the book of answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import timedelta

from hpcserve.config import Config
from hpcserve.domain.batch import Batch
from hpcserve.domain.instance import Instance
from hpcserve.domain.job import JobPhase
from hpcserve.domain.model import Model
from hpcserve.ports.ledger import Tx
from hpcserve.sim.slurm import SlurmModel
from hpcserve.sim.work import SimWork
from hpcserve.sim.world import at

#: a job that nobody may use may live on for so long, while nothing is in the way
ORPHAN_S = 300.0


def safety(
    tx: Tx,
    *,
    slurm: SlurmModel,
    work: SimWork,
    models: Mapping[str, Model],
    config: Config,
    now_s: float,
) -> tuple[str, ...]:
    """Return what is wrong."""
    live = tx.instances.live()
    return (
        *_gpus(slurm),
        *_known(tx, slurm),
        *_one_job_a_token(slurm),
        *_answered_once(work),
        *(f"{lease} begins beyond its allocation" for lease in work.beyond),
        *_counted(tx.batches.open()),
        *_within_limits(live, models, config),
        *_leases_are_somebodys(tx, live, config, now_s),
    )


def liveness(tx: Tx, slurm: SlurmModel, now_s: float) -> tuple[str, ...]:
    """Return what has not come right although faults stopped long ago."""
    found = [
        f"{batch.id} is still {batch.state} with {batch.counts.open} open requests"
        for batch in tx.batches.open()
    ]
    live = {instance.token for instance in tx.instances.live()}
    for job in slurm.listed():
        age_s = now_s - job.submitted_s
        if job.phase is not JobPhase.GONE and job.token not in live and age_s > ORPHAN_S:
            found.append(f"job {job.id} of {job.token} lives and belongs to nobody")
    return tuple(found)


def _gpus(slurm: SlurmModel) -> Iterator[str]:
    for name, held in slurm.held.items():
        if not 0 <= held <= slurm.partitions[name].gpus:
            yield f"{held} of {slurm.partitions[name].gpus} GPUs are held in {name}"


def _known(tx: Tx, slurm: SlurmModel) -> Iterator[str]:
    """No GPU is held that the ledger does not know of."""
    for job in slurm.listed():
        if job.phase is JobPhase.HELD and tx.instances.get(job.token) is None:
            yield f"job {job.id} holds GPUs for {job.token}, which the ledger does not know"


def _one_job_a_token(slurm: SlurmModel) -> Iterator[str]:
    tokens = Counter(job.token for job in slurm.listed() if job.phase is not JobPhase.GONE)
    for token, jobs in tokens.items():
        if jobs > 1:
            yield f"{jobs} jobs live for {token}"


def _answered_once(work: SimWork) -> Iterator[str]:
    for (batch, line_no), results in work.answered.items():
        if results > 1:
            yield f"line {line_no} of batch {batch} was answered {results} times"


def _counted(batches: tuple[Batch, ...]) -> Iterator[str]:
    """No request is lost: the counts add up."""
    for batch in batches:
        counts = batch.counts
        ended = counts.completed + counts.failed + counts.cancelled + counts.expired
        if ended + counts.open != counts.total:
            yield f"{batch.id} has {counts.total} requests but counts {counts}"


def _within_limits(
    live: tuple[Instance, ...], models: Mapping[str, Model], config: Config
) -> Iterator[str]:
    gpus = sum(instance.gpus for instance in live)
    if config.scaling.gpus_max and gpus > config.scaling.gpus_max:
        yield f"{gpus} GPUs are held or waited for; {config.scaling.gpus_max} are allowed"
    for name, model in models.items():
        mine = sum(1 for i in live if i.model == name and i.ending is None)
        # each may have a successor
        if mine > 2 * model.max_instances:
            yield f"{mine} instances of {name}; {model.max_instances} are allowed"


def _leases_are_somebodys(
    tx: Tx, live: tuple[Instance, ...], config: Config, now_s: float
) -> Iterator[str]:
    """Nothing stays leased when all allocations are over for longer than a lease lives."""
    slack = timedelta(seconds=2 * config.batching.lease_ttl_s)
    if sum(batch.counts.leased for batch in tx.batches.open()) == 0:
        return
    recent = [i for i in tx.instances.ended(1) if i.ended_at and at(now_s) - i.ended_at < slack]
    if not live and not recent:
        yield "requests are leased although no instance lives"
