"""The `openai` client, unpatched, runs files and batches end to end."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta

import httpx
import openai
import pytest

from hpcserve.ports.control import Grant, GrantedLine, Outcome
from tests.contract.openai_batches.site import ScriptedAgent, Site, echo, jsonl, reject

CHAT = "/v1/chat/completions"


@asynccontextmanager
async def at_work(agent: ScriptedAgent) -> AsyncIterator[None]:
    task = asyncio.create_task(agent.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def submit(site: Site, data: bytes, *, owner: str = "ada", **fields: object):
    client = site.client(owner)
    file = await client.files.create(file=("in.jsonl", data), purpose="batch")
    batch = await client.batches.create(
        **{
            "input_file_id": file.id,
            "endpoint": CHAT,
            "completion_window": "24h",
            **fields,
        }
    )
    return client, file, batch


def custom_ids(content: bytes) -> list[str]:
    return [json.loads(line)["custom_id"] for line in content.splitlines()]


async def test_a_batch_from_upload_to_results(site: Site, agent: ScriptedAgent) -> None:
    client, file, batch = await submit(site, jsonl(23), metadata={"project": "x"})
    assert (file.object, file.purpose, file.status) == ("file", "batch", "processed")
    assert file.filename == "in.jsonl"
    assert file.bytes == len(jsonl(23))
    assert batch.status == "validating"
    assert batch.request_counts is not None
    assert batch.request_counts.total == 0

    async with at_work(agent):
        await site.settle_everything(batch.id)

    done = await client.batches.retrieve(batch.id)
    assert done.status == "completed"
    assert done.model == "tiny"
    assert done.metadata == {"project": "x"}
    assert done.request_counts is not None
    counts = done.request_counts
    assert (counts.total, counts.completed, counts.failed) == (23, 23, 0)
    assert done.usage is not None
    usage = done.usage
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (69, 46, 115)
    assert usage.input_tokens_details.cached_tokens == 23
    assert done.error_file_id is None
    assert done.expires_at == done.created_at + 24 * 3600
    assert done.output_file_id is not None
    output = await client.files.content(done.output_file_id)
    assert custom_ids(output.content) == [f"id-{i}" for i in range(23)]
    sent = json.loads(output.content.splitlines()[7])["response"]["body"]["echo"]
    assert sent["messages"][0]["content"] == "say 7"
    listed = await client.files.retrieve(done.output_file_id)
    assert (listed.purpose, listed.bytes) == ("batch_output", len(output.content))
    assert [ended.id for ended in site.ended] == [batch.id]


async def test_the_manifest_tells_where_the_results_come_from(
    site: Site, agent: ScriptedAgent
) -> None:
    data = jsonl(5)
    _, _, batch = await submit(site, data)
    async with at_work(agent):
        await site.settle_everything(batch.id)
    text = (site.root / "outputs" / f"{batch.id}.manifest.json").read_text()
    manifest = json.loads(text)
    assert manifest["model"] == {"name": "tiny", "weights": "/weights/tiny"}
    assert manifest["input"]["sha256"] == hashlib.sha256(data).hexdigest()
    output = (site.root / "outputs" / f"{batch.id}.output.jsonl").read_bytes()
    assert manifest["output"]["sha256"] == hashlib.sha256(output).hexdigest()
    assert [i["slurm_job_id"] for i in manifest["instances"]] == ["inst-a-job"]


async def test_rejected_lines_go_to_the_error_file(site: Site, agent: ScriptedAgent) -> None:
    def answer(grant: Grant, line: GrantedLine) -> Outcome:
        return (reject if line.line_no % 3 == 0 else echo)(grant, line)

    agent.answer = answer
    client, _, batch = await submit(site, jsonl(10))
    async with at_work(agent):
        await site.settle_everything(batch.id)
    done = await client.batches.retrieve(batch.id)
    assert done.status == "completed"
    assert done.output_file_id
    assert done.error_file_id
    output = (await client.files.content(done.output_file_id)).content
    errors = (await client.files.content(done.error_file_id)).content
    assert custom_ids(errors) == ["id-2", "id-5", "id-8"]
    assert sorted(custom_ids(output) + custom_ids(errors)) == sorted(f"id-{i}" for i in range(10))
    first = json.loads(errors.splitlines()[0])
    assert first["error"] is None
    assert first["response"]["status_code"] == 400
    assert first["response"]["body"]["error"]["message"] == "too long"


async def test_errors_of_a_file_come_with_line_numbers_and_nothing_is_enqueued(
    site: Site, agent: ScriptedAgent
) -> None:
    lines = jsonl(8).splitlines(keepends=True)
    lines[3] = b"{not json}\n"
    lines[6] = lines[1]
    client, _, batch = await submit(site, b"".join(lines))
    await site.settle_everything(batch.id)
    failed = await client.batches.retrieve(batch.id)
    assert failed.status == "failed"
    assert failed.failed_at
    assert failed.errors
    assert failed.errors.data
    assert [(e.code, e.line) for e in failed.errors.data] == [
        ("invalid_json_line", 4),
        ("duplicate_custom_id", 7),
    ]
    assert failed.request_counts
    assert failed.request_counts.total == 0
    assert await agent.once() == 0


async def test_an_unknown_model_fails_the_batch_and_names_the_known(site: Site) -> None:
    client, _, batch = await submit(site, jsonl(2, model="huge"))
    await site.settle_everything(batch.id)
    failed = await client.batches.retrieve(batch.id)
    assert failed.errors
    assert failed.errors.data
    assert failed.errors.data[0].code == "model_not_found"
    assert "tiny" in (failed.errors.data[0].message or "")


async def test_cancel_keeps_what_is_finished(site: Site, agent: ScriptedAgent) -> None:
    client, _, batch = await submit(site, jsonl(12))
    await site.reach(batch.id, "in_progress")
    assert await agent.once() == 4
    cancelling = await client.batches.cancel(batch.id)
    assert cancelling.status in {"cancelling", "cancelled"}
    assert cancelling.cancelling_at
    await site.settle_everything(batch.id)
    done = await client.batches.retrieve(batch.id)
    assert done.status == "cancelled"
    assert done.output_file_id
    assert done.error_file_id
    output = (await client.files.content(done.output_file_id)).content
    errors = (await client.files.content(done.error_file_id)).content
    assert custom_ids(output) == [f"id-{i}" for i in range(4)]
    assert custom_ids(errors) == [f"id-{i}" for i in range(4, 12)]
    assert done.request_counts
    counts = done.request_counts
    assert (counts.total, counts.completed, counts.failed) == (12, 4, 8)
    with pytest.raises(openai.BadRequestError, match="status 'cancelled'"):
        await client.batches.cancel(batch.id)


async def test_expiry_keeps_what_is_finished(site: Site, agent: ScriptedAgent) -> None:
    client, _, batch = await submit(site, jsonl(9), completion_window="1h")
    await site.reach(batch.id, "in_progress")
    await agent.once()
    site.clock.shift = timedelta(hours=1, seconds=1)
    await site.settle_everything(batch.id)
    done = await client.batches.retrieve(batch.id)
    assert done.status == "expired"
    assert done.expired_at
    assert done.output_file_id
    assert done.error_file_id
    output = (await client.files.content(done.output_file_id)).content
    errors = (await client.files.content(done.error_file_id)).content
    assert custom_ids(output) == [f"id-{i}" for i in range(4)]
    rest = [json.loads(line) for line in errors.splitlines()]
    assert [line["custom_id"] for line in rest] == [f"id-{i}" for i in range(4, 9)]
    assert {line["error"]["code"] for line in rest} == {"batch_expired"}
    assert all(line["response"] is None for line in rest)


async def test_lists_page_through_batches_and_files(site: Site) -> None:
    client = site.client()
    file = await client.files.create(file=("in.jsonl", jsonl(1)), purpose="batch")
    made = [
        (
            await client.batches.create(
                input_file_id=file.id, endpoint=CHAT, completion_window="24h"
            )
        ).id
        for _ in range(5)
    ]
    assert [batch.id async for batch in client.batches.list(limit=2)] == made[::-1]
    others = [await client.files.create(file=("x", b"{}"), purpose="batch") for _ in range(2)]
    ids = [file.id, *(other.id for other in others)]
    listed = [f.id async for f in client.files.list(limit=2, order="asc", purpose="batch")]
    assert listed[:3] == ids
    newest = await client.files.list(limit=1)
    assert newest.has_more


async def test_nobody_sees_what_is_somebody_elses(site: Site) -> None:
    _, file, batch = await submit(site, jsonl(1))
    eve = site.client("eve")
    with pytest.raises(openai.NotFoundError):
        await eve.files.retrieve(file.id)
    with pytest.raises(openai.NotFoundError):
        await eve.files.content(file.id)
    with pytest.raises(openai.NotFoundError):
        await eve.files.delete(file.id)
    with pytest.raises(openai.NotFoundError):
        await eve.batches.retrieve(batch.id)
    with pytest.raises(openai.NotFoundError):
        await eve.batches.cancel(batch.id)
    with pytest.raises(openai.NotFoundError):
        await eve.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    assert [b async for b in eve.batches.list()] == []
    assert [f async for f in eve.files.list()] == []
    root = site.client("root")
    assert (await root.batches.retrieve(batch.id)).id == batch.id


async def test_wrong_parameters_are_refused_at_once(site: Site) -> None:
    client = site.client()
    file = await client.files.create(file=("in.jsonl", jsonl(1)), purpose="batch")
    good = {"input_file_id": file.id, "endpoint": CHAT, "completion_window": "24h"}
    wrong = {
        "completion_window": {"completion_window": "90m"},
        "endpoint": {"endpoint": "/v1/moderations"},
        "metadata": {"metadata": {"k" * 65: "v"}},
    }
    for param, change in wrong.items():
        with pytest.raises(openai.BadRequestError) as caught:
            await client.batches.create(**{**good, **change})
        assert caught.value.param == param
    for window in ("30m", "0h", "31d", "1 d", "", "999999999999h"):
        if window:
            with pytest.raises(openai.BadRequestError):
                await client.batches.create(**{**good, "completion_window": window})
    assert (await client.batches.create(**{**good, "completion_window": "30d"})).id
    with pytest.raises(openai.BadRequestError):
        await client.files.create(file=("x", b"{}"), purpose="fine-tune")
    async with httpx.AsyncClient(base_url=site.url, headers={"authorization": "Bearer a"}) as raw:
        for body in (b"", b"nonsense", b"[]", b'{"endpoint": 3}'):
            answer = await raw.post("/v1/batches", content=body)
            assert answer.status_code == 400, body
            assert answer.json()["error"]["message"]
        answer = await raw.post("/v1/files", content=b"no form")
        assert answer.status_code == 400
        form = {"content-type": "multipart/form-data; boundary=b"}
        cut = b'--b\r\ncontent-disposition: form-data; name="file"; filename="x"\r\n\r\n{}'
        answer = await raw.post("/v1/files", content=cut, headers=form)
        assert answer.status_code == 400
    assert not list((site.root / "uploads").glob("*.tmp"))


async def test_a_retry_after_a_lost_answer_makes_no_second_batch(site: Site) -> None:
    client = site.client()
    file = await client.files.create(file=("in.jsonl", jsonl(1)), purpose="batch")
    site.lose_answers = ["/v1/batches"]
    create = {"input_file_id": file.id, "endpoint": CHAT, "completion_window": "24h"}
    first = await client.batches.create(**create)
    assert [b.id async for b in client.batches.list()] == [first.id]
    # the same again on purpose is another batch
    second = await client.batches.create(**create)
    assert second.id != first.id
    key = {"Idempotency-Key": "k1"}
    third = await client.batches.create(**create, extra_headers=key)
    assert (await client.batches.create(**create, extra_headers=key)).id == third.id
    with pytest.raises(openai.BadRequestError, match="other parameters"):
        await client.batches.create(**{**create, "completion_window": "2h"}, extra_headers=key)


async def test_content_honours_range(site: Site) -> None:
    data = jsonl(50)
    client = site.client()
    file = await client.files.create(file=("in.jsonl", data), purpose="batch")
    part = await client.files.content(file.id, extra_headers={"Range": "bytes=100-299"})
    assert part.response.status_code == 206
    assert part.content == data[100:300]


async def test_files_are_deleted_when_no_batch_needs_them(site: Site, agent: ScriptedAgent) -> None:
    client, file, batch = await submit(site, jsonl(3))
    with pytest.raises(openai.BadRequestError, match="in use"):
        await client.files.delete(file.id)
    async with at_work(agent):
        await site.settle_everything(batch.id)
    assert (await client.files.delete(file.id)).deleted
    with pytest.raises(openai.NotFoundError):
        await client.files.retrieve(file.id)
    assert not list((site.root / "uploads").iterdir())


async def test_files_expire(site: Site) -> None:
    client = site.client()
    soon = {"anchor": "created_at", "seconds": 3600}
    file = await client.files.create(
        file=("in.jsonl", jsonl(1)), purpose="batch", expires_after=soon
    )
    assert file.expires_at == file.created_at + 3600
    site.clock.shift = timedelta(hours=1, seconds=5)
    async with asyncio.timeout(10):
        while list((site.root / "uploads").iterdir()):  # noqa: ASYNC110  # the file system
            await asyncio.sleep(0.02)
    with pytest.raises(openai.NotFoundError):
        await client.files.retrieve(file.id)
    with pytest.raises(openai.BadRequestError):
        await client.files.create(
            file=("x", b"{}"), purpose="batch", expires_after={**soon, "seconds": 10}
        )


async def test_other_endpoints_run_too(site: Site, agent: ScriptedAgent) -> None:
    for endpoint in ("/v1/completions", "/v1/embeddings", "/v1/responses"):
        client, _, batch = await submit(site, jsonl(2, url=endpoint), endpoint=endpoint)
        async with at_work(agent):
            await site.settle_everything(batch.id)
        assert (await client.batches.retrieve(batch.id)).status == "completed"
