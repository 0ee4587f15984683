"""The controller through crashes, outages and hand-overs, in virtual time on the memory ledger."""

from dataclasses import replace
from pathlib import Path

import pytest

from hpcserve.config import Config
from hpcserve.controller.act import Actor
from hpcserve.controller.loop import Controller
from hpcserve.controller.observe import Observer
from hpcserve.domain.instance import InstanceEvent, InstanceState
from hpcserve.domain.job import EndReason, JobPhase
from hpcserve.domain.lifecycle import Subject
from hpcserve.ledger import open_ledger
from hpcserve.policy.scaling.demand import DemandScaler
from hpcserve.ports.notes import CONTROLLER, LISTENING
from tests.builders import NOW, a_demand, a_model
from tests.simulation.scripted import Clock, Cluster, Ids, Killed

CONFIG = Config()


class Site:
    """One ledger, one scheduler, and any number of controllers."""

    def __init__(self):
        self.clock = Clock()
        self.ledger = open_ledger("memory:")
        self.cluster = Cluster(self.clock)
        self.ids = Ids()
        self.models = {"m": a_model()}

    def controller(self, holder="one"):
        observer = Observer(
            ledger=self.ledger,
            cluster=self.cluster,
            clock=self.clock,
            config=CONFIG,
            catalog=lambda: self.models,
        )
        actor = Actor(
            ledger=self.ledger,
            cluster=self.cluster,
            clock=self.clock,
            ids=self.ids,
            config=CONFIG,
            state_dir=Path("/state"),
            secret=b"secret",
        )
        return Controller(
            holder=holder,
            ledger=self.ledger,
            observer=observer,
            actor=actor,
            scaler=DemandScaler(CONFIG.scaling),
            clock=self.clock,
            config=CONFIG,
            cluster_description="scripted",
        )

    async def want(self, **fields):
        demand = a_demand(**{"asked_at": self.clock.now(), "waiting": 1, **fields})
        await self.ledger.transact(lambda tx: tx.demand.report("gw", [demand]))

    async def listen(self):
        note = {"at": self.clock.now().isoformat(), "since": NOW.isoformat()}
        await self.ledger.transact(lambda tx: tx.notes.put(LISTENING, note))

    async def instances(self):
        return await self.ledger.transact(lambda tx: (*tx.instances.live(), *tx.instances.ended(9)))

    async def apply(self, event, **changes):
        """Let the only live instance's agent state a fact."""

        def work(tx):
            (instance,) = tx.instances.live()
            after, line = instance.on(
                event, at=self.clock.now(), reason="its agent says", **changes
            )
            tx.instances.save(after, line)
            tx.instances.heard(instance.id, self.clock.now(), None, busy=False)

        await self.ledger.transact(work)


@pytest.fixture
def site():
    return Site()


async def test_demand_becomes_a_job_and_a_quiet_model_gives_it_back(site):
    controller = site.controller()
    await site.want()
    await controller.tick()
    await controller.tick()
    assert site.cluster.held == ["1"]
    site.cluster.move("1", JobPhase.HELD)
    await controller.tick()
    await site.apply(InstanceEvent.REGISTERED, host="h", port=1)
    await site.apply(InstanceEvent.HEALTHY, ready_at=site.clock.now())
    await site.want(waiting=0)
    await site.clock.sleep(1000)
    await site.listen()
    await site.apply(InstanceEvent.HEARD)
    await controller.tick()
    (instance,) = await site.instances()
    assert (instance.state, instance.ending) == (InstanceState.DRAINING, EndReason.SCALED_IN)


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_controller_killed_around_sbatch_leaves_one_job(site, moment):
    await site.want()
    site.cluster.kill = moment
    with pytest.raises(Killed):
        await site.controller("one").tick()
    site.cluster.kill = None
    await site.clock.sleep(CONFIG.controller.leader_ttl_s + CONFIG.controller.intent_grace_s)
    successor = site.controller("two")
    for _ in range(4):
        await site.want()
        await successor.tick()
        await site.clock.sleep(5)
    assert len(site.cluster.held) == 1
    live = [i for i in await site.instances() if i.is_live]
    assert [i.job_id for i in live] == site.cluster.held
    assert all(i.end_reason is EndReason.LOST for i in await site.instances() if not i.is_live)


