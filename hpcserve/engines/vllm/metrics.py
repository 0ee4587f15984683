"""Read vLLM's `/metrics` into an EngineLoad.

Rules: a series that is needed and missing is an error that names it, never a zero. Values of
several data-parallel engines (`engine="0"`, `engine="1"`) are added; a ratio becomes their mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import datetime

from hpcserve.domain.load import EngineLoad
from hpcserve.errors import BackendError

_PREFIX = "vllm:"
#: each needed series, under its name today and then under names of earlier releases
_RUNNING = ("num_requests_running",)
_WAITING = ("num_requests_waiting",)
_KV_CACHE = ("kv_cache_usage_perc", "gpu_cache_usage_perc")
_PROMPT_TOKENS = ("prompt_tokens_total",)
_GENERATION_TOKENS = ("generation_tokens_total",)
_FINISHED = ("request_success_total",)
_PREEMPTIONS = ("num_preemptions_total",)
_TTFT = ("time_to_first_token_seconds",)
_ITL = ("inter_token_latency_seconds", "time_per_output_token_seconds")
_PREFIX_QUERIES = ("prefix_cache_queries_total", "gpu_prefix_cache_queries_total")
_PREFIX_HITS = ("prefix_cache_hits_total", "gpu_prefix_cache_hits_total")


def read_load(metrics: str, at: datetime) -> EngineLoad:
    """Parse the text; raise BackendError that names the missing series or the broken line."""
    series = _Series(metrics)
    return EngineLoad(
        at=at,
        running=int(series.total(_RUNNING)),
        waiting=int(series.total(_WAITING)),
        kv_cache_used_ratio=series.mean(_KV_CACHE),
        prompt_tokens_total=int(series.total(_PROMPT_TOKENS)),
        generation_tokens_total=int(series.total(_GENERATION_TOKENS)),
        requests_total=int(series.total(_FINISHED)),
        preemptions_total=int(series.total(_PREEMPTIONS)),
        ttft_sum_s=series.total(_suffixed(_TTFT, "_sum")),
        ttft_count=int(series.total(_suffixed(_TTFT, "_count"))),
        itl_sum_s=series.total(_suffixed(_ITL, "_sum")),
        itl_count=int(series.total(_suffixed(_ITL, "_count"))),
        prefix_cache_query_tokens_total=int(series.total(_PREFIX_QUERIES)),
        prefix_cache_hit_tokens_total=int(series.total(_PREFIX_HITS)),
    )


class _Series:
    """Values by series name, whatever their labels."""

    def __init__(self, metrics: str) -> None:
        values: dict[str, list[float]] = {}
        for line in metrics.splitlines():
            # The buckets are most of the text and of no use here.
            if line.startswith(_PREFIX) and "_bucket{" not in line:
                name, value = _parse(line)
                values.setdefault(name, []).append(value)
        self._values = values

    def total(self, names: Iterable[str]) -> float:
        return sum(self._named(names))

    def mean(self, names: Iterable[str]) -> float:
        values = self._named(names)
        return sum(values) / len(values)

    def _named(self, names: Iterable[str]) -> list[float]:
        for name in names:
            if name in self._values:
                return self._values[name]
        wanted = " or ".join(f"{_PREFIX}{name}" for name in names)
        raise BackendError(
            f"the engine's /metrics has no series {wanted}; is this version of vLLM supported?",
            retryable=False,
        )


def _parse(line: str) -> tuple[str, float]:
    """Return name and value of `vllm:name{labels} value`."""
    labelled, _, number = line.rpartition(" ")
    name = labelled.removeprefix(_PREFIX).partition("{")[0]
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not name or not math.isfinite(value) or value < 0:
        raise BackendError(f"the engine's /metrics has a broken line: {line!r}", retryable=True)
    return name, value


def _suffixed(names: tuple[str, ...], suffix: str) -> tuple[str, ...]:
    return tuple(name + suffix for name in names)
