"""What agents are owed by the control plane, whatever carries their words."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from hpcserve.domain.batch import BatchEvent, RequestEvent, RequestState
from hpcserve.domain.instance import InstanceEvent, InstanceState
from hpcserve.domain.job import EndReason
from hpcserve.domain.load import EngineLoad, GpuLoad, GpusAbsent
from hpcserve.errors import FencedError
from hpcserve.ports.control import Control, Ending, Heartbeat, Order, Outcome, Registration
from tests.builders import NOW, ahead
from tests.contract.control.site import Site

REGISTRATION = Registration(
    job_id="inst-1-job",
    node="n1",
    host="n1.cluster",
    port=4711,
    log_path="/logs/engine.log",
    ends_at=ahead(3600),
)
LOAD = EngineLoad(
    at=NOW,
    running=3,
    waiting=1,
    kv_cache_used_ratio=0.5,
    prompt_tokens_total=10,
    generation_tokens_total=20,
    requests_total=5,
    preemptions_total=0,
    ttft_sum_s=1.5,
    ttft_count=5,
    itl_sum_s=2.5,
    itl_count=20,
    prefix_cache_query_tokens_total=10,
    prefix_cache_hit_tokens_total=4,
)
GPU = GpuLoad(
    index=0,
    uuid="GPU-1",
    name="H100",
    memory_used_bytes=1,
    memory_total_bytes=2,
    utilization_ratio=0.9,
    power_w=None,
    temperature_c=61.0,
)


def a_beat(**fields: object) -> Heartbeat:
    base = {
        "healthy": True,
        "load": LOAD,
        "gpus": GpusAbsent(reason="no driver"),
        "batch_running": 0,
        "draining": False,
        "stage": "ready",
    }
    return Heartbeat(**{**base, **fields})


def an_outcome(line_no: int, event: RequestEvent = RequestEvent.ANSWERED) -> Outcome:
    line = json.dumps({"custom_id": f"line-{line_no}", "body": "Grüße"}, ensure_ascii=False)
    return Outcome(
        line_no=line_no,
        event=event,
        input_tokens=3,
        cached_tokens=1,
        output_tokens=2,
        line=line.encode(),
    )


EXPIRED = Ending(reason=EndReason.EXPIRED, message="the time limit is near")
CRASHED = Ending(reason=EndReason.CRASHED, message="it died; last lines:\nCUDA error")


class ControlContract:
    """A subclass gives `site`, and `control`: what one agent of inst-1 may call."""

    async def test_registration_says_where_the_engine_listens(
        self, site: Site, control: Control
    ) -> None:
        await site.add_instance()
        assert await control.register(REGISTRATION) is Order.CONTINUE
        instance = await site.instance()
        assert instance.state is InstanceState.LOADING
        assert instance.base_url == "http://n1.cluster:4711"
        assert instance.log_path == "/logs/engine.log"
        assert site.wakes == 1

    async def test_registration_may_come_before_the_submission_is_recorded(
        self, site: Site, control: Control
    ) -> None:
        await site.add_instance(InstanceState.REQUESTED)
        await control.register(REGISTRATION)
        instance = await site.instance()
        assert (instance.state, instance.job_id) == (InstanceState.LOADING, "inst-1-job")
        assert instance.ends_at == ahead(3600)

    async def test_a_repeated_registration_leaves_no_trace(
        self, site: Site, control: Control
    ) -> None:
        await site.add_instance()
        await control.register(REGISTRATION)
        before = await site.story()
        assert await control.register(REGISTRATION) is Order.CONTINUE
        assert await site.story() == before

    async def test_health_moves_it_only_when_it_changes(self, site: Site, control: Control) -> None:
        await site.add_instance(InstanceState.LOADING)
        for _ in range(3):
            assert await control.beat(a_beat()) is Order.CONTINUE
        assert (await site.instance()).state is InstanceState.READY
        assert (await site.instance()).ready_at is not None
        for _ in range(2):
            await control.beat(a_beat(healthy=False, load=None, stage="does not answer"))
        assert (await site.instance()).state is InstanceState.LOADING
        assert (await site.story())[1:] == [InstanceEvent.HEALTHY, InstanceEvent.UNHEALTHY]
        assert site.wakes == 2

    async def test_a_beat_carries_load_and_gpus(self, site: Site, control: Control) -> None:
        await site.add_instance(InstanceState.READY)
        await control.beat(a_beat(gpus=(GPU,)))
        instance = await site.instance()
        assert instance.load == LOAD
        assert instance.busy_at == instance.heard_at
        assert instance.heard_at is not None
        assert site.clock.now() - instance.heard_at < timedelta(seconds=5)

    async def test_an_idle_beat_does_not_make_it_busy(self, site: Site, control: Control) -> None:
        await site.add_instance(InstanceState.READY)
        await control.beat(a_beat(load=None))
        assert (await site.instance()).busy_at is None

    async def test_health_is_proved_again_after_silence(self, site: Site, control: Control) -> None:
        await site.add_instance(InstanceState.UNREACHABLE)
        await control.beat(a_beat(healthy=False))
        assert (await site.instance()).state is InstanceState.LOADING
        await site.change(lambda i: i.on(InstanceEvent.SILENT, at=NOW, reason="a test wants it"))
        await control.beat(a_beat())
        assert (await site.instance()).state is InstanceState.READY

    async def test_the_controllers_drain_comes_with_the_next_beat(
        self, site: Site, control: Control
    ) -> None:
        await site.add_instance(InstanceState.DRAINING)
        assert await control.beat(a_beat()) is Order.DRAIN

    @pytest.mark.parametrize("state", [InstanceState.STOPPING, InstanceState.ENDED])
    async def test_a_given_up_instance_is_told_to_exit_at_every_word(
        self, site: Site, control: Control, state: InstanceState
    ) -> None:
        await site.add_instance(state)
        assert await control.register(REGISTRATION) is Order.EXIT
        assert await control.beat(a_beat()) is Order.EXIT
        assert await control.draining(EXPIRED) is Order.EXIT
        assert await control.lease(10, ()) is None
        assert (await site.instance()).state is state

    async def test_an_unknown_instance_is_told_to_exit(self, control: Control) -> None:
        assert await control.register(REGISTRATION) is Order.EXIT
        assert await control.beat(a_beat()) is Order.EXIT
        assert await control.ended(EXPIRED) is Order.EXIT
        assert await control.lease(10, ()) is None

    async def test_a_stale_job_of_the_instance_is_told_to_exit(
        self, site: Site, control: Control
    ) -> None:
        await site.add_instance(InstanceState.READY, job_id="another")
        await site.add_batch([{}])
        assert await control.beat(a_beat(healthy=False)) is Order.EXIT
        assert await control.ended(CRASHED) is Order.EXIT
        assert await control.lease(10, ()) is None
        assert (await site.instance()).state is InstanceState.READY

    async def test_draining_takes_it_out_of_service_with_its_reason(
        self, site: Site, control: Control
    ) -> None:
        await site.add_instance(InstanceState.READY)
        assert await control.draining(EXPIRED) is Order.DRAIN
        instance = await site.instance()
        assert (instance.state, instance.ending) == (InstanceState.DRAINING, EndReason.EXPIRED)
        assert await control.lease(10, ()) is None

    @pytest.mark.parametrize(
        "state",
        [
            InstanceState.REQUESTED,
            InstanceState.QUEUED,
            InstanceState.ALLOCATED,
            InstanceState.LOADING,
            InstanceState.UNREACHABLE,
        ],
    )
    async def test_an_instance_that_serves_nobody_stops_rather_than_drains(
        self, site: Site, control: Control, state: InstanceState
    ) -> None:
        await site.add_instance(state)
        assert await control.draining(EXPIRED) is Order.EXIT
        assert (await site.instance()).state is InstanceState.STOPPING

    @pytest.mark.parametrize(
        "state", [state for state in InstanceState if state is not InstanceState.ENDED]
    )
    async def test_the_last_word_counts_in_every_state(
        self, site: Site, control: Control, state: InstanceState
    ) -> None:
        await site.add_instance(state)
        assert await control.ended(CRASHED) is Order.EXIT
        instance = await site.instance()
        assert (instance.state, instance.ending) == (InstanceState.STOPPING, EndReason.CRASHED)
        assert instance.message == CRASHED.message

    async def test_a_decision_taken_before_stays_the_reason(
        self, site: Site, control: Control
    ) -> None:
        await site.add_instance(InstanceState.DRAINING, ending=EndReason.SCALED_IN)
        await control.ended(Ending(reason=EndReason.DRAINED, message="done"))
        instance = await site.instance()
        assert (instance.ending, instance.message) == (EndReason.SCALED_IN, "")
        assert (await site.story())[-1] == InstanceEvent.DRAINED

    async def test_bodies_and_results_travel_byte_for_byte(
        self, site: Site, control: Control
    ) -> None:
        await site.add_instance(InstanceState.READY)
        await site.add_batch([{"n": n, "text": "Grüße\n\u2028\x00 end"} for n in range(5)])
        grant = await control.lease(3, ())
        assert grant is not None
        assert [line.line_no for line in grant.lines] == [0, 1, 2]
        assert [line.body for line in grant.lines] == [site.work.bodies[n] for n in range(3)]
        assert (grant.route, grant.batch_id) == ("/v1/chat/completions", "batch-1")
        outcomes = [an_outcome(0), an_outcome(2, RequestEvent.REFUSED)]
        assert await control.settle(grant.lease_id, outcomes) == {0, 2}
        assert site.work.results == {0: [outcomes[0]], 2: [outcomes[1]]}
        counts = (await site.batch()).counts
        assert (counts.completed, counts.failed, counts.leased, counts.waiting) == (1, 1, 1, 2)

    async def test_nothing_to_do_is_an_answer(self, site: Site, control: Control) -> None:
        await site.add_instance(InstanceState.READY)
        assert await control.lease(3, ()) is None

    async def test_undone_lines_go_back_without_cost(self, site: Site, control: Control) -> None:
        await site.add_instance(InstanceState.READY)
        await site.add_batch([{}] * 3)
        grant = await control.lease(3, ())
        assert grant is not None
        await control.release(grant.lease_id, [1])
        assert (await site.batch()).counts.waiting == 1
        await control.release(grant.lease_id, None)
        assert await site.attempts() == {0: 0, 1: 0, 2: 0}

    async def test_a_lost_lease_fences_its_results(self, site: Site, control: Control) -> None:
        await site.add_instance(InstanceState.READY)
        await site.add_batch([{}])
        grant = await control.lease(1, ())
        assert grant is not None
        await site.ledger.transact(lambda tx: tx.requests.lapse(ahead(10**9)))
        with pytest.raises(FencedError):
            await control.settle(grant.lease_id, [an_outcome(0)])
        assert site.work.results == {}

    async def test_beats_keep_leases_alive(self, site: Site, control: Control) -> None:
        await site.add_instance(InstanceState.READY)
        await site.add_batch([{}])
        grant = await control.lease(1, ())
        assert grant is not None
        await site.ledger.transact(lambda tx: tx.requests.renew("inst-1", NOW, 1))
        await control.beat(a_beat())
        assert await site.ledger.transact(lambda tx: tx.requests.lapse(site.clock.now())) == 0
        assert await control.settle(grant.lease_id, [an_outcome(0)]) == {0}

    async def test_a_lease_whose_answer_was_lost_goes_back(
        self, site: Site, control: Control
    ) -> None:
        await site.add_instance(InstanceState.READY)
        await site.add_batch([{}] * 4)
        lost = await control.lease(2, ())
        assert lost is not None
        kept = await control.lease(1, (lost.lease_id,))
        assert kept is not None
        again = await control.lease(4, (kept.lease_id,))
        assert again is not None
        assert [(line.line_no, line.attempts) for line in again.lines] == [(0, 0), (1, 0), (3, 0)]

    async def test_a_crash_costs_an_attempt_and_a_good_end_none(
        self, site: Site, control: Control
    ) -> None:
        await site.add_instance(InstanceState.READY)
        await site.add_batch([{}] * 2)
        assert await control.lease(2, ()) is not None
        await control.ended(EXPIRED)
        assert await site.attempts() == {0: 0, 1: 0}
        await site.change(lambda i: i.on(InstanceEvent.STOP, at=NOW, reason="again"))
        await site.ledger.transact(
            lambda tx: tx.requests.lease(
                batch=tx.batches.get("batch-1"),  # type: ignore[arg-type]  # it is there
                instance_id="inst-1",
                limit=2,
                now=NOW,
                ttl_s=60,
            )
        )
        await control.ended(CRASHED)
        assert await site.attempts() == {0: 1, 1: 1}

    async def test_results_of_a_cancelled_batch_are_not_taken(
        self, site: Site, control: Control
    ) -> None:
        await site.add_instance(InstanceState.READY)
        batch = await site.add_batch([{}] * 2)
        grant = await control.lease(2, ())
        assert grant is not None
        changed, line = batch.on(BatchEvent.CANCEL, at=NOW, reason="the user cancels")
        await site.ledger.transact(lambda tx: tx.batches.save(changed, line))
        await site.ledger.transact(lambda tx: tx.requests.close(batch.seq, RequestState.CANCELLED))
        assert await control.settle(grant.lease_id, [an_outcome(0)]) == frozenset()
