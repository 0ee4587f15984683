"""Readings of an engine, as tests need them."""

from __future__ import annotations

from datetime import timedelta

from hpcserve.domain.load import EngineLoad
from tests.builders import NOW


def a_load(second: float, **fields: object) -> EngineLoad:
    base = {
        "at": NOW + timedelta(seconds=second),
        "running": 0,
        "waiting": 0,
        "kv_cache_used_ratio": 0.0,
        "prompt_tokens_total": 0,
        "generation_tokens_total": 0,
        "requests_total": 0,
        "preemptions_total": 0,
        "ttft_sum_s": 0.0,
        "ttft_count": 0,
        "itl_sum_s": 0.0,
        "itl_count": 0,
        "prefix_cache_query_tokens_total": 0,
        "prefix_cache_hit_tokens_total": 0,
    }
    return EngineLoad(**{**base, **fields})
