"""Small requests and long prompts through the gateway, against the Rust vllm-router.

Usage: python -m tests.bench.gateway [ROUNDS]

Each round runs both proxies one after the other, so every figure is a ratio of the same minute; the
figure is the median of the rounds. Ours runs with all that a request gets in production: key,
routing over 16 instances, headers passed, usage counted, metrics, access log.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from tests.bench._figures import figure
from tests.bench._proxies import RIG_CORE, Running, proxy
from tests.bench._proxy import KEY
from tests.bench._rig import Rig, Sample, quantile

ENGINES = 16
SECONDS = 3.0


def request(prompt_bytes: int, *, stream: bool = False) -> bytes:
    """Return a chat request with a prompt of this size."""
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": "w " * (prompt_bytes // 2)}],
        "max_tokens": 64,
        "temperature": 0.7,
        "stream": stream,
    }
    data = json.dumps(body).encode()
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: application/json\r\n"
        b"Content-Type: application/json\r\nUser-Agent: bench\r\nX-Custom: passes\r\n"
        b"Authorization: Bearer %b\r\nContent-Length: %d\r\n\r\n" % (KEY.encode(), len(data))
    ) + data


def measure(
    rig: Rig, running: Running, connections: int, data: bytes, *, streams: bool = False
) -> tuple[Sample, float]:
    """Return the sample of one cell and the proxy's CPU a request, us."""
    rig.connect(running.port, connections, data, streams=streams)
    before = running.cpu_s()
    begun = rig.run(SECONDS)
    cpu_us = (running.cpu_s() - before) / max(1, begun.requests) * 1e6
    # the warm-up's requests are in the CPU time and not in the count
    cpu_us *= SECONDS / (SECONDS + 0.5)
    if begun.errors:
        sys.exit(f"bench: {begun.errors} errors in {begun.requests} requests")
    return begun, cpu_us


def main(rounds: int) -> None:
    """Run the rounds and print the figures."""
    os.sched_setaffinity(0, {RIG_CORE})
    small, long = request(100), request(220_000, stream=True)
    seen: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            # who goes first changes, in case the machine tires
            names = ("ours", "peer") if number % 2 == 0 else ("peer", "ours")
            for name in names:
                rig = Rig(ENGINES)
                with proxy(name, rig, Path(folder) / f"{name}-{number}") as running:
                    sample, cpu_us = measure(rig, running, 64, small)
                    seen["requests_per_s"][name].append(sample.requests_per_s)
                    seen["cpu_us"][name].append(cpu_us)
                    sample, _ = measure(rig, running, 1, small)
                    seen["one_p50_ms"][name].append(quantile(sample.latency_ms, 0.5))
                    rig.tokens = 4
                    rig.pace_s = 0.0
                    sample, _ = measure(rig, running, 100, long, streams=True)
                    seen["long_per_s"][name].append(sample.requests_per_s)
                    seen["long_ttft_ms"][name].append(quantile(sample.ttft_ms, 0.5))
                    seen["resident_mib"][name].append(running.resident_mib())
            for what, by_name in seen.items():
                latest = ", ".join(f"{name} {values[-1]:.4g}" for name, values in by_name.items())
                print(f"  round {number} {what}: {latest}", flush=True)
    bars = {
        "requests_per_s": ">=2",
        "cpu_us": "<=0.5",
        "one_p50_ms": "<=1",
        "long_per_s": ">=1.5",
        "long_ttft_ms": "<=1.2",
    }
    for what, bar in bars.items():
        pairs = zip(seen[what]["ours"], seen[what]["peer"], strict=True)
        figure(f"gateway.{what}", [ours / peer for ours, peer in pairs], bar)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
