from __future__ import annotations

from datetime import timedelta

import pytest

from hpcserve.batching.window import window, written
from hpcserve.config.tree import Batching
from hpcserve.errors import RequestError


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("1h", timedelta(hours=1)),
        ("24h", timedelta(days=1)),
        ("7d", timedelta(days=7)),
        ("720h", timedelta(days=30)),
        ("30d", timedelta(days=30)),
    ],
)
def test_hours_and_days_are_taken(text: str, length: timedelta) -> None:
    assert window(text, Batching()) == length


@pytest.mark.parametrize("text", ["", "24", "90m", "0h", "-1h", "1.5h", "31d", "721h", "1h ", "٣h"])
def test_anything_else_is_refused_with_the_bounds(text: str) -> None:
    with pytest.raises(RequestError, match="from 1h to 30d") as caught:
        window(text, Batching())
    assert caught.value.param == "completion_window"


def test_bounds_are_written_as_they_are_read() -> None:
    assert [written(s) for s in (3600, 86400, 30 * 86400, 5400)] == ["1h", "1d", "30d", "1.5h"]