async def test_each_tick_asks_the_scheduler_once(site):
    controller = site.controller()
    await site.want(waiting=600)
    for _ in range(5):
        await controller.tick()
    assert site.cluster.questions == 5


async def test_an_outage_cancels_nothing_is_reported_and_heals(site):
    controller = site.controller()
    await site.want()
    await controller.tick()
    before = await site.instances()
    site.cluster.down = True
    for _ in range(20):
        await site.clock.sleep(5)
        await controller.tick()
    note = await site.ledger.transact(lambda tx: tx.notes.get(CONTROLLER))
    assert note["scheduler_down_since"]
    assert "Unable to contact" in note["scheduler_message"]
    assert await site.instances() == before
    site.cluster.down = False
    await controller.tick()
    note = await site.ledger.transact(lambda tx: tx.notes.get(CONTROLLER))
    assert note["scheduler_down_since"] is None
    assert site.cluster.held == ["1"]


async def test_a_submission_lost_in_an_outage_is_made_again_once(site):
    controller = site.controller()
    await site.want()
    site.cluster.down = True
    await controller.tick()
    site.cluster.down = False
    for _ in range(12):
        await site.clock.sleep(5)
        await site.want()
        await controller.tick()
    assert len(site.cluster.held) == 1


async def test_a_refused_job_backs_off_and_the_model_is_given_up(site):
    controller = site.controller()
    site.cluster.refusal = "Invalid account"
    for _ in range(100):
        await site.want()
        await controller.tick()
        await site.clock.sleep(5)
    instances = await site.instances()
    assert [i.end_reason for i in instances] == [EndReason.REJECTED] * 3
    note = await site.ledger.transact(lambda tx: tx.notes.get(CONTROLLER))
    assert note["models"]["m"]["given_up"]
    assert "Invalid account" in note["models"]["m"]["reason"]


async def test_of_two_controllers_one_leads_until_it_dies(site):
    first, second = site.controller("one"), site.controller("two")
    await first.tick()
    await second.tick()
    assert first.leadership is not None
    assert second.leadership is None
    await site.clock.sleep(CONFIG.controller.leader_ttl_s + 1)
    await second.tick()
    assert second.leadership is not None
    await first.tick()
    assert first.leadership is None


async def test_an_ended_instances_late_job_is_cancelled(site):
    controller = site.controller()
    await site.want()
    await controller.tick()

    def lose(tx):
        (instance,) = tx.instances.live()
        after, line = instance.on(
            InstanceEvent.GONE,
            at=NOW,
            reason="believed lost",
            end_reason=EndReason.LOST,
            ended_at=NOW,
        )
        tx.instances.save(after, line)

    await site.ledger.transact(lose)
    site.models = {"m": replace(site.models["m"], max_instances=0)}
    await controller.tick()
    assert site.cluster.held == []


async def test_the_story_tells_it_all(site):
    controller = site.controller()
    await site.want()
    await controller.tick()
    site.cluster.move("1", JobPhase.HELD)
    await controller.tick()
    site.cluster.move("1", JobPhase.GONE, EndReason.NODE_FAILED, state="NODE_FAIL")
    site.models = {"m": replace(site.models["m"], max_instances=0)}
    await controller.tick()
    (instance,) = await site.instances()
    story = await site.ledger.transact(lambda tx: tx.events.story(Subject.INSTANCE, instance.id))
    assert [line.event for line in story] == ["requested", "submitted", "started", "gone"]
    assert instance.end_reason is EndReason.NODE_FAILED
