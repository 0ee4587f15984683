"""Inputs that change, lines that crash engines, disks that fill up: clear errors, nothing lost."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import httpx
import pytest

from hpcserve.batching.batches import NewBatch
from hpcserve.batching.segments import _Open
from hpcserve.domain.batch import Batch
from hpcserve.domain.instance import InstanceEvent
from hpcserve.domain.job import EndReason
from hpcserve.errors import BackendError, FencedError
from hpcserve.ports.control import Grant
from tests.contract.openai_batches.site import ScriptedAgent, Site, echo, jsonl


async def submit_path(site: Site, path: Path) -> Batch:
    file = await site.served.files.register("ada", str(path), expires_after_s=None)
    asked = NewBatch(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={},
        idempotency_key=None,
        is_retry=False,
    )
    batch = await site.served.batches.create("ada", asked)
    return await site.reach(batch.id, "in_progress")


def written(site: Site, batch: Batch, kind: str) -> list[dict[str, object]]:
    path = site.root / "outputs" / f"{batch.id}.{kind}.jsonl"
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(jsonl(10))
    return path


async def test_a_file_is_registered_by_path_only_by_the_servers_own_user(
    site: Site, source: Path
) -> None:
    async with httpx.AsyncClient(base_url=site.url) as raw:
        ask = {"path": str(source)}
        by_key = {"authorization": "Bearer ada"}
        answer = await raw.post("/hpcserve/v1/files", json=ask, headers=by_key)
        assert answer.status_code == 403
        by_socket = {"authorization": "Bearer socket:ada"}
        answer = await raw.post("/hpcserve/v1/files", json=ask, headers=by_socket)
        assert answer.json()["bytes"] == source.stat().st_size
        for path in ("relative", str(source.parent), "/nowhere/at/all"):
            answer = await raw.post("/hpcserve/v1/files", json={"path": path}, headers=by_socket)
            assert answer.status_code == 400
            assert path in answer.json()["error"]["message"]
    assert not list((site.root / "uploads").iterdir())


@pytest.mark.parametrize("change", ["grown", "touched", "vanished"])
async def test_a_changed_input_fails_what_waits_and_keeps_what_is_done(
    site: Site, agent: ScriptedAgent, source: Path, change: str
) -> None:
    batch = await submit_path(site, source)
    await agent.once()
    in_flight = await site.served.work.lease(agent.instance, 2)
    assert in_flight is not None
    if change == "grown":
        with source.open("ab") as file:
            file.write(b"\n")
    elif change == "touched":
        os.utime(source, ns=(0, 1))
    else:
        source.unlink()
    assert await agent.once() == 0
    outcomes = [echo(in_flight, line) for line in in_flight.lines]
    await site.served.work.settle(agent.instance.id, in_flight.lease_id, outcomes)
    done = await site.settle_everything(batch.id)
    assert done.state == "completed"
    assert (done.counts.completed, done.counts.failed) == (6, 4)
    assert [line["custom_id"] for line in written(site, done, "output")] == [
        f"id-{i}" for i in range(6)
    ]
    errors = written(site, done, "errors")
    assert [line["custom_id"] for line in errors] == [f"id-{i}" for i in range(6, 10)]
    code = "input_file_missing" if change == "vanished" else "input_file_changed"
    assert {line["error"]["code"] for line in errors} == {code}


async def test_a_file_that_changes_before_validation_is_refused(site: Site, source: Path) -> None:
    file = await site.served.files.register("ada", str(source), expires_after_s=None)
    source.write_bytes(jsonl(3))
    asked = NewBatch(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={},
        idempotency_key=None,
        is_retry=False,
    )
    batch = await site.served.batches.create("ada", asked)
    failed = await site.settle_everything(batch.id)
    assert [error.code for error in failed.errors] == ["input_file_changed"]


async def crash(site: Site, agent: ScriptedAgent, number: int) -> None:
    """End the agent's instance by a crash; give the agent a new one."""
    now = site.clock.now()
    ended, line = agent.instance.on(
        InstanceEvent.GONE,
        at=now,
        reason="it crashed",
        end_reason=EndReason.CRASHED,
        ended_at=now,
    )
    await site.ledger.transact(lambda tx: tx.instances.save(ended, line))
    again = ScriptedAgent(site)
    object.__setattr__(again.instance, "id", f"inst-{number}")
    object.__setattr__(again.instance, "token", f"inst-{number}")
    await again.introduce()
    agent.instance = again.instance
    await asyncio.sleep(0.1)


async def test_a_line_that_crashes_its_engine_is_isolated(
    site: Site, agent: ScriptedAgent, source: Path
) -> None:
    batch = await submit_path(site, source)
    agent.limit = 10
    crashes = 0
    async with asyncio.timeout(20):
        while not (await site.batch(batch.id)).is_terminal:
            grant = await site.served.work.lease(agent.instance, 10)
            if grant is None:
                await asyncio.sleep(0.01)
                continue
            if any(line.custom_id == "id-6" for line in grant.lines):
                crashes += 1
                await crash(site, agent, crashes)
                continue
            outcomes = [echo(grant, line) for line in grant.lines]
            await site.served.work.settle(agent.instance.id, grant.lease_id, outcomes)
    done = await site.batch(batch.id)
    assert crashes == site.settings.max_attempts
    assert (done.counts.completed, done.counts.failed) == (9, 1)
    (error,) = written(site, done, "errors")
    assert error["custom_id"] == "id-6"
    assert error["error"]["code"] == "attempts_exhausted"


