"""What every routing policy keeps, whatever the seats and the loads."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcserve.policy.routing.registry import POLICIES
from hpcserve.policy.routing.seat import Ask, Seat


@dataclass
class Busy:
    requests: int
    tokens: int


_SEATS = st.lists(
    st.builds(
        lambda slots, headroom_s, itl: Seat(
            instance_id="",
            headroom_s=headroom_s,
            slots=slots,
            itl_base_ms=itl,
            itl_per_request_ms=itl / 10,
            itl_slo_ms=200.0,
        ),
        st.integers(1, 512),
        st.floats(1.0, 1e6),
        st.floats(0.0, 100.0),
    ),
    min_size=1,
    max_size=16,
).map(
    lambda seats: [
        Seat(
            instance_id=f"inst-{number}",
            headroom_s=seat.headroom_s,
            slots=seat.slots,
            itl_base_ms=seat.itl_base_ms,
            itl_per_request_ms=seat.itl_per_request_ms,
            itl_slo_ms=seat.itl_slo_ms,
        )
        for number, seat in enumerate(seats)
    ]
)
_LOAD = st.builds(Busy, st.integers(0, 1000), st.integers(0, 10**7))
_ASK = st.builds(
    Ask, st.integers(0, 10**9), st.integers(0, 10**6), st.none() | st.integers(0, 2**64 - 1)
)


@pytest.mark.parametrize("name", POLICIES)
@given(data=st.data(), ask=_ASK, seats=_SEATS)
def test_picks_a_seat_that_is_there_and_always_the_same(name, data, ask, seats):
    loads = data.draw(st.lists(_LOAD, min_size=len(seats), max_size=len(seats)))
    index = POLICIES[name](ask, seats, loads)
    assert 0 <= index < len(seats)
    assert POLICIES[name](ask, seats, loads) == index


@pytest.mark.parametrize("name", POLICIES.keys() - {"round_robin"})
@given(seats=_SEATS, count=st.integers(1, 64))
def test_nobody_waits_behind_a_full_seat_while_another_is_empty(name, seats, count):
    """Requests that all look alike, none of which ends, fill no seat far beyond the others."""
    loads = [Busy(0, 0) for _ in seats]
    for turn in range(count):
        index = POLICIES[name](Ask(turn, 100, 7), seats, loads)
        loads[index].requests += 1
        loads[index].tokens += 100
    overfull = [load.requests > seat.slots for load, seat in zip(loads, seats, strict=True)]
    empty = [load.requests == 0 for load in loads]
    assert not (any(overfull) and any(empty))
