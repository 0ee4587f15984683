"""Leases and results as lines."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcserve.domain.batch import RequestEvent
from hpcserve.errors import RequestError
from hpcserve.ports.control import Grant, GrantedLine, Outcome
from hpcserve.ports.control_wire import dump_grant, dump_outcomes, load_grant, load_outcomes
from tests.builders import NOW

payloads = st.binary().map(lambda data: data.replace(b"\n", b""))
counts = st.integers(0, 2**40)


@given(
    st.lists(
        st.builds(GrantedLine, line_no=counts, custom_id=st.text(), attempts=counts, body=payloads)
    )
)
def test_a_lease_comes_back_as_it_was(lines: list[GrantedLine]) -> None:
    grant = Grant(lease_id=9, batch_id="b", route="/v1/x", expires_at=NOW, lines=tuple(lines))
    assert load_grant(dump_grant(grant)) == grant


@given(
    st.lists(
        st.builds(
            Outcome,
            line_no=counts,
            event=st.sampled_from([RequestEvent.ANSWERED, RequestEvent.REFUSED]),
            input_tokens=counts,
            cached_tokens=counts,
            output_tokens=counts,
            line=payloads,
        )
    )
)
def test_results_come_back_as_they_were(outcomes: list[Outcome]) -> None:
    assert load_outcomes(dump_outcomes(3, outcomes)) == (3, tuple(outcomes))


@pytest.mark.parametrize("data", [b"", b"[]", b"{}\n{}", b"{}\n{}\nx", b"\xff", b'"text"'])
def test_what_is_no_lease_is_an_error_that_says_so(data: bytes) -> None:
    with pytest.raises(RequestError, match="lease"):
        load_grant(data)
    with pytest.raises(RequestError, match="results"):
        load_outcomes(data)
