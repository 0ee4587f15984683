"""The ledger's adapters: memory, SQLite, PostgreSQL; `open_ledger` picks one by its address."""

from __future__ import annotations

from hpcserve.ledger.memory.ledger import MemoryLedger
from hpcserve.ports.ledger import Ledger

#: the address of a ledger that dies with its process
MEMORY = "memory:"


def open_ledger(url: str) -> Ledger:
    """Return the ledger at *url*.

    Args:
        url: `sqlite:////path/ledger.db`, `postgresql+psycopg://user@host/name`, or `memory:`.

    Raises:
        ConfigError: the address is not one of these.
        BackendError: the database cannot be reached, or its schema is not this code's.

    """
    if url == MEMORY:
        return MemoryLedger()
    # SQLAlchemy takes a fifth of a second to import; the simulator does without
    from hpcserve.ledger.open import open_sql_ledger  # noqa: PLC0415 - see above

    return open_sql_ledger(url)


__all__ = ["MEMORY", "open_ledger"]
