"""Streams through the gateway, against the Rust vllm-router.

Usage: python -m tests.bench.streams [ROUNDS]

Chunks carry the time at which the engine sent them, so the delay of each on its way through the
proxy is exact. Each round runs both proxies; every figure is the median of the rounds' ratios.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from tests.bench._figures import figure
from tests.bench._proxies import RIG_CORE, proxy
from tests.bench._rig import Rig, quantile
from tests.bench.gateway import ENGINES, SECONDS, measure, request

#: tokens of one stream
TOKENS = 64


def main(rounds: int) -> None:
    """Run the rounds and print the figures."""
    os.sched_setaffinity(0, {RIG_CORE})
    data = request(100, stream=True)
    seen: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    offered = 512 / 0.02
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            # who goes first changes, in case the machine tires
            names = ("ours", "peer") if number % 2 == 0 else ("peer", "ours")
            for name in names:
                rig = Rig(ENGINES)
                rig.tokens = TOKENS
                with proxy(name, rig, Path(folder) / f"{name}-{number}") as running:
                    rig.pace_s = 0.01
                    sample, _ = measure(rig, running, 1, data, streams=True)
                    seen["one_ttft_p50_ms"][name].append(quantile(sample.ttft_ms, 0.5))
                    sample, _ = measure(rig, running, 64, data, streams=True)
                    seen["ttft_64_p50_ms"][name].append(quantile(sample.ttft_ms, 0.5))
                    seen["ttft_64_p99_ms"][name].append(quantile(sample.ttft_ms, 0.99))
                    rig.pace_s = 0.02
                    before = running.cpu_s()
                    sample, _ = measure(rig, running, 512, data, streams=True)
                    cpu_s = (running.cpu_s() - before) * SECONDS / (SECONDS + 0.5)
                    seen["cpu_us_chunk"][name].append(cpu_s / sample.chunks * 1e6)
                    seen["relay_512_p99_ms"][name].append(quantile(sample.relay_ms, 0.99))
                    seen["delivered_512"][name].append(sample.chunks / sample.seconds / offered)
                    seen["resident_mib"][name].append(running.resident_mib())
            for what, by_name in seen.items():
                latest = ", ".join(f"{name} {values[-1]:.4g}" for name, values in by_name.items())
                print(f"  round {number} {what}: {latest}", flush=True)
    bars = {
        "one_ttft_p50_ms": "<=1",
        "ttft_64_p50_ms": "<=1",
        "ttft_64_p99_ms": "<=1",
        "cpu_us_chunk": "<=0.7",
        "relay_512_p99_ms": "<=1",
        "delivered_512": ">=0.99",
        "resident_mib": "<=0.5",
    }
    for what, bar in bars.items():
        pairs = zip(seen[what]["ours"], seen[what]["peer"], strict=True)
        figure(f"streams.{what}", [ours / peer for ours, peer in pairs], bar)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
