"""The scenarios that policies are compared on; traces come from a folder beside the repository."""

from __future__ import annotations

import functools
import os
import random
import sys
from pathlib import Path

from hpcserve.config import Config
from hpcserve.config.tree import Scaling, Slurm
from hpcserve.domain.model import Model
from hpcserve.sim.arrivals import gamma_counts
from hpcserve.sim.flow import Shape, SimBatch, SimModel
from hpcserve.sim.performance import PERFORMANCES
from hpcserve.sim.slurm import Series, SimPartition, Wait
from hpcserve.sim.study import Scenario
from hpcserve.sim.traces import read_idle, read_rates, read_requests

TRACES = Path(os.environ.get("HPCSERVE_TRACES", Path(__file__).parents[3] / "shared" / "traces"))
ENGINE = PERFORMANCES["llama-8b-a100"]
DAY_S = 86_400.0
#: ServeGen's own rates are those of a provider; chat of a site is a twelfth of it
CHAT_PER_S = 100.0


def need_traces() -> None:
    """End with a sentence where there are no traces."""
    if not TRACES.is_dir():
        sys.exit(f"{TRACES} is missing; name the folder of traces in HPCSERVE_TRACES")


@functools.cache
def _rates() -> tuple[tuple[float, float], ...]:
    archive = next((TRACES / "servegen").glob("*.tar.gz"))
    return read_rates(archive, "m-small")


@functools.cache
def _idle() -> Series:
    return read_idle(TRACES / "helios_earth_vc" / "vc6YE_cluster_sequence_vc.csv.gz")


@functools.cache
def _shape(name: str) -> Shape:
    """Return the mean lengths of Azure chat, or of arXiv summaries."""
    if name == "chat":
        trace = read_requests(TRACES / "azure_llm_2023" / "AzureLLMInferenceTrace_conv.csv")
        return Shape(
            prompt=sum(r.prompt_tokens for r in trace) / len(trace),
            output=sum(r.output_tokens for r in trace) / len(trace),
        )
    file = TRACES / "vidur" / "arxiv_summarization_stats_llama2_tokenizer_filtered_v2.csv"
    rows = [line.split(",") for line in file.read_text().splitlines()[1:]]
    return Shape(
        prompt=sum(float(row[0]) for row in rows) / len(rows),
        output=sum(float(row[1]) for row in rows) / len(rows),
    )


def chirons(seed: int) -> Scenario:
    """Chiron's own experiment: no queue wait, up to 50 GPUs, a million requests at minute 5."""
    shape = Shape(prompt=256, output=277)
    hours = 2
    model = Model(
        name="llama-8b",
        weights="/simulated",
        max_num_seqs=48,
        max_instances=50,
        idle_release_s=300,
        time_limit_s=24 * 3600,
    )
    load = SimModel(
        model=model,
        performance=ENGINE,
        chat=shape,
        arrivals=gamma_counts(random.Random(seed), [(hours * 3600, 30.0)], 4.0, 1.0),
        batches=(SimBatch(at_s=300, requests=1_000_000, within_s=3600, shape=shape),),
        engine_seqs=256,
    )
    return Scenario(
        name="Chiron's experiment",
        models=(load,),
        partitions=(SimPartition(name="gpu", gpus=50),),
        duration_s=hours * 3600,
        config=Config(slurm=Slurm(partition="gpu"), scaling=Scaling(ready_first_s=60)),
    )


def slurms(seed: int, *, days: int = 3, step_s: float = 5.0, tick_s: float = 30.0) -> Scenario:
    """A 64-GPU site: ServeGen chat, arXiv batches, queue wait, walltime, Helios' idle GPUs."""
    rng = random.Random(seed)
    rates = _rates()
    mean = sum(rate for _, rate in rates) / len(rates)
    # each seed begins on another day of the two weeks
    windows = [rates[(144 * seed + n) % len(rates)] for n in range(days * 144)]
    pieces = [(length_s, rate / mean * CHAT_PER_S) for length_s, rate in windows]
    batches = [
        SimBatch(
            at_s=day * DAY_S + hour * 3600 + rng.uniform(0, 1800),
            requests=requests,
            within_s=window_h * 3600,
            shape=_shape("summary"),
        )
        for day in range(days)
        for hour, requests, window_h in ((9, 240_000, 6), (13, 600_000, 12), (20, 1_200_000, 24))
    ]
    model = Model(
        name="llama-8b",
        weights="/simulated",
        max_num_seqs=128,
        max_instances=60,
        time_limit_s=4 * 3600,
    )
    load = SimModel(
        model=model,
        performance=ENGINE,
        chat=_shape("chat"),
        arrivals=gamma_counts(rng, pieces, 2.0, step_s),
        batches=tuple(batches),
    )
    return Scenario(
        name="Slurm conditions",
        models=(load,),
        partitions=(
            SimPartition(name="gpu", gpus=64, wait=Wait(p50_s=360, p90_s=3600)),
            SimPartition(name="spare", gpus=32, idle=_idle(), preemptible=True, tier=0),
        ),
        duration_s=days * DAY_S,
        step_s=step_s,
        tick_s=tick_s,
        config=Config(slurm=Slurm(partition="gpu", opportunistic_partition="spare")),
    )


def steady(seed: int) -> Scenario:
    """Even chat for two days on instances that end each four hours: hand-over is all there is."""
    arrivals = gamma_counts(random.Random(seed), [(2 * DAY_S, 20.0)], 1.0, 5.0)
    scenario = slurms(seed, days=2)
    load = scenario.models[0]
    return Scenario(
        name="hand-over",
        models=(
            SimModel(
                model=load.model,
                performance=load.performance,
                chat=load.chat,
                arrivals=arrivals,
            ),
        ),
        partitions=scenario.partitions,
        duration_s=scenario.duration_s,
        step_s=5.0,
        tick_s=30.0,
        config=scenario.config,
    )
