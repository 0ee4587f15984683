"""Chat before batch inside real vLLM, where it is hard: short of KV cache, a limit that moves.

A tiny model in float32, so that each batch request's text can be held against an undisturbed run.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from random import Random

import pytest
import pytest_asyncio

from tests.builders import a_model
from tests.contract.engine.running import RunningEngine, running_engine
from tests.contract.engine.suite import CHAT, COMPLETIONS, EXACT, MESSAGES
from tests.integration.vllm.engine_paths import TINY_WEIGHTS
from tests.integration.vllm.test_vllm import ADAPTER, START_S

SLOTS = 8
#: 16 blocks of 128 tokens: two long requests fill it
TINY = a_model(
    "tiny",
    weights=str(TINY_WEIGHTS),
    gpus_per_node=0,
    max_model_len=1024,
    max_num_seqs=SLOTS,
    kv_cache_mib=1,
    dtype="float32",
    engine_args=("--enforce-eager",),
)
#: some 600 tokens: five blocks
PAGE = "The river runs through the town to the sea. " * 30

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningEngine]:
    folder = tmp_path_factory.mktemp("tiny")
    async with running_engine(ADAPTER, TINY, folder, within_s=START_S) as engine:
        yield engine


async def test_chat_finds_kv_blocks_that_batch_holds(engine: RunningEngine) -> None:
    page = (await engine.complete("/tokenize", prompt=PAGE))["tokens"][:550]
    before = await engine.load()
    line = {"max_tokens": 450, **EXACT}
    tasks = [
        asyncio.create_task(engine.post_batch(COMPLETIONS, prompt=[n, *page], **line))
        for n in (5, 6, 7)
    ]
    async with asyncio.timeout(20):
        while (await engine.load()).kv_cache_used_ratio < 0.7:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.01)
    await engine.complete(COMPLETIONS, prompt=[9, *page], max_tokens=1, **EXACT)
    assert not any(task.done() for task in tasks)
    assert (await engine.load()).preemptions_total > before.preemptions_total
    for response in await asyncio.gather(*tasks):
        assert response.json()["usage"]["completion_tokens"] == 450


async def test_batch_comes_out_whole_from_a_storm_of_chat(engine: RunningEngine) -> None:
    random = Random(7)
    lines = [
        {"prompt": f"line {n}:" + " word" * random.randrange(60), "max_tokens": 400, **EXACT}
        for n in range(2 * SLOTS)
    ]
    alone = [await engine.complete(COMPLETIONS, **line) for line in lines]
    before = await engine.load()
    tasks = [asyncio.create_task(engine.post_batch(COMPLETIONS, **line)) for line in lines]

    async def chat(number: int) -> None:
        """Ask; every third one leaves in the middle."""
        events = engine.events(CHAT, messages=MESSAGES, max_tokens=40, ignore_eos=True)
        async for _ in events:
            if number % 3 == 0:
                break
        await events.aclose()

    chats = []
    for number in range(80):
        chats.append(asyncio.create_task(chat(number)))
        if number % 4 == 0:
            engine.limit_batch(random.randrange(SLOTS + 1))
        await asyncio.sleep(random.random() * 0.06)
    engine.limit_batch(SLOTS)
    await asyncio.gather(*chats)
    done = await asyncio.gather(*tasks)
    assert (await engine.load()).preemptions_total >= before.preemptions_total + 10
    texts = [response.json()["choices"][0]["text"] for response in done]
    assert texts == [one["choices"][0]["text"] for one in alone]
    assert (await engine.load_when(running=0)).waiting == 0
