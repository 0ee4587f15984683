"""The life-cycle tables, checked as data."""

import pytest

from hpcserve.domain.batch import BATCH, BATCH_REQUEST
from hpcserve.domain.instance import INSTANCE, InstanceEvent, InstanceState
from hpcserve.errors import InvalidTransitionError
from tests.builders import NOW, an_instance

TABLES = [INSTANCE, BATCH, BATCH_REQUEST]


def reachable(table, start):
    """Return every state that *start* can come to."""
    seen, todo = set(), [start]
    while todo:
        state = todo.pop()
        if state not in seen:
            seen.add(state)
            todo.extend(table.edges[state].values())
    return seen


@pytest.mark.parametrize("table", TABLES, ids=lambda t: t.noun)
def test_every_state_is_listed_and_reachable(table):
    kind = type(table.states[0])
    assert set(table.states) == set(kind)
    assert reachable(table, table.states[0]) == set(kind)


@pytest.mark.parametrize("table", TABLES, ids=lambda t: t.noun)
def test_every_state_can_end(table):
    assert table.terminal
    for state in table.states:
        assert reachable(table, state) & table.terminal


def test_an_unlisted_event_raises_and_changes_nothing():
    ended = an_instance(state=InstanceState.ENDED)
    with pytest.raises(InvalidTransitionError, match="instance inst-1 is ended") as caught:
        ended.on(InstanceEvent.HEALTHY, at=NOW, reason="late")
    assert (caught.value.state, caught.value.event) == ("ended", "healthy")
    assert ended.state is InstanceState.ENDED


def test_markdown_names_every_state():
    drawn = INSTANCE.markdown()
    assert all(f"| {state.upper()} |" in drawn for state in InstanceState)
