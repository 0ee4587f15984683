"""What every engine kind owes to the agent and the gateway, shown over HTTP.

A subclass gives the fixture `engine`, one engine for all tests; the last test ends it.
"""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from tests.contract.engine.running import RunningEngine, deltas

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
MESSAGES = [{"role": "user", "content": "Name three rivers."}]
#: what every engine under this suite is started with
SLOTS = 4
#: greedy, and no end before max_tokens: two runs can be compared
EXACT = {"temperature": 0, "ignore_eos": True}
#: routes that exist whatever `/openapi.json` says
KNOWN_ROUTES = (
    ("GET", "/health"),
    ("GET", "/metrics"),
    ("GET", "/version"),
    ("GET", "/v1/models"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/responses"),
    ("POST", "/tokenize"),
    ("POST", "/invocations"),
    ("GET", "/openapi.json"),
    ("GET", "/no/such/route"),
)


@pytest.mark.asyncio(loop_scope="module")
class EngineContract:
    """The suite."""

    async def test_no_route_answers_without_the_key(self, engine: RunningEngine) -> None:
        routes = {*KNOWN_ROUTES, *await _documented_routes(engine)}
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": ""}):
            for method, path in sorted(routes):
                async with httpx.AsyncClient(
                    base_url=engine.client.base_url, headers=headers, trust_env=False
                ) as stranger:
                    response = await stranger.request(method, path)
                assert (path, response.status_code) == (path, 401)
                assert response.json()["error"]["code"] == "invalid_api_key"

    async def test_health_is_200_with_the_key(self, engine: RunningEngine) -> None:
        assert (await engine.client.get("/health")).status_code == 200

    async def test_models_name_the_model_and_its_length(self, engine: RunningEngine) -> None:
        models = (await engine.client.get("/v1/models")).json()["data"]
        assert [model["id"] for model in models] == [engine.model.name]
        assert models[0]["max_model_len"] == engine.model.max_model_len

    async def test_chat_answers_with_usage(self, engine: RunningEngine) -> None:
        answer = await engine.complete(CHAT, messages=MESSAGES, max_tokens=5, **EXACT)
        assert answer["object"] == "chat.completion"
        assert answer["choices"][0]["finish_reason"] == "length"
        assert answer["choices"][0]["message"]["role"] == "assistant"
        usage = answer["usage"]
        assert usage["completion_tokens"] == 5
        assert usage["total_tokens"] == usage["prompt_tokens"] + 5

    async def test_tokenize_agrees_with_usage(self, engine: RunningEngine) -> None:
        tokens = await engine.complete("/tokenize", messages=MESSAGES)
        answer = await engine.complete(CHAT, messages=MESSAGES, max_tokens=1, **EXACT)
        assert tokens["count"] == len(tokens["tokens"]) == answer["usage"]["prompt_tokens"]

    async def test_a_stream_says_what_the_whole_answer_says(self, engine: RunningEngine) -> None:
        request = {"messages": MESSAGES, "max_tokens": 12, **EXACT}
        whole = await engine.complete(CHAT, **request)
        events = await engine.stream(CHAT, stream_options={"include_usage": True}, **request)
        choices = deltas(events)
        assert choices[0]["delta"]["role"] == "assistant"
        text = "".join(choice["delta"].get("content") or "" for choice in choices)
        assert text == whole["choices"][0]["message"]["content"]
        assert [one["finish_reason"] for one in choices if one["finish_reason"]] == ["length"]
        assert json.loads(events[-2])["usage"]["completion_tokens"] == 12

    async def test_a_prompt_may_be_text_or_token_ids(self, engine: RunningEngine) -> None:
        prompt = "Once upon a time, there was"
        ids = (await engine.complete("/tokenize", prompt=prompt))["tokens"]
        by_text = await engine.complete(COMPLETIONS, prompt=prompt, max_tokens=8, **EXACT)
        by_ids = await engine.complete(COMPLETIONS, prompt=ids, max_tokens=8, **EXACT)
        assert by_text["choices"][0]["text"] == by_ids["choices"][0]["text"]

    @pytest.mark.parametrize("cut", [1, 7, 31])
    async def test_a_cut_chat_goes_on_from_its_token_ids(
        self, engine: RunningEngine, cut: int
    ) -> None:
        request = {"messages": MESSAGES, "max_tokens": 32, "return_token_ids": True, **EXACT}
        events = await engine.stream(CHAT, **request)
        prompt = next(
            body["prompt_token_ids"]
            for event in events[:-1]
            if (body := json.loads(event)).get("prompt_token_ids")
        )
        emitted = [token for one in deltas(events) for token in one.get("token_ids") or []]
        assert len(emitted) == 32
        rest = await engine.complete(
            COMPLETIONS,
            prompt=[*prompt, *emitted[:cut]],
            max_tokens=32 - cut,
            return_token_ids=True,
            add_special_tokens=False,
            **EXACT,
        )
        assert rest["choices"][0]["token_ids"] == emitted[cut:]

    async def test_a_streamed_completion_gives_its_token_ids(self, engine: RunningEngine) -> None:
        request = {"prompt": "One, two,", "max_tokens": 9, "return_token_ids": True, **EXACT}
        whole = await engine.complete(COMPLETIONS, **request)
        events = await engine.stream(COMPLETIONS, **request)
        emitted = [token for one in deltas(events) for token in one.get("token_ids") or []]
        assert emitted == whole["choices"][0]["token_ids"]

    async def test_priority_is_accepted(self, engine: RunningEngine) -> None:
        await engine.complete(COMPLETIONS, prompt="soon", max_tokens=1, priority=0)

    @pytest.mark.parametrize(
        ("path", "body", "status"),
        [
            (CHAT, {"model": "no-such-model", "messages": MESSAGES}, 404),
            (CHAT, {"messages": MESSAGES, "max_tokens": 10_000_000}, 400),
            (CHAT, {"messages": MESSAGES, "max_tokens": -1}, 400),
            (CHAT, {"max_tokens": 1}, 400),
            (COMPLETIONS, {"prompt": "x " * 20_000, "max_tokens": 1}, 400),
        ],
    )
    async def test_a_bad_request_gets_openais_envelope(
        self, engine: RunningEngine, path: str, body: dict[str, object], status: int
    ) -> None:
        response = await engine.post(path, **body)
        assert response.status_code == status, response.text
        assert response.json()["error"]["message"]

    async def test_a_body_that_is_not_json_gets_400(self, engine: RunningEngine) -> None:
        response = await engine.client.post(
            CHAT, content=b'{"model": ', headers={"content-type": "application/json"}
        )
        assert response.status_code == 400
        assert response.json()["error"]["message"]

    async def test_metrics_are_complete_and_grow(self, engine: RunningEngine) -> None:
        before = await engine.load()
        answer = await engine.complete(COMPLETIONS, prompt="count me", max_tokens=20, **EXACT)
        after = await engine.load()
        assert after.generation_tokens_total - before.generation_tokens_total == 20
        assert (
            after.prompt_tokens_total - before.prompt_tokens_total
            == answer["usage"]["prompt_tokens"]
        )
        assert after.requests_total == before.requests_total + 1
        assert after.ttft_count == before.ttft_count + 1
        assert after.ttft_sum_s > before.ttft_sum_s
        assert after.itl_count == before.itl_count + 19
        assert after.itl_sum_s > before.itl_sum_s
        assert (after.running, after.waiting) == (0, 0)

    async def test_requests_beyond_the_ceiling_wait(self, engine: RunningEngine) -> None:
        ceiling = engine.model.max_num_seqs
        length = engine.model.max_model_len - 100
        long = {"prompt": "long", "max_tokens": length, **EXACT}
        tasks = [asyncio.create_task(engine.post(COMPLETIONS, **long)) for _ in range(ceiling + 2)]
        load = await engine.load_when(running=ceiling)
        assert load.waiting == 2
        assert 0 < load.kv_cache_used_ratio <= 1
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        load = await engine.load_when(running=0)
        assert load.waiting == 0

    async def test_a_client_that_leaves_frees_its_slot_at_once(self, engine: RunningEngine) -> None:
        length = engine.model.max_model_len - 100
        events = engine.events(COMPLETIONS, prompt="go", max_tokens=length, **EXACT)
        await anext(events)
        await engine.load_when(running=1)
        await events.aclose()
        await engine.load_when(running=0, within_s=5)

    async def test_chat_takes_a_slot_that_batch_holds(self, engine: RunningEngine) -> None:
        lines = [{"prompt": f"line {n}", "max_tokens": 200, **EXACT} for n in range(SLOTS + 1)]
        alone = [await engine.complete(COMPLETIONS, **line) for line in lines]
        before = await engine.load()
        tasks = [asyncio.create_task(engine.post_batch(COMPLETIONS, **line)) for line in lines]
        await engine.load_when(running=SLOTS)
        answer = await engine.complete(CHAT, messages=MESSAGES, max_tokens=2, **EXACT)
        assert answer["usage"]["completion_tokens"] == 2
        assert not any(task.done() for task in tasks)
        # a body's own priority moves a line of a batch nowhere
        eager = asyncio.create_task(
            engine.post_batch(COMPLETIONS, prompt="me", priority=-9, max_tokens=1)
        )
        done = await asyncio.gather(*tasks)
        assert (await eager).status_code == 200
        after = await engine.load()
        assert after.preemptions_total == before.preemptions_total + 1
        texts = [response.json()["choices"][0]["text"] for response in done]
        assert texts == [one["choices"][0]["text"] for one in alone]

    async def test_chat_does_not_take_a_slot_that_chat_holds(self, engine: RunningEngine) -> None:
        request = {"prompt": "long", "max_tokens": 200, **EXACT}
        before = await engine.load()
        tasks = [asyncio.create_task(engine.post(COMPLETIONS, **request)) for _ in range(SLOTS)]
        await engine.load_when(running=SLOTS)
        await engine.complete(COMPLETIONS, prompt="urgent", max_tokens=1, priority=-5)
        assert any(task.done() for task in tasks)
        await asyncio.gather(*tasks)
        assert (await engine.load()).preemptions_total == before.preemptions_total

    async def test_batch_holds_no_more_slots_than_it_may(self, engine: RunningEngine) -> None:
        line = {"prompt": "line", "max_tokens": engine.model.max_model_len - 100, **EXACT}
        tasks = [asyncio.create_task(engine.post_batch(COMPLETIONS, **line)) for _ in range(SLOTS)]
        await engine.load_when(running=SLOTS)
        for slots in (1, 3, 0):
            engine.limit_batch(slots)
            load = await engine.load_when(running=slots)
            assert load.waiting == SLOTS - slots
        answer = await engine.complete(CHAT, messages=MESSAGES, max_tokens=2, **EXACT)
        assert answer["usage"]["completion_tokens"] == 2
        engine.limit_batch(SLOTS)
        await engine.load_when(running=SLOTS)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await engine.load_when(running=0)

    async def test_sigterm_finishes_streams_and_refuses_new_requests(
        self, engine: RunningEngine
    ) -> None:
        request = {"prompt": "to the end", "max_tokens": 300, **EXACT}
        running = asyncio.create_task(engine.stream(COMPLETIONS, **request))
        await engine.load_when(running=1)
        engine.process.terminate()
        await asyncio.sleep(0.1)
        assert (await engine.client.get("/health")).status_code == 200
        late = await engine.post(COMPLETIONS, prompt="late", max_tokens=1)
        assert late.status_code == 500
        assert "after shutdown" in late.json()["error"]["message"]
        choices = deltas(await running)
        assert choices[-1]["finish_reason"] == "length"
        assert await asyncio.wait_for(engine.process.wait(), 20) == 0


async def _documented_routes(engine: RunningEngine) -> set[tuple[str, str]]:
    response = await engine.client.get("/openapi.json")
    if response.status_code != 200:
        return set()
    paths = response.json()["paths"]
    return {
        (method.upper(), path.replace("{", "").replace("}", ""))
        for path, methods in paths.items()
        for method in methods
    }
