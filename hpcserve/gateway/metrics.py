"""What the gateway counts, and how Prometheus reads it.

The hot path adds to plain dictionaries; the families are built when somebody scrapes. Labels come
from the catalog, the list of routes and enums, never from what a client sent.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from math import inf

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from typing_extensions import override

#: s; from a cached small request to a long answer
BUCKETS_S = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
)  # fmt: skip


class Histogram:
    """One series of one histogram."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS_S) + 1)
        self.sum_s = 0.0

    def observe(self, seconds: float) -> None:
        """Add one observation."""
        self.counts[bisect_left(BUCKETS_S, seconds)] += 1
        self.sum_s += seconds

    def quantile_s(self, share: float) -> float:
        """Return an upper bound of the quantile; infinite when it lies in the last bucket."""
        wanted = share * sum(self.counts)
        total = 0
        for bound, count in zip((*BUCKETS_S, inf), self.counts, strict=True):
            total += count
            if total >= wanted > 0:
                return bound
        return 0.0

    def cumulative(self) -> list[tuple[str, float]]:
        """Return Prometheus's buckets."""
        total = 0
        buckets = []
        for bound, count in zip((*map(str, BUCKETS_S), "+Inf"), self.counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        return buckets


class Metrics(Collector):
    """All of one gateway process."""

    def __init__(self) -> None:
        #: by model, route, outcome
        self.requests: defaultdict[tuple[str, str, str], int] = defaultdict(int)
        #: by model, kind (prompt, cached, completion)
        self.tokens: defaultdict[tuple[str, str], int] = defaultdict(int)
        #: by model, why the attempt before failed
        self.retries: defaultdict[tuple[str, str], int] = defaultdict(int)
        #: by model
        self.duration: defaultdict[str, Histogram] = defaultdict(Histogram)
        self.ttft: defaultdict[str, Histogram] = defaultdict(Histogram)
        self.queue_wait: defaultdict[str, Histogram] = defaultdict(Histogram)
        self.resumed: defaultdict[tuple[str, str], int] = defaultdict(int)
        #: how late the loop ran the last sweep, s: waits that no request's own clock shows
        self.loop_lag_s = 0.0
        #: of the whole site, by stage: batches that ended before the p90 of their estimate, and all
        self.estimates: Mapping[str, tuple[int, int]] = {}
        #: by model: requests in flight and waiting, asked when scraped
        self.gauges: Callable[[], Iterable[tuple[str, int, int]]] = tuple

    @override
    def collect(self) -> Iterable[Metric]:
        """Build the families."""
        requests = CounterMetricFamily(
            "hpcserve_requests", "Inference requests", labels=("model", "route", "outcome")
        )
        for labels, count in self.requests.items():
            requests.add_metric(labels, count)
        yield requests
        tokens = CounterMetricFamily("hpcserve_tokens", "Tokens", labels=("model", "kind"))
        for pair, count in self.tokens.items():
            tokens.add_metric(pair, count)
        yield tokens
        retries = CounterMetricFamily(
            "hpcserve_retries", "Attempts on another instance", labels=("model", "why")
        )
        for pair, count in self.retries.items():
            retries.add_metric(pair, count)
        yield retries
        resumed = CounterMetricFamily(
            "hpcserve_resumed_streams", "Streams continued elsewhere", labels=("model", "why")
        )
        for pair, count in self.resumed.items():
            resumed.add_metric(pair, count)
        yield resumed
        yield _family("hpcserve_request_duration_seconds", "Whole requests", self.duration)
        yield _family("hpcserve_ttft_seconds", "Time to first byte of the answer", self.ttft)
        yield _family("hpcserve_queue_wait_seconds", "Wait for an instance", self.queue_wait)
        running = GaugeMetricFamily(
            "hpcserve_requests_in_flight", "Being served", labels=("model",)
        )
        waiting = GaugeMetricFamily("hpcserve_requests_waiting", "In the queue", labels=("model",))
        for model, in_flight, queued in self.gauges():
            running.add_metric((model,), in_flight)
            waiting.add_metric((model,), queued)
        yield running
        yield waiting
        estimates = CounterMetricFamily(
            "hpcserve_batch_estimates",
            "Ended batches by whether the p90 of their estimate covered the end; of the whole site",
            labels=("stage", "covered"),
        )
        for stage, (covered, batches) in self.estimates.items():
            estimates.add_metric((stage, "yes"), covered)
            estimates.add_metric((stage, "no"), batches - covered)
        yield estimates
        yield GaugeMetricFamily(
            "hpcserve_loop_lag_seconds", "Delay of the event loop", value=self.loop_lag_s
        )


def _family(name: str, text: str, series: defaultdict[str, Histogram]) -> Metric:
    family = HistogramMetricFamily(name, text, labels=("model",))
    for model, histogram in series.items():
        family.add_metric((model,), histogram.cumulative(), histogram.sum_s)
    return family
