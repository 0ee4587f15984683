"""Who comes next in the queue of a model."""

from __future__ import annotations

from hpcserve.policy.admission.fair_queue import FairQueue


def drain(queue: FairQueue[str]) -> list[str]:
    taken = []
    while (item := queue.take()) is not None:
        taken.append(item)
    return taken


def test_users_take_turns_however_many_requests_each_has():
    queue: FairQueue[str] = FairQueue(100)
    for number in range(4):
        queue.put("ada", f"a{number}", 1.0)
    queue.put("bob", "b0", 1.0)
    queue.put("bob", "b1", 1.0)
    assert drain(queue) == ["a0", "b0", "a1", "b1", "a2", "a3"]


def test_large_requests_count_for_more():
    queue: FairQueue[str] = FairQueue(100)
    for number in range(3):
        queue.put("ada", f"a{number}", 10.0)
        queue.put("bob", f"b{number}", 5.0)
    assert drain(queue) == ["a0", "b0", "b1", "a1", "b2", "a2"]


def test_idle_user_saves_up_no_claim():
    queue: FairQueue[str] = FairQueue(100)
    for number in range(6):
        queue.put("ada", f"a{number}", 1.0)
    assert [queue.take() for _ in range(3)] == ["a0", "a1", "a2"]
    for number in range(3):
        queue.put("bob", f"b{number}", 1.0)
    assert drain(queue) == ["b0", "a3", "b1", "a4", "b2", "a5"]


def test_full_queue_refuses_and_those_who_leave_make_room():
    queue: FairQueue[str] = FairQueue(2)
    first = "a0"
    assert queue.put("ada", first, 1.0)
    assert queue.put("bob", "b0", 1.0)
    assert not queue.put("ada", "a1", 1.0)
    queue.remove("ada", first)
    assert len(queue) == 1
    assert queue.put("ada", "a1", 1.0)
    assert sorted(drain(queue)) == ["a1", "b0"]
