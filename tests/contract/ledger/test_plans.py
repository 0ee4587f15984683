"""Named lines are reached by their key, in a batch that came a second ago and has no statistics.

A planner that reads the batch from end to end gives the same rows, so nothing but this notices.
"""

from __future__ import annotations

import re

import pytest
from sqlalchemy import create_engine
from sqlalchemy.sql import Executable

from hpcserve.domain.batch import RequestState
from hpcserve.ledger import open_ledger
from hpcserve.ledger.open import connect, parse
from hpcserve.ledger.postgres import Postgres
from hpcserve.ledger.sql.requests import RequestStatements
from hpcserve.ledger.sqlite import Sqlite
from tests.contract.ledger.work import add_batch, answer

BY_KEY = ("choose_again", "take_again", "settle", "release_some", "inputs")
IN_ORDER = ("choose_fresh", "take_fresh", "release")


@pytest.mark.parametrize("name", BY_KEY + IN_ORDER)
def test_sqlite_walks_the_key(sqlite_url: str, name: str) -> None:
    engine = create_engine(sqlite_url)
    statement: Executable = getattr(RequestStatements(Sqlite()), name)
    sql = str(statement.compile(dialect=engine.dialect))  # type: ignore[attr-defined]  # a clause
    with engine.connect() as connection:
        rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", (None,) * sql.count("?"))
        plan = [row.detail for row in rows if "batch_requests" in row.detail]
    engine.dispose()
    bound = "line_no=?" if name in BY_KEY else "line_no>?"
    assert f"batch_seq=? AND {bound}" in plan[-1]
    for step in plan[:-1]:
        assert "COVERING INDEX ix_batch_requests_handed_back" in step


async def test_postgres_walks_the_key(postgres_url: str) -> None:
    ledger = open_ledger(postgres_url)
    await add_batch(ledger, 20_000)
    await ledger.close()
    dialect = Postgres()
    statements = RequestStatements(dialect)
    which = {"seq": 1, "lease": 1, "numbers": dialect.numbers(range(256))}
    parameters = {
        **which,
        "next": 1,
        "limit": 256,
        "first": 1,
        "last": 256,
        "into": 1,
        "to": RequestState.COMPLETED,
        **dialect.place_parameters([answer(n) for n in range(256)]),
    }
    engine = connect(parse(postgres_url))
    with engine.connect() as connection:
        for name in BY_KEY + IN_ORDER:
            statement = getattr(statements, name)
            compiled = statement.compile(dialect=engine.dialect)
            wanted = {key: parameters.get(key, value) for key, value in compiled.params.items()}
            rows = connection.exec_driver_sql(f"EXPLAIN {compiled}", wanted)
            plan = "\n".join(row[0] for row in rows)
            assert re.search(r"\(batch_seq = [^)]+\) AND \(line_no ", plan), plan
            assert "Seq Scan on batch_requests" not in plan, plan
    engine.dispose()
