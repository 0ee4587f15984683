"""Who gives way to whom inside the engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from hpcserve.engines.vllm import preemption
from hpcserve.engines.vllm.plugins import hpcserve_slots
from hpcserve.engines.vllm.plugins.hpcserve_slots import (
    BATCH,
    INTERACTIVE,
    Room,
    SlotsFile,
    allowed,
    class_of,
    leaving,
)


@dataclass(frozen=True)
class Asker:
    priority: int
    arrival_time: float
    num_tokens: int = 16


def batch(*arrivals: float, tokens: int = 16) -> list[Asker]:
    return [Asker(BATCH, arrival, tokens) for arrival in arrivals]


def chat(*arrivals: float, tokens: int = 16) -> list[Asker]:
    return [Asker(INTERACTIVE, arrival, tokens) for arrival in arrivals]


def room(slots: int = 4, batch_slots: int | None = None, blocks: int = 100) -> Room:
    return Room(slots=slots, batch_slots=batch_slots, blocks=blocks, block_tokens=16)


def arrivals(requests: list[Asker]) -> list[float]:
    return [request.arrival_time for request in requests]


def test_a_chat_request_takes_the_slot_of_the_newest_batch_request() -> None:
    assert arrivals(leaving(batch(3, 1, 4, 2), chat(9), room())) == [4]


def test_as_many_give_way_as_ask() -> None:
    assert arrivals(leaving(batch(1, 2, 3, 4), chat(8, 9), room())) == [4, 3]


def test_nobody_gives_way_while_a_slot_is_free() -> None:
    assert leaving(batch(1, 2, 3), chat(9), room()) == []


def test_chat_never_gives_way() -> None:
    assert leaving(chat(1, 2, 3, 4), chat(9), room()) == []
    assert arrivals(leaving([*chat(1, 2, 3), *batch(0)], chat(8, 9), room())) == [0]


def test_batch_gives_way_for_kv_blocks_too() -> None:
    long = chat(9, tokens=16 * 10)
    assert arrivals(leaving(batch(1, 2, 3, tokens=64), long, room(slots=8, blocks=3))) == [3, 2]


def test_a_lowered_limit_pushes_out_what_is_above() -> None:
    assert arrivals(leaving(batch(1, 2, 3, 4), [], room(batch_slots=1))) == [4, 3, 2]
    assert arrivals(leaving(batch(1, 2), [], room(batch_slots=0))) == [2, 1]
    assert leaving(batch(1, 2), [], room(batch_slots=9)) == []


def test_the_limit_counts_before_what_chat_takes() -> None:
    running = [*chat(5), *batch(1, 2, 3)]
    assert arrivals(leaving(running, chat(9), room(batch_slots=2))) == [3]


@pytest.mark.parametrize(
    ("running", "asking", "limit", "expected"),
    [
        (batch(1, 2), [], None, 4),
        (batch(1, 2), [], 1, 1),
        (chat(1), [], 2, 3),
        (chat(1), chat(2), 0, 2),
        (chat(1, 2), chat(3), 4, 4),
    ],
)
def test_batch_gets_no_more_than_its_limit_and_chat_all(
    running: list[Asker], asking: list[Asker], limit: int | None, expected: int
) -> None:
    assert allowed(running, asking, room(batch_slots=limit)) == expected


def test_a_clients_number_says_its_class_and_no_more() -> None:
    assert [class_of(n) for n in (-(2**63), -1, 0)] == [INTERACTIVE] * 3
    assert [class_of(n) for n in (1, 999, 1000)] == [BATCH] * 3
    assert class_of(int(preemption.BATCH_HEADERS["x-vllm-priority"])) == BATCH


def test_both_sides_agree_on_the_name_of_the_file() -> None:
    assert preemption.SLOTS_VARIABLE == hpcserve_slots.SLOTS_VARIABLE


def test_the_limit_follows_the_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "slots"
    slots = SlotsFile(str(path))
    assert slots.read() is None
    for number in (3, 0, 7):
        new = tmp_path / "new"
        new.write_text(f"{number}\n")
        new.replace(path)
        assert slots.read() == number
    (tmp_path / "new").write_text("many")
    (tmp_path / "new").replace(path)
    assert slots.read() == 7
    assert "many" in caplog.text
    path.unlink()
    assert slots.read() is None
    assert SlotsFile("").read() is None
