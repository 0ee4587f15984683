"""How long an interactive request waits for its first token while batch work fills all slots.

Real vLLM on CPU, two engines one after the other: with the plug-in that lets interactive requests
take slots, and without. Each round measures an idle engine, then the same engine with as many batch
requests as it has slots and as many more waiting. Prints the ratio of the two as `figure slots.*`;
without the plug-in the ratio is shown but has no bar.
Run: `python -m tests.bench.slots [--rounds N]`, after `slurm/setup engine model`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from hpcserve.engines.vllm.launch import VllmAdapter
from hpcserve.engines.vllm.preemption import BATCH_HEADERS
from tests.bench._figures import figure
from tests.builders import a_model
from tests.contract.engine.running import RunningEngine, running_engine
from tests.integration.vllm.engine_paths import SMOLLM2_WEIGHTS, VLLM

SLOTS = 4
#: questions of one reading
ASKED = 5
START_S = 240.0
#: longer than any round: no slot falls free by itself while the plug-in is measured
BATCH_TOKENS = 1500
#: without the plug-in the request waits for an end, so ends must come
SHORT_BATCH_TOKENS = 96
#: a question in a conversation, and one with a page of text before it
QUESTIONS = {
    "short": "Name three rivers.",
    "page": "Name three rivers of this text. "
    + "The river runs through the town to the sea. " * 40,
}
MODEL = a_model(
    "smollm2",
    weights=str(SMOLLM2_WEIGHTS),
    gpus_per_node=0,
    max_model_len=2048,
    max_num_seqs=SLOTS,
    kv_cache_mib=512,
    dtype="float32",
    engine_args=("--enforce-eager", "--no-enable-prefix-caching"),
)


async def first_token_s(engine: RunningEngine, question: str) -> float:
    """Ask and return the seconds until the first token."""
    messages = [{"role": "user", "content": question}]
    started = time.monotonic()
    events = engine.events("/v1/chat/completions", messages=messages, max_tokens=8)
    async for event in events:
        if event != "[DONE]" and json.loads(event)["choices"][0]["delta"].get("content"):
            break
    seconds = time.monotonic() - started
    await events.aclose()
    return seconds


async def median_s(engine: RunningEngine, question: str, asked: int) -> float:
    """Ask so often, one after the other, at no fixed phase of the engine's steps."""
    seen = []
    for number in range(asked):
        seen.append(await first_token_s(engine, question))
        await asyncio.sleep(0.1 + 0.017 * number)
    return statistics.median(seen)


@asynccontextmanager
async def batch_work(engine: RunningEngine, tokens: int) -> AsyncIterator[None]:
    """Keep every slot full of batch requests, with as many waiting behind them."""

    async def one(number: int) -> None:
        body = {
            "model": engine.model.name,
            "prompt": f"Story number {number}:",
            "max_tokens": tokens,
            "ignore_eos": True,
        }
        while True:
            await engine.client.post(
                "/v1/completions", json=body, headers=dict(BATCH_HEADERS), timeout=600
            )

    tasks = [asyncio.create_task(one(number)) for number in range(2 * SLOTS)]
    try:
        await engine.load_when(running=SLOTS)
        # past the prefill of the last one
        await asyncio.sleep(1)
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await engine.load_when(running=0)


async def measure(*, preempts: bool, rounds: int) -> None:
    """Start one engine, measure and print."""
    adapter = VllmAdapter(
        command=(str(VLLM),), allow_downloads=False, shutdown_timeout_s=5, preempts=preempts
    )
    tokens = BATCH_TOKENS if preempts else SHORT_BATCH_TOKENS
    with tempfile.TemporaryDirectory() as folder:
        async with running_engine(adapter, MODEL, Path(folder), within_s=START_S) as engine:
            for kind, question in QUESTIONS.items():
                await first_token_s(engine, question)
                idle, full = [], []
                for _ in range(rounds):
                    idle.append(await median_s(engine, question, ASKED))
                    async with batch_work(engine, tokens):
                        full.append(await median_s(engine, question, ASKED if preempts else 1))
                name = f"slots.{kind}" if preempts else f"slots.{kind}_without"
                ratios = [busy / alone for busy, alone in zip(full, idle, strict=True)]
                print(
                    f"  {name}: first token after {statistics.median(idle) * 1000:.0f} ms idle,"
                    f" {statistics.median(full) * 1000:.0f} ms with full slots",
                    flush=True,
                )
                if preempts:
                    figure(name, ratios, "<=1.5")
                else:
                    print(f"  {name}: ratio {statistics.median(ratios):.3g}", flush=True)


async def main(rounds: int) -> None:
    """Measure both engines."""
    for preempts in (True, False):
        await measure(preempts=preempts, rounds=rounds if preempts else min(rounds, 3))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    sys.exit(asyncio.run(main(options.rounds)))
