"""Transactions on a SQL database: run in threads, retried when what failed passes by itself.

What is not retried: a connection lost while it commits. Nobody can say whether that transaction
counts, so its caller must look before it tries again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from typing_extensions import override

from hpcserve.errors import BackendError, ConflictError
from hpcserve.ledger.dialect import Dialect
from hpcserve.ledger.limits import CONFLICT_PAUSES_S, OUTAGE_PAUSES_S, POOL_SIZE
from hpcserve.ledger.sql.batches import SqlBatches
from hpcserve.ledger.sql.events import SqlEvents
from hpcserve.ledger.sql.files import SqlFiles, SqlSegments
from hpcserve.ledger.sql.instances import SqlInstances
from hpcserve.ledger.sql.keys import SqlKeys
from hpcserve.ledger.sql.requests import RequestStatements, SqlRequests
from hpcserve.ledger.sql.site import SqlDemand, SqlLeader, SqlNotes
from hpcserve.ports.ledger import Ledger, Tx

T = TypeVar("T")


class SqlTx:
    """The stores of one transaction."""

    def __init__(
        self, connection: Connection, dialect: Dialect, statements: RequestStatements
    ) -> None:
        """Take an open transaction."""
        self.events = SqlEvents(connection)
        self.instances = SqlInstances(connection, self.events)
        self.files = SqlFiles(connection)
        self.batches = SqlBatches(connection, self.events)
        self.requests = SqlRequests(connection, dialect, statements)
        self.segments = SqlSegments(connection)
        self.keys = SqlKeys(connection)
        self.demand = SqlDemand(connection, dialect)
        self.leader = SqlLeader(connection)
        self.notes = SqlNotes(connection, dialect)


class SqlLedger(Ledger):
    """A ledger behind a SQLAlchemy engine, with as many threads as it may have connections."""

    def __init__(self, engine: Engine, dialect: Dialect, *, threads: int) -> None:
        self._engine = engine
        self._dialect = dialect
        self._statements = RequestStatements(dialect)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="ledger")

    @override
    async def transact(self, work: Callable[[Tx], T]) -> T:
        loop = asyncio.get_running_loop()
        after_conflict, after_outage = iter(CONFLICT_PAUSES_S), iter(OUTAGE_PAUSES_S)
        while True:
            try:
                return await loop.run_in_executor(self._threads, self._once, work)
            except ConflictError:
                pause_s = next(after_conflict, None)
                if pause_s is None:
                    raise
            except BackendError as error:
                pause_s = next(after_outage, None)
                if pause_s is None or not error.retryable or isinstance(error, CommitLostError):
                    raise
            await asyncio.sleep(pause_s)  # noqa: TID251 - waits for a real database, in real time

    @override
    async def close(self) -> None:
        await asyncio.to_thread(self._threads.shutdown)
        self._engine.dispose()

    def _once(self, work: Callable[[Tx], T]) -> T:
        try:
            with self._engine.connect() as connection:
                # begins here, so that a busy file is an error of this transaction
                transaction = connection.begin()
                outcome = work(SqlTx(connection, self._dialect, self._statements))
                try:
                    transaction.commit()
                except DBAPIError as error:
                    if error.connection_invalidated:
                        raise CommitLostError(error) from error
                    raise
                return outcome
        except DBAPIError as error:
            raise self._translated(error) from error
        except PoolTimeoutError as error:
            raise BackendError(
                f"all {POOL_SIZE} connections to the ledger are in use; try again", retryable=True
            ) from error

    def _translated(self, error: DBAPIError) -> Exception:
        what = _first_line(error)
        if self._dialect.is_duplicate(error):
            return ConflictError(f"the ledger has such a row already: {what}")
        if self._dialect.is_passing(error):
            return BackendError(
                f"the ledger's database does not answer, it will be tried again: {what}",
                retryable=True,
            )
        return BackendError(f"the ledger's database refuses a statement: {what}", retryable=False)


class CommitLostError(BackendError):
    """The connection broke in COMMIT: the transaction may count or not."""

    def __init__(self, error: DBAPIError) -> None:
        """Take the driver's error."""
        super().__init__(
            "the connection to the ledger's database broke during a commit, so look whether it"
            f" counts before trying again: {_first_line(error)}",
            retryable=True,
        )


def _first_line(error: DBAPIError) -> str:
    return str(error.orig).partition("\n")[0].strip()
