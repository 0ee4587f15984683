"""How long a decision takes: 10,000 instances, 10,000,000 queued requests, one core.

`python -m tests.bench.decision`. Each figure is the median of several ticks of `decide`, after the
first one, which reads the whole fleet for the first time.
"""

from __future__ import annotations

import statistics
import sys
import time
from datetime import UTC, datetime, timedelta

from hpcserve.config import Config
from hpcserve.domain.batch import Backlog
from hpcserve.domain.fleet import Demand, Fleet
from hpcserve.domain.instance import Instance, InstanceState, Role
from hpcserve.domain.job import JobPhase, JobsView, JobView
from hpcserve.domain.model import Model
from hpcserve.policy.decide import decide
from hpcserve.policy.scaling.registry import SCALERS
from tests.bench._figures import figure

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
MODELS = 50
BATCHES = 1000
TICKS = 9


def a_fleet(instances: int, requests: int) -> Fleet:
    """Return a fleet at rest: everything serves, and squeue says what it said before."""
    ends_at = NOW + timedelta(hours=3)
    rows = tuple(
        Instance(
            id=f"inst-{n:06d}",
            token=f"inst-{n:06d}",
            model=f"model-{n % MODELS}",
            role=Role.BATCH if n % 4 == 0 else Role.MIXED,
            state=InstanceState.READY,
            partition="gpu",
            gpus=1,
            time_limit_s=4 * 3600,
            reason="",
            requested_at=NOW - timedelta(hours=1, seconds=n % 600),
            job_id=str(n),
            job_state="RUNNING",
            job_reason="None",
            nodes=("node",),
            submitted_at=NOW - timedelta(hours=1),
            started_at=NOW - timedelta(hours=1),
            ready_at=NOW - timedelta(minutes=50),
            heard_at=NOW + timedelta(seconds=5 * TICKS),
            busy_at=NOW,
            ends_at=ends_at,
        )
        for n in range(instances)
    )
    jobs = {
        row.token: JobView(
            job_id=str(row.job_id),
            token=row.token,
            phase=JobPhase.HELD,
            state="RUNNING",
            reason="None",
            partition="gpu",
            nodes=("node",),
            start_at=row.started_at,
            end_at=ends_at,
        )
        for row in rows
    }
    each = requests // BATCHES
    return Fleet(
        instances=rows,
        ended=(),
        jobs=JobsView(asked_at=NOW, jobs=jobs),
        accounted={},
        listening_since=NOW - timedelta(hours=2),
        partitions=(),
        models={
            f"model-{n}": Model(
                name=f"model-{n}", weights="/w", max_instances=2 * max(1, instances // MODELS)
            )
            for n in range(MODELS)
        },
        demand={
            f"model-{n}": Demand(model=f"model-{n}", asked_at=NOW, running=5000, waiting=0)
            for n in range(MODELS)
        },
        backlog=tuple(
            Backlog(
                batch_id=f"batch-{n}",
                batch_seq=n,
                owner="user",
                model=f"model-{n % MODELS}",
                deadline_at=NOW + timedelta(hours=1 + n % 48),
                created_at=NOW,
                waiting=each,
                leased=0,
            )
            for n in range(BATCHES)
        ),
        forgiven_at={},
    )


def ticks_ms(policy: str, fleet: Fleet) -> list[float]:
    """Return how long each tick took."""
    config = Config()
    scaler = SCALERS[policy](config.scaling)
    decide(fleet, scaler, config, NOW)
    took = []
    for n in range(TICKS):
        began = time.process_time()
        decide(fleet, scaler, config, NOW + timedelta(seconds=5 * n))
        took.append(1000 * (time.process_time() - began))
    return took


def main() -> None:
    """Measure at full size, and whether twice the size costs twice the time."""
    large = a_fleet(10_000, 10_000_000)
    for policy in ("demand", "backpressure", "chiron"):
        figure(f"decision.{policy}_10k", ticks_ms(policy, large), "<=100", "ms")
    half = statistics.median(ticks_ms("backpressure", a_fleet(5_000, 5_000_000)))
    growth = [took / half for took in ticks_ms("backpressure", large)]
    figure("decision.cost_of_twice_the_size", growth, "<=2.5")


if __name__ == "__main__":
    sys.exit(main())
