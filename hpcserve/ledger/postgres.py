"""PostgreSQL through psycopg 3: a small pool of connections, READ COMMITTED, durable commits.

Exactness under READ COMMITTED comes from row locks, always taken in this order: the lease, the
batch's counts when lines are to be chosen, the lines, the batch's counts to be written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import psycopg
from sqlalchemy import (
    CTE,
    URL,
    BigInteger,
    BindParameter,
    Column,
    ColumnElement,
    Connection,
    Engine,
    Integer,
    Table,
    bindparam,
    column,
    create_engine,
    func,
    select,
)
from sqlalchemy.dialects.postgresql import ARRAY, Insert, insert
from sqlalchemy.exc import DBAPIError
from typing_extensions import override

from hpcserve.domain.batch import NewRequest, Result
from hpcserve.ledger.dialect import Dialect
from hpcserve.ledger.limits import IDLE_TRANSACTION_S, INSERT_CHUNK, LOCK_WAIT_S, POOL_SIZE

_COPY_LINES = "COPY batch_requests (batch_seq, line_no, input_offset, input_length) FROM STDIN"

#: SQLSTATE classes and codes of what passes by itself
_PASSING = (
    "08",  # connection
    "40",  # rolled back: serialization, deadlock
    "53",  # out of connections or memory
    "55P03",  # lock not available in time
    "57P01",  # the server goes down
    "57P02",
    "57P03",  # or is not up yet
)
#: unique_violation
_DUPLICATE = "23505"


def connect(url: URL) -> Engine:
    """Return an engine with a small pool; nothing is asked of the server yet."""
    return create_engine(
        url,
        pool_size=POOL_SIZE,
        max_overflow=0,
        connect_args={
            "application_name": "hpcserve",
            "connect_timeout": LOCK_WAIT_S,
            "keepalives_idle": LOCK_WAIT_S,
            "tcp_user_timeout": 2 * LOCK_WAIT_S * 1000,
            "options": (
                "-c synchronous_commit=on"
                # Every statement on lines walks an index in its order, up to a limit. A planner
                # with statistics older than the batch prefers to collect or scan all of it.
                " -c enable_bitmapscan=off -c enable_seqscan=off"
                f" -c lock_timeout={LOCK_WAIT_S}s"
                f" -c idle_in_transaction_session_timeout={IDLE_TRANSACTION_S}s"
            ),
        },
    )


class Postgres(Dialect):
    """PostgreSQL's own words."""

    @override
    def insert(self, table: Table) -> Insert:
        return insert(table)

    @override
    def named(self, batch_seq: BindParameter[int]) -> CTE:
        numbers = func.unnest(bindparam("numbers", type_=ARRAY(Integer)))
        listed = select(batch_seq.label("batch_seq"), numbers.label("line_no"))
        return listed.cte("named").prefix_with("MATERIALIZED")

    @override
    def among(self, column: Column[int]) -> ColumnElement[bool]:
        return column == func.any(bindparam("numbers", type_=ARRAY(Integer)))

    @override
    def numbers(self, numbers: Sequence[int]) -> object:
        return list(numbers)

    @override
    def places(self, batch_seq: BindParameter[int]) -> CTE:
        listed = (
            func.unnest(
                bindparam("line_nos", type_=ARRAY(Integer)),
                bindparam("offsets", type_=ARRAY(BigInteger)),
                bindparam("lengths", type_=ARRAY(Integer)),
            )
            .table_valued(
                column("line_no", Integer),
                column("result_offset", BigInteger),
                column("result_length", Integer),
            )
            .render_derived(name="listed")
        )
        whole = select(batch_seq.label("batch_seq"), listed)
        return whole.cte("places").prefix_with("MATERIALIZED")

    @override
    def place_parameters(self, results: Sequence[Result]) -> Mapping[str, Any]:
        return {
            "line_nos": [r.line_no for r in results],
            "offsets": [r.offset for r in results],
            "lengths": [r.length for r in results],
        }

    @override
    def insert_lines(
        self, connection: Connection, batch_seq: int, requests: Iterable[NewRequest]
    ) -> int:
        driver: Any = connection.connection.driver_connection
        rows = (f"{batch_seq}\t{r.line_no}\t{r.offset}\t{r.length}\n" for r in requests)
        count = 0
        try:
            with driver.cursor() as cursor, cursor.copy(_COPY_LINES) as copy:
                while chunk := list(islice(rows, INSERT_CHUNK)):
                    copy.write("".join(chunk))
                    count += len(chunk)
        except psycopg.Error as error:
            # past SQLAlchemy, so its translation is asked for here
            raise DBAPIError.instance(
                _COPY_LINES, None, error, psycopg.Error, dialect=connection.dialect
            ) from error
        return count

    @override
    def is_passing(self, error: DBAPIError) -> bool:
        state = getattr(error.orig, "sqlstate", None)
        if state is None:
            # psycopg gives no code when there is no server to give one
            return error.connection_invalidated or isinstance(
                error.orig, psycopg.OperationalError | psycopg.InterfaceError
            )
        return str(state).startswith(_PASSING)

    @override
    def is_duplicate(self, error: DBAPIError) -> bool:
        return getattr(error.orig, "sqlstate", None) == _DUPLICATE
