"""Small sites that a test simulates by the hundred."""

from __future__ import annotations

from hpcserve.domain.model import Model
from hpcserve.sim.faults import Faults
from hpcserve.sim.flow import Shape, SimBatch
from hpcserve.sim.site import SiteScenario
from hpcserve.sim.slurm import SimPartition, Wait

SHAPE = Shape(prompt=200, output=100)

#: everything that can go wrong does, for a quarter of an hour
TROUBLE = Faults(
    submit_error_ratio=0.2,
    outages_per_hour=3,
    outage_s=120,
    node_failures_per_hour=2,
    preemptions_per_hour=3,
    engine_crashes_per_hour=1,
    word_loss_ratio=0.1,
    mute_ratio=0.1,
    slow_load_ratio=0.2,
    controller_crashes_per_hour=6,
    until_s=1000,
)


def a_site(seed: int = 0, **fields: object) -> SiteScenario:
    """Return a site of one model and six GPUs; policy and batch vary with the seed."""
    model = Model(
        name="m",
        weights="/weights/m",
        max_num_seqs=8,
        max_instances=3,
        idle_release_s=300,
        time_limit_s=900 if seed % 2 else 3600,
    )
    base = {
        "models": (model,),
        "partitions": (SimPartition(name="gpu", gpus=6, wait=Wait(p50_s=30, p90_s=120)),),
        "batches": (SimBatch(at_s=30, requests=20 + seed % 40, within_s=1800, shape=SHAPE),),
        "chat_rate": 0.03,
        "chat_until_s": 900.0,
        "faults": TROUBLE,
        "policy": ("demand", "backpressure", "chiron")[seed % 3],
        "until_s": 2100.0,
    }
    return SiteScenario(**{**base, **fields})
