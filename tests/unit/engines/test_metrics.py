from __future__ import annotations

from pathlib import Path

import pytest

from hpcserve.engines.vllm.metrics import read_load
from hpcserve.errors import BackendError
from tests.builders import NOW

#: a scrape of vLLM 0.32.0 after three requests
SCRAPE = (Path(__file__).parents[2] / "data" / "engines" / "vllm-0.32.0.metrics").read_text()


def without(name: str) -> str:
    return "\n".join(line for line in SCRAPE.splitlines() if f"vllm:{name}" not in line)


def test_a_real_scrape_is_read_whole() -> None:
    load = read_load(SCRAPE, NOW)
    assert load.at == NOW
    assert (load.running, load.waiting, load.kv_cache_used_ratio) == (0, 0, 0.0)
    assert load.requests_total == load.ttft_count == 3
    assert load.generation_tokens_total - load.itl_count == load.requests_total
    assert load.prompt_tokens_total > 0
    assert 0 < load.ttft_sum_s < 60


def test_data_parallel_engines_are_added_and_their_ratios_averaged() -> None:
    one = [line for line in SCRAPE.splitlines() if line.startswith("vllm:")]
    other = [
        line.replace('engine="0"', 'engine="1"').replace(
            line.rpartition(" ")[2],
            "0.5" if "kv_cache_usage_perc" in line else line.rpartition(" ")[2],
        )
        for line in one
    ]
    single, double = read_load("\n".join(one), NOW), read_load("\n".join(one + other), NOW)
    assert double.generation_tokens_total == 2 * single.generation_tokens_total
    assert double.requests_total == 2 * single.requests_total
    assert double.kv_cache_used_ratio == 0.25


@pytest.mark.parametrize(
    "name",
    [
        "num_requests_running",
        "num_requests_waiting",
        "kv_cache_usage_perc",
        "prompt_tokens_total",
        "generation_tokens_total",
        "request_success_total",
        "num_preemptions_total",
        "time_to_first_token_seconds_sum",
        "inter_token_latency_seconds_count",
        "prefix_cache_queries_total",
        "prefix_cache_hits_total",
    ],
)
def test_a_missing_series_is_named(name: str) -> None:
    with pytest.raises(BackendError, match=f"vllm:{name}"):
        read_load(without(name), NOW)


def test_the_names_of_earlier_releases_are_known() -> None:
    older = SCRAPE.replace("inter_token_latency", "time_per_output_token").replace(
        "vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"
    )
    assert read_load(older, NOW) == read_load(SCRAPE, NOW)


@pytest.mark.parametrize("value", ["NaN", "-1.0", "many", ""])
def test_a_broken_value_is_an_error(value: str) -> None:
    broken = f'vllm:num_requests_running{{engine="0"}} {value}'
    with pytest.raises(BackendError, match="broken line"):
        read_load(f"{broken}\n{SCRAPE}", NOW)