async def test_a_zombie_cannot_commit(site: Site, agent: ScriptedAgent, source: Path) -> None:
    batch = await submit_path(site, source)
    old = agent.instance
    grant = await site.served.work.lease(old, 10)
    assert grant is not None
    await crash(site, agent, 1)
    with pytest.raises(FencedError):
        await site.served.work.settle(
            old.id, grant.lease_id, [echo(grant, line) for line in grant.lines]
        )
    assert (await site.batch(batch.id)).counts.completed == 0


async def test_a_full_disk_loses_nothing(site: Site, agent: ScriptedAgent, source: Path) -> None:
    batch = await submit_path(site, source)
    await agent.once()
    grant = await site.served.work.lease(agent.instance, 4)
    assert grant is not None
    outcomes = [echo(grant, line) for line in grant.lines]
    segments = site.served.segments
    good = segments._open
    assert good is not None
    with Path("/dev/full").open("wb") as full:
        segments._open = _Open(good.number, full, good.size_bytes, good.used_s)
        with pytest.raises(BackendError, match="No space left") as caught:
            await site.served.work.settle(agent.instance.id, grant.lease_id, outcomes)
        assert caught.value.retryable
        segments._open = good
    assert (await site.batch(batch.id)).counts.completed == 4
    taken = await site.served.work.settle(agent.instance.id, grant.lease_id, outcomes)
    assert taken == {line.line_no for line in grant.lines}
    while await agent.once():
        pass
    done = await site.settle_everything(batch.id)
    assert [line["custom_id"] for line in written(site, done, "output")] == [
        f"id-{i}" for i in range(10)
    ]


async def test_results_of_many_agents_share_a_segment_and_stay_apart(
    site: Site, agent: ScriptedAgent, source: Path
) -> None:
    batch = await submit_path(site, source)
    grants: list[Grant] = []
    while (grant := await site.served.work.lease(agent.instance, 3)) is not None:
        grants.append(grant)
    await site.served.work.release(agent.instance.id, grants[1].lease_id, None)
    answers = await asyncio.gather(
        *(
            site.served.work.settle(
                agent.instance.id, grant.lease_id, [echo(grant, line) for line in grant.lines]
            )
            for grant in grants
        ),
        return_exceptions=True,
    )
    assert [len(a) for a in answers if isinstance(a, frozenset)] == [3, 0, 3, 1]
    assert len(list((site.root / "segments").iterdir())) == 1
    assert (await site.batch(batch.id)).counts.completed == 7


async def test_results_can_be_read_while_the_batch_runs(
    site: Site, agent: ScriptedAgent, source: Path
) -> None:
    batch = await submit_path(site, source)
    await agent.once()
    address = f"/hpcserve/v1/batches/{batch.id}/results"
    headers = {"authorization": "Bearer ada"}

    def ids(answer: httpx.Response) -> list[str]:
        return [json.loads(line)["custom_id"] for line in answer.content.splitlines()]

    async with httpx.AsyncClient(base_url=site.url, headers=headers) as raw:
        so_far = await raw.get(address)
        assert ids(so_far) == [f"id-{i}" for i in range(4)]
        assert so_far.headers["hpcserve-batch-status"] == "in_progress"
        assert ids(await raw.get(address, params={"after_line": 3})) == ["id-3"]
        assert (await raw.get(address, params={"kind": "errors"})).content == b""
        while await agent.once():
            pass
        await site.settle_everything(batch.id)
        whole = await raw.get(address)
        assert ids(whole) == [f"id-{i}" for i in range(10)]
        part = await raw.get(address, headers={"range": "bytes=50-"})
        assert part.status_code == 206
        assert part.content == whole.content[50:]
        stranger = await raw.get(address, headers={"authorization": "Bearer eve"})
        assert stranger.status_code == 404


async def test_segments_go_when_no_open_batch_needs_them(
    site: Site, agent: ScriptedAgent, source: Path
) -> None:
    batch = await submit_path(site, source)
    await agent.once()
    (segment,) = (site.root / "segments").iterdir()
    long_ago = site.clock.now().timestamp() - 3 * site.settings.segment_idle_s
    os.utime(segment, (long_ago + 10**4, long_ago + 10**4))
    await asyncio.sleep(2 * site.settings.sweep_s)
    assert segment.exists(), "the batch is open"
    while await agent.once():
        pass
    await site.settle_everything(batch.id)
    os.utime(segment, (long_ago, long_ago))
    async with asyncio.timeout(5):
        while segment.exists():  # noqa: ASYNC110  # the file system
            await asyncio.sleep(0.02)
    assert not list((site.root / "custom_ids").iterdir())
