"""What Prometheus reads."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest

from hpcserve.batching.estimate_records import counted, score
from hpcserve.gateway.metrics import Metrics
from tests.builders import NOW, ago, ahead


def test_estimates_are_counted_by_whether_they_covered_the_end() -> None:
    note = counted(None, {"first": ahead(10)}, NOW)
    note = counted(note, {"first": ago(10), "learned": NOW}, NOW)
    metrics, registry = Metrics(), CollectorRegistry()
    registry.register(metrics)
    metrics.estimates = score(note)
    text = generate_latest(registry).decode()
    assert 'hpcserve_batch_estimates_total{covered="yes",stage="first"} 1.0' in text
    assert 'hpcserve_batch_estimates_total{covered="no",stage="first"} 1.0' in text
    assert 'hpcserve_batch_estimates_total{covered="yes",stage="learned"} 1.0' in text
