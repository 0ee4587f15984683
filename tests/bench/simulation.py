"""How fast the simulator is: 30 days of a 64-GPU site on one core, and seeded sites with faults.

`python -m tests.bench.simulation` needs the traces (see `_scenarios`).
"""

from __future__ import annotations

import logging
import sys
import time

from hpcserve.sim.site import simulate
from hpcserve.sim.study import Study
from tests.bench._figures import figure
from tests.bench._scenarios import need_traces, slurms
from tests.simulation.sites import a_site

DAYS = 30
SITES = 50


def main() -> None:
    """Measure both worlds."""
    need_traces()
    scenario = slurms(1, days=DAYS, step_s=10.0, tick_s=60.0)
    began = time.process_time()
    outcome = Study(scenario, "backpressure", 1).run()
    figure("simulation.month_of_64_gpus", [time.process_time() - began], "<=60", "s")
    print(f"  {outcome.chat:,.0f} interactive and {outcome.batch:,.0f} batch requests")
    logging.disable(logging.CRITICAL)
    began = time.process_time()
    for seed in range(SITES):
        simulate(a_site(seed), seed)
    each_s = (time.process_time() - began) / SITES
    figure("simulation.thousand_sites_with_faults", [1000 * each_s], "<=60", "s")


if __name__ == "__main__":
    sys.exit(main())
