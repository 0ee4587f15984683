"""Turns what a person writes on a command line into a Scenario; every mistake is one sentence.

Workload: a trace file that `traces` reads, a file with one rate a line, ServeGen's archive, or
`gamma:RATE[:CV]` (requests/s, and how bursty). Cluster: `GPUS[:P50_S:P90_S]` with the queue wait's
quantiles, or an SWF log for the wait as `GPUS:FILE.swf`. Batch: `REQUESTS:WINDOW_H[:AT_H]`, each
day anew at that hour.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hpcserve.config import Config, load_config
from hpcserve.domain.model import Model
from hpcserve.errors import RequestError
from hpcserve.sim.arrivals import binned, gamma_counts
from hpcserve.sim.flow import Shape, SimBatch, SimModel
from hpcserve.sim.performance import PERFORMANCES
from hpcserve.sim.slurm import SimPartition, Wait
from hpcserve.sim.study import Scenario
from hpcserve.sim.traces import read_idle, read_rates, read_requests, read_waits

_DAY_S = 86_400.0
#: means of ShareGPT, where a workload says nothing of lengths
_CHAT = Shape(prompt=256, output=277)
#: means of arXiv summaries
_SUMMARY = Shape(prompt=2600, output=200)
#: simulated days of one command
_DAYS_MAX = 366.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the command line says."""

    workload: str
    cluster: str
    batches: Sequence[str] = ()
    #: file of the idle GPUs of a preemptible partition
    opportunistic: Path | None = None
    engine: str = "llama-8b-a100"
    gpus_per_instance: int = 1
    max_instances: int | None = None
    max_num_seqs: int = 64
    time_limit_h: float = 4.0
    #: every rate of the workload times this
    scale: float = 1.0
    days: float = 1.0


def scenario_of(asked: Asked, seed: int) -> Scenario:
    """Return the scenario that was asked for, with chance drawn from *seed*.

    Raises:
        RequestError: something is no workload, no cluster, no batch or no engine.

    """
    if asked.engine not in PERFORMANCES:
        raise RequestError(
            f"--engine: {asked.engine!r} is not known; choose one of {', '.join(PERFORMANCES)}."
        )
    if not 0 < asked.days <= _DAYS_MAX:
        raise RequestError(f"--days: {asked.days:g} is not between 0 and {_DAYS_MAX:.0f}.")
    duration_s = asked.days * _DAY_S
    # a request lasts seconds: a step of a second or two for a day, of ten for a month
    step_s = 1.0 if asked.days <= 1 else min(10.0, 2.0 * asked.days)
    arrivals, shape = _arrivals(asked, duration_s, step_s, random.Random(seed))
    partition = parse_cluster(asked.cluster)
    if asked.gpus_per_instance < 1 or asked.gpus_per_instance > partition.gpus:
        raise RequestError(
            f"--cluster: an instance of {asked.gpus_per_instance} GPUs does not fit into "
            f"{partition.gpus}."
        )
    partitions = [partition]
    if asked.opportunistic is not None:
        idle = read_idle(asked.opportunistic)
        gpus = int(max(idle.values))
        partitions.append(
            SimPartition(name="spare", gpus=max(1, gpus), idle=idle, preemptible=True, tier=0)
        )
    model = Model(
        name="model",
        weights="/simulated",
        gpus_per_node=asked.gpus_per_instance,
        max_num_seqs=asked.max_num_seqs,
        max_instances=asked.max_instances or partition.gpus // asked.gpus_per_instance,
        time_limit_s=int(asked.time_limit_h * 3600),
    )
    batches = [b for text in asked.batches for b in parse_batch(text, asked.days)]
    return Scenario(
        name=f"{asked.workload} on {asked.cluster}",
        models=(
            SimModel(
                model=model,
                performance=PERFORMANCES[asked.engine],
                chat=shape,
                arrivals=arrivals,
                batches=tuple(batches),
                engine_seqs=max(256, asked.max_num_seqs),
            ),
        ),
        partitions=tuple(partitions),
        duration_s=duration_s,
        step_s=step_s,
        tick_s=max(10.0, 3 * step_s),
        config=_config(spare=len(partitions) > 1),
    )


