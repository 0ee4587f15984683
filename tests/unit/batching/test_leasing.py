"""Which waiting lines travel in one lease."""

from __future__ import annotations

import pytest

from hpcserve.batching.leasing import together
from hpcserve.domain.batch import LeasedRequest


def lines(*lengths: int, attempts: int = 0) -> list[LeasedRequest]:
    return [
        LeasedRequest(
            batch_id="b",
            batch_seq=1,
            line_no=number,
            offset=0,
            length=length,
            attempts=attempts,
        )
        for number, length in enumerate(lengths, 1)
    ]


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [((40, 40, 20, 1), 3), ((40, 40, 21), 2), ((101, 1), 1), ((100, 1), 1), ((1, 1), 2)],
)
def test_a_lease_carries_no_more_bytes_than_fit_but_one_line(
    lengths: tuple[int, ...], expected: int
) -> None:
    kept = together(lines(*lengths), limit=100, max_bytes=100)
    assert [line.line_no for line in kept] == list(range(1, expected + 1))


def test_lines_that_were_lost_travel_apart_from_the_others() -> None:
    mixed = [*lines(1, 1, attempts=1), *lines(1, 1, 1)]
    assert {line.attempts for line in together(mixed, limit=100, max_bytes=100)} == {1}
