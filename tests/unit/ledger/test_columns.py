"""Values on their way into a column."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from sqlalchemy.dialects import sqlite

from hpcserve.domain.batch import BatchState
from hpcserve.ledger.columns import Instant, Json, Prose, Word

DIALECT = sqlite.dialect()


def test_an_instant_is_whole_microseconds_in_utc() -> None:
    in_berlin = datetime(2026, 3, 1, 13, 0, 0, 1, tzinfo=timezone(timedelta(hours=1)))
    stored = Instant().process_bind_param(in_berlin, DIALECT)
    assert stored == 1_772_366_400_000_001
    back = Instant().process_result_value(stored, DIALECT)
    assert back == in_berlin
    assert back is not None
    assert back.tzinfo is UTC


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(TypeError):
        Instant().process_bind_param(datetime(2026, 3, 1), DIALECT)  # noqa: DTZ001 - the point


def test_a_word_is_one_of_its_enumeration() -> None:
    column = Word(BatchState)
    assert column.process_bind_param(BatchState.FAILED, DIALECT) == "failed"
    with pytest.raises(ValueError, match="lost"):
        column.process_result_value("lost", DIALECT)


def test_prose_loses_only_what_a_column_cannot_hold() -> None:
    assert Prose().process_bind_param("a\0b Zürich \udcff", DIALECT) == "a\ufffdb Zürich ?"


def test_json_is_ascii_and_takes_what_stories_hold() -> None:
    text = Json().process_bind_param(
        {"at": datetime(2026, 3, 1, tzinfo=UTC), "nodes": ("n1",), "ü": "\0"}, DIALECT
    )
    assert text == '{"at":"2026-03-01T00:00:00+00:00","nodes":["n1"],"\\u00fc":"\\u0000"}'
