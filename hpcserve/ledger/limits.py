"""Bounds of the ledger; each has its unit and its reason.

They are constants and no settings: nobody who runs hpcserve has a reason to change one.
"""

from __future__ import annotations

#: pauses before a transaction that met a conflict runs again, seconds: others are through in
#: milliseconds, and a caller whose own copy is stale should hear of it soon
CONFLICT_PAUSES_S = (0.0, 0.005, 0.02, 0.08)

#: pauses before a transaction that found no database runs again, seconds: together 3.5, which
#: covers a restart of PostgreSQL; after that the caller must know
OUTAGE_PAUSES_S = (0.02, 0.08, 0.4, 1.0, 2.0)

#: how long one statement waits for another process's lock, seconds; longer than any of our
#: transactions but for the closing of a batch of millions of lines
LOCK_WAIT_S = 10

#: connections to PostgreSQL of one process: its threads; more only queue up inside the server
POOL_SIZE = 8

#: PostgreSQL ends a session that idles inside a transaction so long, seconds: a process that hangs
#: must not hold a batch's rows
IDLE_TRANSACTION_S = 60

#: lines sent to the database at once in a bulk insert: a few hundred kilobytes of memory
INSERT_CHUNK = 5_000

#: SQLite's page cache, KiB: holds the working set of a million lines
SQLITE_CACHE_KIB = 65_536

#: pages (4 KiB) that SQLite's write-ahead log collects before they go to the main file: 16 MiB,
#: so that a page of lines written by a lease and by its results goes there once
SQLITE_CHECKPOINT_PAGES = 4_000
