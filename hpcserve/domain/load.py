"""What an engine and its GPUs say about themselves at one moment."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLoad:
    """One reading of an engine's metrics; counters only ever grow within one engine's life."""

    at: datetime
    #: requests in the running batch, and requests that wait for a place in it
    running: int
    waiting: int
    #: 0..1
    kv_cache_used_ratio: float
    prompt_tokens_total: int
    generation_tokens_total: int
    #: requests finished, whatever the reason
    requests_total: int
    #: running requests pushed out for want of KV blocks
    preemptions_total: int
    #: sums and counts of the latency histograms; differences of two readings give means
    ttft_sum_s: float
    ttft_count: int
    itl_sum_s: float
    itl_count: int
    prefix_cache_query_tokens_total: int
    prefix_cache_hit_tokens_total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuLoad:
    """One reading of one GPU."""

    index: int
    uuid: str
    name: str
    memory_used_bytes: int
    memory_total_bytes: int
    #: 0..1
    utilization_ratio: float
    power_w: float | None
    temperature_c: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpusAbsent:
    """There is no GPU to read here, and why; a value, not an error."""

    reason: str


GpuReading = tuple[GpuLoad, ...] | GpusAbsent
