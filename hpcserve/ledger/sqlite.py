"""SQLite: one file in WAL mode, one writer thread, each commit on the disk before it returns."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from sqlalchemy import (
    CTE,
    URL,
    BindParameter,
    Column,
    ColumnElement,
    Connection,
    Engine,
    Integer,
    Table,
    Text,
    bindparam,
    create_engine,
    event,
    func,
    literal_column,
    select,
)
from sqlalchemy.dialects.sqlite import Insert, insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import ConnectionPoolEntry, StaticPool
from typing_extensions import override

from hpcserve.domain.batch import NewRequest, Result
from hpcserve.errors import BackendError
from hpcserve.ledger.dialect import Dialect
from hpcserve.ledger.limits import (
    INSERT_CHUNK,
    LOCK_WAIT_S,
    SQLITE_CACHE_KIB,
    SQLITE_CHECKPOINT_PAGES,
)

_INSERT_LINES = (
    "INSERT INTO batch_requests (batch_seq, line_no, input_offset, input_length)"
    " VALUES (?, ?, ?, ?)"
)
#: one statement for many rows: sqlite3 gives up the interpreter lock at each step of a statement,
#: and waits for it again, which takes longer than the insertion of a row
_INSERT_CHUNK_OF_LINES = _INSERT_LINES + ", (?, ?, ?, ?)" * (INSERT_CHUNK - 1)
#: SQLITE_BUSY and SQLITE_LOCKED; extended codes carry them in their low byte
_LOCKED = (5, 6)
#: SQLITE_CONSTRAINT_PRIMARYKEY and SQLITE_CONSTRAINT_UNIQUE
_DUPLICATE = (1555, 2067)


def connect(url: URL, *, create: bool = False) -> Engine:
    """Return an engine with one connection to the file; *create* makes a missing file, mode 0600.

    Raises BackendError when the file is missing, or its folder, or it may not be written.
    """
    path = Path(url.database or "")
    if not path.is_absolute():
        raise BackendError(
            f"the ledger's address {url} must hold an absolute path: sqlite:////path/to/ledger.db",
            retryable=False,
        )
    try:
        flags = os.O_RDWR | (os.O_CREAT if create else 0)
        os.close(os.open(path, flags, 0o600))
    except OSError as error:
        remedy = "its folder must exist" if create else "run `hpcserve admin db upgrade` to make it"
        raise BackendError(
            f"the ledger {path} cannot be opened ({error.strerror}); {remedy}", retryable=False
        ) from error
    engine = create_engine(
        url, poolclass=StaticPool, connect_args={"check_same_thread": False, "timeout": LOCK_WAIT_S}
    )
    event.listen(engine, "connect", _on_connect)
    event.listen(engine, "begin", _on_begin)
    return engine


def _on_connect(connection: sqlite3.Connection, _: ConnectionPoolEntry) -> None:
    # the driver must not begin transactions of its own
    connection.isolation_level = None
    for pragma in (
        "journal_mode = WAL",
        "synchronous = FULL",
        "foreign_keys = ON",
        "temp_store = MEMORY",
        f"cache_size = -{SQLITE_CACHE_KIB}",
        f"wal_autocheckpoint = {SQLITE_CHECKPOINT_PAGES}",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _on_begin(connection: Connection) -> None:
    # takes the write lock at once: a transaction that reads and then writes cannot fail half-way
    connection.exec_driver_sql("BEGIN IMMEDIATE")


class Sqlite(Dialect):
    """SQLite's own words."""

    @override
    def insert(self, table: Table) -> Insert:
        return insert(table)

    @override
    def named(self, batch_seq: BindParameter[int]) -> CTE:
        each = func.json_each(bindparam("numbers", type_=Text)).table_valued("value")
        listed = select(batch_seq.label("batch_seq"), each.c.value.label("line_no"))
        return listed.cte("named").prefix_with("MATERIALIZED")

    @override
    def among(self, column: Column[int]) -> ColumnElement[bool]:
        each = func.json_each(bindparam("numbers", type_=Text)).table_valued("value")
        return column.in_(select(each.c.value))

    @override
    def numbers(self, numbers: Sequence[int]) -> object:
        return json.dumps(list(numbers))

    @override
    def places(self, batch_seq: BindParameter[int]) -> CTE:
        each = func.json_each(bindparam("places", type_=Text)).table_valued("value")
        listed = select(
            batch_seq.label("batch_seq"),
            *(
                func.json_extract(
                    each.c.value, literal_column(f"'$[{place}]'"), type_=Integer
                ).label(name)
                for place, name in enumerate(("line_no", "result_offset", "result_length"))
            ),
        )
        return listed.cte("places").prefix_with("MATERIALIZED")

    @override
    def place_parameters(self, results: Sequence[Result]) -> Mapping[str, Any]:
        return {"places": json.dumps([(r.line_no, r.offset, r.length) for r in results])}

    @override
    def insert_lines(
        self, connection: Connection, batch_seq: int, requests: Iterable[NewRequest]
    ) -> int:
        rows = ((batch_seq, r.line_no, r.offset, r.length) for r in requests)
        count = 0
        while chunk := list(islice(rows, INSERT_CHUNK)):
            if len(chunk) == INSERT_CHUNK:
                flat = tuple(chain.from_iterable(chunk))
                connection.exec_driver_sql(_INSERT_CHUNK_OF_LINES, flat)
            else:
                connection.exec_driver_sql(_INSERT_LINES, chunk)
            count += len(chunk)
        return count

    @override
    def is_passing(self, error: DBAPIError) -> bool:
        code = getattr(error.orig, "sqlite_errorcode", None)
        return code is not None and code & 0xFF in _LOCKED

    @override
    def is_duplicate(self, error: DBAPIError) -> bool:
        return getattr(error.orig, "sqlite_errorcode", None) in _DUPLICATE
