"""Everything is lost at random while a batch runs: each custom_id has exactly one result.

The events are drawn from a seed. `CHAOS_SEED`, `CHAOS_LINES` and `CHAOS_S`, the seconds in which
things go wrong, make another run or a larger one; a run that fails prints the line to replay it.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from tests.integration.running_site import (
    FAKE,
    RunningSite,
    assert_exactly_once,
    chat_line,
    running_site,
)
from tests.integration.slurm_cluster import SlurmCluster

SEED = int(os.environ.get("CHAOS_SEED", "1"))
LINES = int(os.environ.get("CHAOS_LINES", "2500"))
CHAOS_S = float(os.environ.get("CHAOS_S", "40"))
INSTANCES = 4

pytestmark = pytest.mark.timeout(CHAOS_S + LINES / 10 + 120)

MODEL = {
    **FAKE,
    "partition": "opportunistic",
    "min_instances": INSTANCES,
    "max_instances": INSTANCES,
    "engine_args": ["--itl-ms", "40"],
}
SETTINGS = {
    # what is lost here is nobody's fault: no line and no model is given up for it
    "controller": {"failures_max": 1000, "backoff_first_s": 0.5, "backoff_max_s": 1.0},
    "batching": {"max_attempts": 1000, "lease_size": 64},
}


class Chaos:
    """Picks what is lost next, and loses it."""

    def __init__(self, site: RunningSite, cluster: SlurmCluster) -> None:
        """Take what to break."""
        self._site = site
        self._cluster = cluster
        self._random = random.Random(SEED)
        self._down: list[str] = []
        self.done: Counter[str] = Counter()

    def strike(self) -> None:
        """Let one thing happen."""
        name = self._random.choice(sorted(EVENTS))
        ready = self._site.instances("ready")
        if name == "controller" or ready:
            self.done[name] += 1
            EVENTS[name](self, self._random.choice(ready) if ready else {})

    def pause(self) -> None:
        """Wait for the next."""
        time.sleep(self._random.uniform(1.0, 3.0))

    def heal(self) -> None:
        """Bring all nodes back."""
        while self._down:
            self._cluster.node_up(self._down.pop())

    def cancel(self, instance: dict[str, Any]) -> None:
        """Somebody cancels the job by hand."""
        self._cluster.run("scancel", instance["job_id"])

    def preempt(self, _: dict[str, Any]) -> None:
        """Somebody who pays wants a node, for a moment."""
        self._cluster.submit("sleep 2", "--partition=gpu", "--nodes=1", "--gres=gpu:2", "--time=1")

    def agent(self, instance: dict[str, Any]) -> None:
        """The agent is killed, and its engine with it."""
        self._kill(lambda: self._site.agent(instance["id"]))

    def engine(self, instance: dict[str, Any]) -> None:
        """The engine is killed."""
        self._kill(lambda: self._site.engine(instance["id"]))

    def _kill(self, find: Callable[[], psutil.Process]) -> None:
        try:
            find().kill()
        except (psutil.NoSuchProcess, StopIteration, ValueError):
            self.done["too late"] += 1

    def controller(self, _: dict[str, Any]) -> None:
        """Controller and gateway are killed, and come back a moment later."""
        self._site.kill()
        self.pause()
        self._site.start()

    def node(self, instance: dict[str, Any]) -> None:
        """The node is lost; its processes live on as zombies whose results must not count."""
        self._lose(instance, silently=False)

    def slurmd(self, instance: dict[str, Any]) -> None:
        """The node's slurmd dies without a word; Slurm finds out by itself."""
        self._lose(instance, silently=True)

    def _lose(self, instance: dict[str, Any], *, silently: bool) -> None:
        if self._down:
            self.heal()
        elif instance["nodes"]:
            self._down.append(instance["nodes"][0])
            self._cluster.node_down(instance["nodes"][0], silently=silently)


EVENTS = {
    "cancel": Chaos.cancel,
    "preempt": Chaos.preempt,
    "agent": Chaos.agent,
    "engine": Chaos.engine,
    "controller": Chaos.controller,
    "node": Chaos.node,
    "slurmd": Chaos.slurmd,
}


def test_every_line_has_one_result_whatever_is_lost(slurm_cluster: SlurmCluster) -> None:
    _say(
        f"replay: CHAOS_SEED={SEED} CHAOS_LINES={LINES} CHAOS_S={CHAOS_S:.0f} "
        f"tests/run integration -- -k {test_every_line_has_one_result_whatever_is_lost.__name__}"
    )
    names = [f"line-{n}" for n in range(LINES)]
    with running_site(slurm_cluster, {"m": MODEL}, SETTINGS) as site:
        chaos = Chaos(site, slurm_cluster)
        site.wait_ready(INSTANCES)
        batch = site.submit(chat_line(name, "m", max_tokens=25) for name in names)
        site.wait_under_way(batch)
        end = time.monotonic() + CHAOS_S
        try:
            while time.monotonic() < end and site.batch(batch)["status"] == "in_progress":
                chaos.strike()
                chaos.pause()
        finally:
            chaos.heal()
        _say(f"lost: {dict(chaos.done)}")
        counts = site.wait_completed(batch, LINES / 10 + 60)["request_counts"]
        assert counts == {"total": LINES, "completed": LINES, "failed": 0}
        assert_exactly_once(site.results(batch), names)
        reasons = Counter(instance["end_reason"] for instance in site.status()["ended"])
        _say(f"instances ended: {dict(reasons)}")


def _say(line: str) -> None:
    """Print where pytest shows it when the test fails."""
    sys.stdout.write(line + "\n")
