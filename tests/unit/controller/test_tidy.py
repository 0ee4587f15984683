"""Folders of instances go when they are old and nobody uses them."""

import os

from hpcserve.controller.tidy import Tidy
from hpcserve.domain.instance import InstanceState
from hpcserve.domain.lifecycle import Subject, Transition
from hpcserve.ledger import open_ledger
from tests.builders import NOW, ago, an_instance
from tests.simulation.scripted import Clock


def a_folder(parent, name, age_s):
    """Make an instance's folder whose newest file is so old."""
    log = parent / name / "logs" / "engine.log"
    log.parent.mkdir(parents=True)
    log.write_text("words")
    for path in (log, log.parent, log.parent.parent):
        os.utime(path, (ago(age_s).timestamp(),) * 2)


async def test_only_old_folders_of_instances_that_are_not_live_go(tmp_path):
    ledger = open_ledger("memory:")
    live = an_instance("live", InstanceState.READY)
    line = Transition(
        subject=Subject.INSTANCE,
        subject_id=live.id,
        at=NOW,
        event="requested",
        from_state=None,
        to_state=live.state,
        reason="a test",
    )
    await ledger.transact(lambda tx: tx.instances.add(live, line))
    for name, age_s in (("live", 9999), ("old", 101), ("fresh", 99)):
        a_folder(tmp_path, name, age_s)
    tidy = Tidy(ledger=ledger, clock=Clock(), folders=(tmp_path,), keep_s=100, leads=lambda: True)
    await tidy.sweep()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fresh", "live"]
