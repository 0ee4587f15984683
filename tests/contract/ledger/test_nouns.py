"""Every other noun: what is written is read, and what has moved on is a conflict."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hpcserve.domain.batch import Batch, BatchEvent, BatchState, InputFile, LineError
from hpcserve.domain.instance import InstanceEvent, InstanceState, Role
from hpcserve.domain.job import EndReason
from hpcserve.domain.key import ApiKey
from hpcserve.domain.lifecycle import Subject
from hpcserve.domain.load import EngineLoad, GpuLoad
from hpcserve.errors import ConflictError, FencedError
from hpcserve.ports.ledger import Ledger
from tests.builders import NOW, a_demand, ago, ahead, an_instance
from tests.contract.ledger.work import a_batch, a_file, add_batch, add_instance, born

LOAD = EngineLoad(
    at=NOW,
    running=3,
    waiting=1,
    kv_cache_used_ratio=0.125,
    prompt_tokens_total=10**12,
    generation_tokens_total=5,
    requests_total=4,
    preemptions_total=0,
    ttft_sum_s=0.1,
    ttft_count=4,
    itl_sum_s=1.5,
    itl_count=40,
    prefix_cache_query_tokens_total=7,
    prefix_cache_hit_tokens_total=6,
)


async def test_an_instance_comes_back_as_it_was_written(ledger: Ledger) -> None:
    whole = an_instance(
        role=Role.BATCH,
        job_state="RUNNING",
        job_reason="None",
        expected_start_at=ahead(5),
        nodes=("n1", "n2"),
        busy_at=ago(1),
        ending=EndReason.EXPIRED,
        message="last words",
        log_path="/logs/1",
        load=LOAD,
    )
    await add_instance(ledger, whole)
    assert await ledger.transact(lambda tx: tx.instances.get("inst-1")) == whole
    assert await ledger.transact(lambda tx: tx.instances.get("inst-2")) is None


async def test_live_instances_are_oldest_first_and_ended_ones_newest_first(ledger: Ledger) -> None:
    for name, age_s in (("inst-b", 10), ("inst-a", 20)):
        await add_instance(ledger, an_instance(name, requested_at=ago(age_s)))
    for name, age_s in (("inst-c", 30), ("inst-d", 5), ("inst-e", 50)):
        ended = an_instance(name, InstanceState.ENDED, ended_at=ago(age_s))
        await add_instance(ledger, ended)
    live = await ledger.transact(lambda tx: tx.instances.live())
    assert [i.id for i in live] == ["inst-a", "inst-b"]
    newest = await ledger.transact(lambda tx: tx.instances.ended(2))
    assert [i.id for i in newest] == ["inst-d", "inst-c"]


async def test_a_save_stores_the_transition_and_counts_the_version(ledger: Ledger) -> None:
    queued = await add_instance(ledger, an_instance(state=InstanceState.QUEUED))
    moved, started = queued.on(
        InstanceEvent.STARTED, at=NOW, reason="it runs", detail={"nodes": ["n1"]}, nodes=("n1",)
    )
    await ledger.transact(lambda tx: tx.instances.save(moved, started))
    stored = await ledger.transact(lambda tx: tx.instances.get(queued.id))
    assert stored == replace(moved, version=1)
    story = await ledger.transact(lambda tx: tx.events.story(Subject.INSTANCE, queued.id))
    assert story == (born(Subject.INSTANCE, queued.id), started)


async def test_a_stale_save_is_a_conflict_and_changes_nothing(ledger: Ledger) -> None:
    first = await add_instance(ledger)
    await ledger.transact(lambda tx: tx.instances.save(replace(first, message="one")))
    note = born(Subject.INSTANCE, first.id, event="late")
    with pytest.raises(ConflictError, match="inst-1 is no longer at version 0"):
        await ledger.transact(lambda tx: tx.instances.save(replace(first, message="two"), note))
    stored = await ledger.transact(lambda tx: tx.instances.get(first.id))
    assert stored is not None
    assert (stored.message, stored.version) == ("one", 1)
    story = await ledger.transact(lambda tx: tx.events.story(Subject.INSTANCE, first.id))
    assert note not in story


async def test_a_heartbeat_takes_no_version_and_survives_an_older_save(ledger: Ledger) -> None:
    read = await add_instance(ledger, an_instance(heard_at=ago(30)))
    await ledger.transact(lambda tx: tx.instances.heard(read.id, NOW, LOAD, busy=True))
    await ledger.transact(lambda tx: tx.instances.save(replace(read, message="of the controller")))
    await ledger.transact(lambda tx: tx.instances.heard(read.id, ago(5), None, busy=False))
    stored = await ledger.transact(lambda tx: tx.instances.get(read.id))
    assert stored is not None
    assert (stored.heard_at, stored.busy_at, stored.load) == (NOW, NOW, LOAD)
    assert (stored.message, stored.version) == ("of the controller", 1)


async def test_a_heartbeat_without_a_reading_keeps_the_last_one(ledger: Ledger) -> None:
    made = await add_instance(ledger)
    await ledger.transact(lambda tx: tx.instances.heard(made.id, NOW, LOAD, busy=False))
    await ledger.transact(lambda tx: tx.instances.heard(made.id, ahead(9), None, busy=False))
    stored = await ledger.transact(lambda tx: tx.instances.get(made.id))
    assert stored is not None
    assert (stored.heard_at, stored.busy_at, stored.load) == (ahead(9), None, LOAD)


async def test_a_heartbeat_brings_the_gpus_and_one_without_keeps_them(ledger: Ledger) -> None:
    gpu = GpuLoad(
        index=0,
        uuid="GPU-1",
        name="H100",
        memory_used_bytes=1,
        memory_total_bytes=2,
        utilization_ratio=0.5,
        power_w=None,
        temperature_c=40.0,
    )
    made = await add_instance(ledger)
    await ledger.transact(
        lambda tx: tx.instances.heard(made.id, NOW, None, busy=False, gpu_load=(gpu,))
    )
    await ledger.transact(lambda tx: tx.instances.heard(made.id, ahead(9), None, busy=False))
    stored = await ledger.transact(lambda tx: tx.instances.get(made.id))
    assert stored is not None
    assert stored.gpu_load == (gpu,)


async def test_every_field_of_an_instance_comes_back(ledger: Ledger) -> None:
    fields = {
        "job_missing_at": ago(1),
        "stop_asked_at": ago(2),
        "expected_start_at": ago(3),
        "ending": EndReason.SCALED_IN,
        "end_reason": EndReason.DRAINED,
        "busy_at": ago(4),
        "ended_at": ago(5),
        "message": "words",
        "log_path": "/log",
        "job_state": "RUNNING",
        "job_reason": "None",
        "nodes": ("n1", "n2"),
        "load": LOAD,
    }
    made = await add_instance(ledger, an_instance(state=InstanceState.READY, **fields))
    assert await ledger.transact(lambda tx: tx.instances.get(made.id)) == made
    await ledger.transact(lambda tx: tx.instances.save(replace(made, job_missing_at=NOW)))
    stored = await ledger.transact(lambda tx: tx.instances.get(made.id))
    assert stored == replace(made, job_missing_at=NOW, version=1)


async def test_the_ended_hear_nothing(ledger: Ledger) -> None:
    made = await add_instance(ledger, an_instance(state=InstanceState.ENDED, ended_at=NOW))
    await ledger.transact(lambda tx: tx.instances.heard(made.id, ahead(9), LOAD, busy=True))
    assert await ledger.transact(lambda tx: tx.instances.get(made.id)) == made


async def test_log_lines_never_stop_a_write(ledger: Ledger) -> None:
    made = await add_instance(ledger)
    broken = replace(made, message="CUDA error\0 \udcff")
    await ledger.transact(lambda tx: tx.instances.save(broken))
    stored = await ledger.transact(lambda tx: tx.instances.get(made.id))
    assert stored is not None
    assert stored.message.startswith("CUDA error")


async def test_events_tell_a_story_and_when_each_last_happened(ledger: Ledger) -> None:
    told = [
        born(Subject.MODEL, "m", event="forgiven", at=ahead(1), detail={"by": "root", "n": [1, 2]}),
        born(Subject.MODEL, "other", event="forgiven"),
        born(Subject.MODEL, "m", event="forgiven", at=ago(9), reason="late, and \0 torn"),
        born(Subject.KEY, "m", event="made"),
    ]
    for one in told:
        await ledger.transact(lambda tx, one=one: tx.events.append(one))
    story = await ledger.transact(lambda tx: tx.events.story(Subject.MODEL, "m"))
    assert [line.at for line in story] == [ahead(1), ago(9)]
    assert story[0] == told[0]
    last = await ledger.transact(lambda tx: tx.events.last("forgiven"))
    assert last == {"m": ahead(1), "other": NOW}
    assert await ledger.transact(lambda tx: tx.events.last("never")) == {}


async def test_files(ledger: Ledger) -> None:
    files = [
        a_file("file-1", created_at=ago(9), expires_at=ahead(9)),
        a_file("file-2", is_ours=True, purpose="batch_output", expires_at=ahead(5)),
        a_file("file-3", owner="bob"),
    ]
    for file in files:
        await ledger.transact(lambda tx, file=file: tx.files.add(file))
    assert await ledger.transact(lambda tx: tx.files.get("file-2")) == files[1]

    async def listed(purpose: str | None) -> tuple[InputFile, ...]:
        return await ledger.transact(lambda tx: tx.files.list("ada", purpose=purpose))

    assert await listed(None) == (files[1], files[0])
    assert await listed("batch") == (files[0],)
    expired = await ledger.transact(lambda tx: tx.files.expired(ahead(9), 10))
    assert expired == (files[1], files[0])
    assert await ledger.transact(lambda tx: tx.files.expired(ahead(8), 10)) == (files[1],)
    await ledger.transact(lambda tx: tx.files.delete("file-2"))
    assert await ledger.transact(lambda tx: tx.files.get("file-2")) is None


async def test_segments(ledger: Ledger) -> None:
    one = await ledger.transact(lambda tx: tx.segments.add("/results/1"))
    two = await ledger.transact(lambda tx: tx.segments.add("/results/2"))
    found = await ledger.transact(lambda tx: tx.segments.paths([one, two, 99]))
    assert found == {one: "/results/1", two: "/results/2"}


async def test_a_batch_comes_back_as_it_was_written(ledger: Ledger) -> None:
    whole = a_batch(
        metadata={"project": "Zürich", "n": "1"},
        idempotency_key="once",
        errors=(LineError(code="bad", message="line is bad", line=3, param="body"),),
        in_progress_at=ago(1),
        output_file_id="file-9",
    )
    added = await ledger.transact(lambda tx: tx.batches.add(whole, born(Subject.BATCH, whole.id)))
    assert added == replace(whole, seq=added.seq)
    assert added.seq > 0
    assert await ledger.transact(lambda tx: tx.batches.get(whole.id)) == added
    by_key = await ledger.transact(lambda tx: tx.batches.by_idempotency_key("ada", "once"))
    assert by_key == added
    assert await ledger.transact(lambda tx: tx.batches.by_idempotency_key("bob", "once")) is None
    assert await ledger.transact(lambda tx: tx.batches.get("batch-9")) is None


async def test_an_idempotency_key_is_one_batch(ledger: Ledger) -> None:
    await add_batch(ledger, idempotency_key="once")
    await add_batch(ledger, batch_id="batch-2", owner="bob", idempotency_key="once")
    await add_batch(ledger, batch_id="batch-3")
    await add_batch(ledger, batch_id="batch-4")
    with pytest.raises(ConflictError):
        await add_batch(ledger, batch_id="batch-5", idempotency_key="once")


async def test_saving_a_batch_leaves_what_the_ledger_keeps(ledger: Ledger) -> None:
    read = await add_batch(ledger, 3)
    await ledger.transact(lambda tx: tx.batches.progress(read.id, lines=3, size_bytes=270))
    moved, cancel = read.on(BatchEvent.CANCEL, at=NOW, reason="the user cancels")
    await ledger.transact(lambda tx: tx.batches.save(moved, cancel))
    stored = await ledger.transact(lambda tx: tx.batches.get(read.id))
    assert stored is not None
    assert (stored.state, stored.cancelling_at) == (BatchState.CANCELLING, NOW)
    assert (stored.counts.waiting, stored.version) == (3, 1)
    assert (stored.validated_lines, stored.validated_bytes) == (3, 270)
    story = await ledger.transact(lambda tx: tx.events.story(Subject.BATCH, read.id))
    assert story[-1] == cancel
    with pytest.raises(ConflictError, match="batch-1 is no longer at version 0"):
        await ledger.transact(lambda tx: tx.batches.save(moved))


async def test_batches_are_listed_newest_first_in_pages(ledger: Ledger) -> None:
    for n in range(5):
        await add_batch(ledger, batch_id=f"batch-{n}", owner="bob" if n == 2 else "ada")

    async def page(owner: str | None, after: str | None, limit: int) -> list[str]:
        found = await ledger.transact(lambda tx: tx.batches.list(owner, after=after, limit=limit))
        return [batch.id for batch in found]

    assert await page(None, None, 3) == ["batch-4", "batch-3", "batch-2"]
    assert await page(None, "batch-2", 3) == ["batch-1", "batch-0"]
    assert await page("ada", "batch-3", 9) == ["batch-1", "batch-0"]
    assert await page("ada", "batch-unknown", 9) == []


async def test_open_batches_and_the_backlog(ledger: Ledger) -> None:
    late: Batch = await add_batch(ledger, 4, batch_id="late", deadline_at=ahead(900))
    soon = await add_batch(ledger, 2, batch_id="soon", deadline_at=ahead(60))
    await add_batch(ledger, 2, batch_id="reading", state=BatchState.VALIDATING)
    await add_batch(ledger, 0, batch_id="done", state=BatchState.COMPLETED)
    await add_batch(ledger, 0, batch_id="idle")
    await ledger.transact(
        lambda tx: tx.requests.lease(batch=late, instance_id="i", limit=3, now=NOW, ttl_s=9)
    )
    opened = await ledger.transact(lambda tx: tx.batches.open())
    assert [batch.id for batch in opened] == ["late", "soon", "reading", "idle"]
    backlog = await ledger.transact(lambda tx: tx.batches.backlog())
    assert [(b.batch_id, b.batch_seq, b.waiting, b.leased) for b in backlog] == [
        ("soon", soon.seq, 2, 0),
        ("late", late.seq, 1, 3),
    ]
    assert backlog[0].deadline_at == ahead(60)


async def test_keys(ledger: Ledger) -> None:
    keys = [
        ApiKey(
            id=f"key-{n}",
            digest=f"digest-{n}",
            prefix="hps-abc",
            owner="bob" if n == 1 else "ada",
            name="laptop",
            created_at=ahead(n),
            expires_at=None,
            revoked_at=None,
        )
        for n in range(3)
    ]
    for key in keys:
        await ledger.transact(lambda tx, key=key: tx.keys.add(key))
    assert await ledger.transact(lambda tx: tx.keys.by_digest("digest-1")) == keys[1]
    assert await ledger.transact(lambda tx: tx.keys.by_digest("nobody's")) is None
    assert await ledger.transact(lambda tx: tx.keys.list("ada")) == (keys[2], keys[0])
    assert len(await ledger.transact(lambda tx: tx.keys.list(None))) == 3
    assert await ledger.transact(lambda tx: tx.keys.revoke("key-0", ahead(5)))
    assert await ledger.transact(lambda tx: tx.keys.revoke("key-0", ahead(9)))
    assert not await ledger.transact(lambda tx: tx.keys.revoke("key-9", NOW))
    revoked = await ledger.transact(lambda tx: tx.keys.by_digest("digest-0"))
    assert revoked == replace(keys[0], revoked_at=ahead(5))


async def test_demand_is_summed_over_gateways_and_goes_stale(ledger: Ledger) -> None:
    await ledger.transact(
        lambda tx: tx.demand.report("gw-1", [a_demand("m", running=9), a_demand("n", waiting=1)])
    )
    await ledger.transact(lambda tx: tx.demand.report("gw-1", [a_demand("m", running=2)]))
    await ledger.transact(
        lambda tx: tx.demand.report(
            "gw-2", [a_demand("m", asked_at=NOW, running=3, waiting=4), a_demand("old", running=5)]
        )
    )
    await ledger.transact(
        lambda tx: tx.demand.report("gw-2", [a_demand("old", asked_at=ago(99), running=5)])
    )
    await ledger.transact(lambda tx: tx.demand.report("gw-3", []))
    assert await ledger.transact(lambda tx: tx.demand.read(ago(30))) == (
        a_demand("m", asked_at=NOW, running=5, waiting=4),
        a_demand("n", waiting=1),
        a_demand("old", asked_at=ago(99), running=0),
    )


async def test_one_controller_leads(ledger: Ledger) -> None:
    assert await ledger.transact(lambda tx: tx.leader.current()) is None
    first = await ledger.transact(lambda tx: tx.leader.acquire("c1", NOW, 10))
    assert first is not None
    assert (first.holder, first.expires_at) == ("c1", ahead(10))
    assert await ledger.transact(lambda tx: tx.leader.acquire("c2", ahead(9), 10)) is None
    renewed = await ledger.transact(lambda tx: tx.leader.acquire("c1", ahead(9), 10))
    assert renewed is not None
    assert (renewed.fence, renewed.expires_at) == (first.fence, ahead(19))
    await ledger.transact(lambda tx: tx.leader.check(first, ahead(18)))
    second = await ledger.transact(lambda tx: tx.leader.acquire("c2", ahead(19), 10))
    assert second is not None
    assert second.fence > first.fence
    assert await ledger.transact(lambda tx: tx.leader.current()) == second
    with pytest.raises(FencedError, match="controller c1 no longer leads"):
        await ledger.transact(lambda tx: tx.leader.check(renewed, ahead(20)))
    with pytest.raises(FencedError):
        await ledger.transact(lambda tx: tx.leader.check(second, ahead(29)))


async def test_a_resigned_leadership_is_free_at_once(ledger: Ledger) -> None:
    first = await ledger.transact(lambda tx: tx.leader.acquire("c1", NOW, 10))
    assert first is not None
    await ledger.transact(lambda tx: tx.leader.resign("c2"))
    await ledger.transact(lambda tx: tx.leader.check(first, NOW))
    await ledger.transact(lambda tx: tx.leader.resign("c1"))
    with pytest.raises(FencedError):
        await ledger.transact(lambda tx: tx.leader.check(first, NOW))
    second = await ledger.transact(lambda tx: tx.leader.acquire("c2", NOW, 10))
    assert second is not None
    assert second.fence > first.fence


async def test_notes(ledger: Ledger) -> None:
    assert await ledger.transact(lambda tx: tx.notes.get("scheduler")) is None
    await ledger.transact(lambda tx: tx.notes.put("scheduler", {"silent_since": 1.5, "x": [None]}))
    await ledger.transact(lambda tx: tx.notes.put("scheduler", {"is_up": True}))
    assert await ledger.transact(lambda tx: tx.notes.get("scheduler")) == {"is_up": True}
