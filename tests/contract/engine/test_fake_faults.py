"""The fake engine shows each fault on demand."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator

import httpx
import openai
import pytest
import pytest_asyncio

from hpcserve.domain.model import EngineKind
from hpcserve.engines.fake.launch import FakeAdapter
from tests.builders import a_model
from tests.contract.engine.running import KEY, RunningEngine, running_engine
from tests.contract.engine.suite import CHAT, COMPLETIONS, MESSAGES

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningEngine]:
    adapter = FakeAdapter(python=sys.executable, shutdown_timeout_s=0)
    model = a_model("fake", engine=EngineKind.FAKE, max_model_len=2048)
    async with running_engine(adapter, model, tmp_path_factory.mktemp("fake")) as engine:
        yield engine


@pytest_asyncio.fixture(loop_scope="module")
async def engine(shared: RunningEngine) -> AsyncIterator[RunningEngine]:
    yield shared
    await set_faults(shared)


async def test_an_error_comes_inside_the_stream_before_done(engine: RunningEngine) -> None:
    await set_faults(engine, error_after_tokens=3)
    events = await engine.stream(COMPLETIONS, prompt="x", max_tokens=9)
    assert len(events) == 5
    assert json.loads(events[3])["error"]["code"] == 500
    assert events[4] == "[DONE]"


async def test_an_answer_that_is_not_streamed_fails_with_500(engine: RunningEngine) -> None:
    await set_faults(engine, error_after_tokens=3)
    assert (await engine.post(COMPLETIONS, prompt="x", max_tokens=9)).status_code == 500


async def test_done_is_left_out(engine: RunningEngine) -> None:
    await set_faults(engine, omit_done=True)
    events = await engine.stream(COMPLETIONS, prompt="x", max_tokens=2)
    assert json.loads(events[-1])["choices"][0]["finish_reason"] == "length"


async def test_an_event_is_not_json(engine: RunningEngine) -> None:
    await set_faults(engine, malformed_after_tokens=1)
    events = await engine.stream(COMPLETIONS, prompt="x", max_tokens=2)
    with pytest.raises(json.JSONDecodeError):
        json.loads(events[1])


async def test_the_connection_is_cut(engine: RunningEngine) -> None:
    await set_faults(engine, disconnect_after_tokens=2)
    with pytest.raises(httpx.TransportError):
        await engine.stream(COMPLETIONS, prompt="x", max_tokens=4)
    assert (await engine.load()).running == 0


async def test_a_stalled_stream_keeps_its_slot(engine: RunningEngine) -> None:
    await set_faults(engine, stall_after_tokens=2)
    events = engine.events(COMPLETIONS, prompt="x", max_tokens=4)
    assert [await anext(events), await anext(events)]
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(events), 0.2)
    await engine.load_when(running=0)


async def test_a_share_of_the_requests_fails(engine: RunningEngine) -> None:
    await set_faults(engine, error_ratio=0.5)
    statuses = [
        (await engine.post(COMPLETIONS, prompt="x", max_tokens=1)).status_code for _ in range(60)
    ]
    assert 15 <= statuses.count(500) <= 45


async def test_health_can_fail_alone(engine: RunningEngine) -> None:
    await set_faults(engine, unhealthy=True)
    assert (await engine.client.get("/health")).status_code == 503
    assert (await engine.post(COMPLETIONS, prompt="x", max_tokens=1)).status_code == 200


async def test_a_marked_prompt_is_rejected(engine: RunningEngine) -> None:
    await set_faults(engine, reject_marker="forbidden")
    bad = [{"role": "user", "content": "a forbidden word"}]
    assert (await engine.post(CHAT, messages=bad)).status_code == 400
    assert (await engine.post(CHAT, messages=MESSAGES)).status_code == 200


async def test_an_unknown_fault_is_named(engine: RunningEngine) -> None:
    response = await engine.client.post("/fake/faults", json={"explode": True})
    assert response.status_code == 400
    assert "'explode'" in response.json()["error"]["message"]


async def test_the_openai_client_reads_every_dialect(engine: RunningEngine) -> None:
    client = openai.AsyncOpenAI(
        base_url=f"{engine.client.base_url}/v1",
        api_key=KEY,
    )
    async with client:
        chat = await client.chat.completions.create(
            model="fake", messages=[{"role": "user", "content": "hi"}]
        )
        assert chat.choices[0].finish_reason == "stop"
        reply = await client.responses.create(model="fake", input="hi", max_output_tokens=4)
        assert reply.output_text == (chat.choices[0].message.content or "")[:16]
        stream = await client.responses.create(
            model="fake", input="hi", max_output_tokens=4, stream=True
        )
        events = [event async for event in stream]
        assert "".join(e.delta for e in events if e.type.endswith("delta")) == reply.output_text
        assert events[-1].type == "response.completed"
        vectors = await client.embeddings.create(model="fake", input=["a", "b", "a"])
        first, second, third = (item.embedding for item in vectors.data)
        assert first == third != second


async def test_poison_ends_the_process(engine: RunningEngine) -> None:
    await set_faults(engine, crash_marker="poison")
    with pytest.raises(httpx.TransportError):
        await engine.post(COMPLETIONS, prompt="some poison here", max_tokens=1)
    assert await asyncio.wait_for(engine.process.wait(), 5) == 1


async def set_faults(engine: RunningEngine, **faults: object) -> None:
    if engine.process.exit_code is None:
        response = await engine.client.post("/fake/faults", json=faults)
        assert response.status_code == 200, response.text
