from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcserve.domain.batch import Backlog
from hpcserve.errors import ConfigError
from hpcserve.policy.packing.edf import pack
from hpcserve.policy.packing.registry import packer
from hpcserve.policy.packing.view import Ask, Nothing, PackingSettings, PackingView, Pick
from tests.builders import NOW, ago, ahead

SETTINGS = PackingSettings(deadline_bucket_s=3600, request_s=60)
ASK = Ask(instance_id="inst-1", model="m", limit=64, ends_at=ahead(3600))


def a_backlog(batch_id: str, **fields: object) -> Backlog:
    return Backlog(
        **{
            "batch_id": batch_id,
            "batch_seq": 1,
            "owner": "ada",
            "model": "m",
            "deadline_at": ahead(5 * 3600),
            "created_at": ago(60),
            "waiting": 1000,
            "leased": 0,
            **fields,
        }
    )


def picked(*backlog: Backlog, ask: Ask = ASK, **request_s: float) -> str | None:
    view = PackingView(ask=ask, backlog=backlog, request_s=request_s)
    answer = pack(view, SETTINGS, NOW)
    assert answer.reason
    return answer.batch_id if isinstance(answer, Pick) else None


def test_the_earliest_deadline_goes_first() -> None:
    late, soon = a_backlog("late"), a_backlog("soon", deadline_at=ahead(7200))
    assert picked(late, soon) == "soon"


def test_inside_a_bucket_the_least_served_owner_goes_first() -> None:
    big = a_backlog("big", leased=500)
    small = a_backlog("small", owner="bob", deadline_at=ahead(5 * 3600 + 60))
    assert picked(big, small) == "small"
    assert picked(big, replace(small, leased=900)) == "big"


def test_only_the_askers_model_counts() -> None:
    assert picked(a_backlog("a", model="other")) is None
    assert picked(a_backlog("a", waiting=0)) is None


def test_what_cannot_finish_before_the_allocation_ends_is_not_leased() -> None:
    ending = replace(ASK, ends_at=ahead(59))
    assert picked(a_backlog("a"), ask=ending) is None
    assert picked(a_backlog("a"), ask=ending, a=10.0) == "a"
    assert picked(a_backlog("a"), a_backlog("b", deadline_at=ahead(10**6)), ask=ending, b=10) == "b"
    assert picked(a_backlog("a"), ask=replace(ASK, ends_at=None), a=1e9) == "a"


def test_a_window_that_is_over_gets_nothing() -> None:
    assert picked(a_backlog("a", deadline_at=NOW)) is None


def test_a_policy_that_does_not_exist_is_named() -> None:
    assert packer("edf") is pack
    with pytest.raises(ConfigError, match="did you mean edf"):
        packer("edff")


BACKLOGS = st.lists(
    st.builds(
        a_backlog,
        st.uuids().map(str),
        owner=st.sampled_from(["ada", "bob", "eve"]),
        model=st.sampled_from(["m", "n"]),
        deadline_at=st.integers(-3600, 10**6).map(ahead),
        waiting=st.integers(0, 100),
        leased=st.integers(0, 100),
    ),
    max_size=12,
)


@given(BACKLOGS, st.integers(0, 300), st.one_of(st.none(), st.integers(-10, 600).map(ahead)))
def test_a_pick_is_always_legal_urgent_and_the_same_in_any_order(
    backlog: list[Backlog], limit: int, ends_at: object
) -> None:
    ask = replace(ASK, limit=limit, ends_at=ends_at)
    answer = pack(PackingView(ask=ask, backlog=tuple(backlog)), SETTINGS, NOW)
    again = pack(PackingView(ask=ask, backlog=tuple(reversed(backlog))), SETTINGS, NOW)
    assert answer == again
    if isinstance(answer, Nothing):
        return
    chosen = next(b for b in backlog if b.batch_id == answer.batch_id)
    assert chosen.model == "m"
    assert 1 <= answer.limit <= min(limit, chosen.waiting)
    assert chosen.deadline_at > NOW
    assert ask.ends_at is None or ask.ends_at >= ahead(SETTINGS.request_s)
    rivals = (b for b in backlog if b.model == "m" and b.waiting and b.deadline_at > NOW)
    assert all(chosen.deadline_at <= ahead(3600) + (b.deadline_at - NOW) for b in rivals)
