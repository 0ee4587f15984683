"""The fake engine keeps the engine contract, and its own promises of timing and life cycle."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from hpcserve.domain.model import EngineKind, Model
from hpcserve.engines.fake.launch import FakeAdapter
from tests.builders import a_model
from tests.contract.engine.running import RunningEngine, deltas, running_engine
from tests.contract.engine.suite import CHAT, COMPLETIONS, MESSAGES, EngineContract

ADAPTER = FakeAdapter(python=sys.executable, shutdown_timeout_s=20)


def a_fake_model(*flags: str) -> Model:
    return a_model(
        "fake", engine=EngineKind.FAKE, max_model_len=2048, max_num_seqs=4, engine_args=flags
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningEngine]:
    model = a_fake_model("--itl-ms", "4", "--ttft-ms", "10", "--jitter-ratio", "0.2")
    async with running_engine(ADAPTER, model, tmp_path_factory.mktemp("fake")) as engine:
        yield engine


class TestFakeEngine(EngineContract):
    """The suite on the fake engine."""


async def test_timing_follows_the_flags(tmp_path: Path) -> None:
    model = a_fake_model("--ttft-ms", "100", "--itl-ms", "20", "--prefill-tokens-per-s", "10000")
    async with running_engine(ADAPTER, model, tmp_path) as engine:
        started = time.monotonic()
        events = engine.events(COMPLETIONS, prompt="word" * 1000, max_tokens=11)
        await anext(events)
        first_s = time.monotonic() - started
        rest = [event async for event in events]
        all_s = time.monotonic() - started
        assert len(rest) == 11
        assert first_s == pytest.approx(0.2, abs=0.08)
        assert all_s - first_s == pytest.approx(0.2, abs=0.08)


async def test_a_loading_engine_answers_503(tmp_path: Path) -> None:
    started = time.monotonic()
    async with running_engine(ADAPTER, a_fake_model("--load-s", "1"), tmp_path) as engine:
        assert time.monotonic() - started > 1
        assert (await engine.client.get("/health")).status_code == 200


async def test_without_a_shutdown_timeout_streams_are_cut_with_an_error(tmp_path: Path) -> None:
    hasty = FakeAdapter(python=sys.executable, shutdown_timeout_s=0)
    async with running_engine(hasty, a_fake_model("--itl-ms", "20"), tmp_path) as engine:
        events = engine.events(COMPLETIONS, prompt="x", max_tokens=500)
        await anext(events)
        engine.process.terminate()
        rest = [event async for event in events]
        assert json.loads(rest[-2])["error"]["code"] == 500
        assert rest[-1] == "[DONE]"
        assert await asyncio.wait_for(engine.process.wait(), 5) == 0


async def test_two_engines_continue_each_others_streams(tmp_path: Path) -> None:
    async with (
        running_engine(ADAPTER, a_fake_model(), tmp_path) as one,
        running_engine(ADAPTER, a_fake_model(), tmp_path) as other,
    ):
        request = {"messages": MESSAGES, "max_tokens": 40, "return_token_ids": True}
        events = await one.stream(CHAT, **request)
        emitted = [token for part in deltas(events) for token in part.get("token_ids") or []]
        prompt = json.loads(events[0])["prompt_token_ids"]
        rest = await other.complete(
            COMPLETIONS, prompt=prompt + emitted[:15], max_tokens=25, return_token_ids=True
        )
        assert rest["choices"][0]["token_ids"] == emitted[15:]
