"""How fast a whole site gets a batch done: real agent, gateway, ledger (SQLite) and worker.

- `batch.first_result_s`: from the instance's READY to the first committed result.
- `batch.engine_limit`: lines/s of the site over those of a client that only keeps the same fake
  engine's slots full, at 1,000 lines a second; rounds in turn.
- `batch.run_batch`: lines/s over those of `vllm run-batch` on the same 500-line file with the same
  model and flags, both from when the engine is up to when the last result is written.

Run: `python tests/bench/batch.py [--only first|limit|vllm] [--rounds N] [--lines N]`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.bench._figures import figure
from tests.bench.feeder import BODY, SLOTS, TIMING, direct
from tests.integration.running_site import FAKE, HPCSERVE, RunningSite, running_site
from tests.integration.vllm.engine_paths import SMOLLM2_WEIGHTS, VLLM

ON_CPU = {**FAKE, "gpus_per_node": 0, "max_instances": 1}
#: as shipped; the short timers of the tests would cost a small machine its cores
SHIPPED: dict[str, dict[str, object]] = {
    "slurm": {"backend": "local"},
    "controller": {"tick_s": 5.0, "tick_min_s": 1.0, "leader_ttl_s": 30.0, "silence_s": 30.0},
    "agent": {
        "heartbeat_s": 5.0,
        "probe_s": 0.5,
        "lease_poll_s": 0.5,
        "settle_s": 0.2,
        "call_timeout_s": 10.0,
        "stop_s": 10.0,
    },
    "batching": {"lease_ttl_s": 60.0, "poll_s": 0.5},
}
#: the same for both sides
VLLM_LINES, VLLM_TOKENS, VLLM_SEQS, VLLM_CONTEXT, VLLM_CACHE_MIB = 500, 16, 32, 2048, 512


def write(path: Path, bodies: Iterable[dict[str, object]]) -> Path:
    """Write a file of chat requests."""
    with path.open("w") as file:
        for number, body in enumerate(bodies):
            line = {
                "custom_id": f"line-{number}",
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": body,
            }
            file.write(json.dumps(line) + "\n")
    return path


def at(site: RunningSite, batch_id: str, event: str) -> float:
    """Return when an event of a batch happened."""
    found = next(line for line in site.story(batch_id) if line["event"] == event)
    return datetime.fromisoformat(found["at"]).timestamp()


def first_result_s(folder: Path) -> float:
    """Return how long after READY the first result of a waiting batch is committed."""
    model = {**ON_CPU, "engine_args": ["--ttft-ms", "20", "--itl-ms", "5"]}
    with running_site(None, {"m": model}, SHIPPED) as site:
        path = write(folder / "first.jsonl", [{**BODY, "max_tokens": 4}] * 64)
        batch_id = site.cli("batch", "submit", str(path))
        site.wait_completed(batch_id)
        outputs = site.state / "batches" / "outputs"
        manifest = json.loads((outputs / f"{batch_id}.manifest.json").read_text())
        (instance,) = site.instances()
        first_at = datetime.fromisoformat(manifest["first_result_at"])
        return (first_at - datetime.fromisoformat(instance["ready_at"])).total_seconds()


def site_rate(folder: Path, lines: int) -> float:
    """Return lines a second of a site on the fake engine, between a tenth and nine tenths."""
    model = {
        **ON_CPU,
        "min_instances": 1,
        "max_num_seqs": SLOTS,
        "engine_args": list(TIMING),
    }
    with running_site(None, {"m": model}, SHIPPED) as site:
        site.wait_ready()
        path = write(folder / "limit.jsonl", [BODY] * lines)
        batch_id = site.cli("batch", "submit", str(path))
        with site.client() as client:
            marks = {}
            for share in (0.1, 0.9):
                while True:
                    asked = time.monotonic()
                    batch = client.get(f"/v1/batches/{batch_id}").json()
                    done = batch["request_counts"]["completed"]
                    if done >= share * lines:
                        marks[share] = (done, asked)
                        break
                    time.sleep(0.05)
        (first, began), (last, ended) = marks[0.1], marks[0.9]
        return (last - first) / (ended - began)


def prompts() -> list[dict[str, object]]:
    """Return requests whose prompts differ, with a shared beginning."""
    return [
        {
            "model": "smollm2",
            "messages": [
                {"role": "system", "content": "Answer in one short sentence."},
                {"role": "user", "content": f"What is special about the number {n}?"},
            ],
            "max_tokens": VLLM_TOKENS,
            "temperature": 0,
            "ignore_eos": True,
        }
        for n in range(VLLM_LINES)
    ]


def vllm_site_rate(folder: Path) -> float:
    """Return lines a second of a site on vLLM, from acceptance to the last result."""
    model = {
        **ON_CPU,
        "engine": "vllm",
        "weights": str(SMOLLM2_WEIGHTS),
        "min_instances": 1,
        "max_num_seqs": VLLM_SEQS,
        "max_model_len": VLLM_CONTEXT,
        "kv_cache_mib": VLLM_CACHE_MIB,
        "engine_args": ["--enforce-eager"],
    }
    with running_site(None, {"smollm2": model}, SHIPPED) as site:
        site.wait_ready(timeout_s=300)
        path = write(folder / "vllm.jsonl", prompts())
        batch_id = site.cli("batch", "submit", str(path))
        site.wait_completed(batch_id, timeout_s=900)
        return VLLM_LINES / (at(site, batch_id, "settled") - at(site, batch_id, "accepted"))


def run_batch_rate(folder: Path) -> float:
    """Return lines a second of `vllm run-batch`, from its reading to its last written byte."""
    path = write(folder / "run_batch.jsonl", prompts())
    output = folder / "run_batch.out"
    command = [
        *(str(VLLM), "run-batch", "-i", str(path), "-o", str(output)),
        *("--model", str(SMOLLM2_WEIGHTS), "--served-model-name", "smollm2"),
        *("--dtype", "auto", "--max-model-len", str(VLLM_CONTEXT)),
        *("--max-num-seqs", str(VLLM_SEQS), "--enforce-eager"),
        *("--kv-cache-memory-bytes", str(VLLM_CACHE_MIB * 1024**2)),
    ]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    began = 0.0
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        tail = []
        for line in process.stdout:
            tail = [*tail[-20:], line]
            if "Reading batch from" in line:
                began = time.time()
        assert process.wait() == 0, "".join(tail)
    answers = [json.loads(line) for line in output.read_text().splitlines()]
    assert sum(answer["error"] is None for answer in answers) == VLLM_LINES
    return VLLM_LINES / (output.stat().st_mtime - began)


def main(only: str, rounds: int, lines: int) -> None:
    """Measure and print."""
    assert HPCSERVE.exists(), HPCSERVE
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if only in ("", "first"):
            figure(
                "batch.first_result_s", [first_result_s(folder) for _ in range(rounds)], "<=2", "s"
            )
        if only in ("", "limit"):
            pairs = [(asyncio.run(direct(lines)), site_rate(folder, lines)) for _ in range(rounds)]
            print("  lines/s:", *(f"{a:.0f} direct, {b:.0f} site;" for a, b in pairs))
            figure("batch.engine_limit", [b / a for a, b in pairs], ">=0.98")
        if only in ("", "vllm"):
            rates = [(run_batch_rate(folder), vllm_site_rate(folder))]
            print("  lines/s:", *(f"{a:.3g} run-batch, {b:.3g} site;" for a, b in rates))
            figure("batch.run_batch", [b / a for a, b in rates], ">=0.95")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("first", "limit", "vllm"), default="")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lines", type=int, default=10_000)
    options = parser.parse_args()
    main(options.only, options.rounds, options.lines)