def parse_cluster(text: str) -> SimPartition:
    """Return the partition of `GPUS[:P50_S:P90_S]` or `GPUS:FILE.swf`."""
    head, _, rest = text.partition(":")
    try:
        gpus = int(head)
        wait = Wait()
        if rest.endswith((".swf", ".swf.gz")):
            wait = read_waits(Path(rest))
        elif rest:
            p50_s, p90_s = (float(part) for part in rest.split(":"))
            wait = Wait(p50_s=p50_s, p90_s=p90_s)
    except ValueError:
        raise RequestError(
            f"--cluster: {text!r} is not GPUS, GPUS:P50_S:P90_S or GPUS:FILE.swf."
        ) from None
    if gpus < 1 or wait.p50_s < 0 or wait.p90_s < wait.p50_s:
        raise RequestError(
            f"--cluster: {text!r} is impossible; it needs a GPU, and p90 not below p50."
        )
    return SimPartition(name="gpu", gpus=gpus, wait=wait)


def parse_batch(text: str, days: float) -> list[SimBatch]:
    """Return one batch a day of `REQUESTS:WINDOW_H[:AT_H]`."""
    try:
        requests, window_h, *hour = (float(part) for part in text.split(":"))
        (at_h,) = hour or (0.0,)
    except ValueError:
        raise RequestError(f"--batch: {text!r} is not REQUESTS:WINDOW_H[:AT_H].") from None
    if requests < 1 or window_h <= 0 or not 0 <= at_h < 24:  # noqa: PLR2004 - hours of a day
        raise RequestError(f"--batch: {text!r} needs a request, a window, and an hour below 24.")
    starts = [day * _DAY_S + at_h * 3600 for day in range(int(days) + 1)]
    return [
        SimBatch(at_s=at_s, requests=int(requests), within_s=window_h * 3600, shape=_SUMMARY)
        for at_s in starts
        if at_s < days * _DAY_S
    ]


def _arrivals(
    asked: Asked, duration_s: float, step_s: float, rng: random.Random
) -> tuple[list[int], Shape]:
    text = asked.workload
    if text.startswith("gamma:"):
        rate, cv = _gamma(text)
        return gamma_counts(rng, [(duration_s, rate * asked.scale)], cv, step_s), _CHAT
    path = Path(text)
    if path.is_dir() or path.name.endswith((".tar.gz", ".tgz", ".txt")):
        rates = _repeated(read_rates(path), duration_s)
        scaled = [(d, rate * asked.scale) for d, rate in rates]
        return gamma_counts(rng, scaled, 2.0, step_s), _CHAT
    trace = read_requests(path)
    shape = Shape(
        prompt=sum(r.prompt_tokens for r in trace) / len(trace),
        output=sum(r.output_tokens for r in trace) / len(trace),
    )
    counts = binned([r.arrived_s for r in trace], duration_s, step_s)
    return [_scaled(rng, count, asked.scale) for count in counts], shape


def _gamma(text: str) -> tuple[float, float]:
    try:
        rate, *burstiness = (float(part) for part in text.split(":")[1:])
        (cv,) = burstiness or (1.0,)
    except ValueError:
        rate, cv = 0.0, 0.0
    if rate <= 0 or cv <= 0:
        raise RequestError(f"--workload: {text!r} is not gamma:RATE[:CV] with numbers above 0.")
    return rate, cv


def _repeated(
    pieces: Sequence[tuple[float, float]], duration_s: float
) -> list[tuple[float, float]]:
    """Return as many pieces as the duration needs, from the beginning again at the end."""
    if not pieces:
        raise RequestError("--workload: the file has no rates.")
    found: list[tuple[float, float]] = []
    covered_s = 0.0
    while covered_s < duration_s:
        piece = pieces[len(found) % len(pieces)]
        found.append(piece)
        covered_s += piece[0]
    return found


def _scaled(rng: random.Random, count: int, scale: float) -> int:
    """Return *count* times *scale*, the fraction by chance."""
    exact = count * scale
    whole = int(exact)
    return whole + (rng.random() < exact - whole)


def _config(*, spare: bool) -> Config:
    config = load_config(env={})
    return replace(
        config,
        slurm=replace(
            config.slurm, partition="gpu", opportunistic_partition="spare" if spare else ""
        ),
    )
