"""How fast the ledger leases lines and takes their results, durably, through its port.

Prints one line a figure: `figure lease.NAME VALUE UNIT bar OP NUMBER ok|short`; the exit code is 1
when one falls short. Run: `python tests/bench/lease.py [--lines N]`.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from hpcserve.domain.batch import (
    Batch,
    BatchState,
    Lease,
    NewRequest,
    RequestEvent,
    Result,
)
from hpcserve.domain.lifecycle import Subject, Transition
from hpcserve.ledger import open_ledger
from hpcserve.ledger.upgrade import upgrade
from hpcserve.ports.ledger import Ledger
from tests.contract.ledger.postgres_server import running_server

LEASE = 256
#: lines that intake hands to the ledger in one transaction
INTAKE = 10_000
TTL_S = 60.0
#: those of a small database server: facts that decide what is measured
POSTGRES_SETTINGS = (
    "shared_buffers=1GB",
    "max_wal_size=4GB",
    "checkpoint_timeout=15min",
    "autovacuum_vacuum_scale_factor=0.02",
    "autovacuum_naptime=10s",
)


async def fill(url: str, lines: int) -> tuple[Batch, float]:
    """Insert a batch of *lines*; return it and the lines a second."""
    ledger = open_ledger(url)
    batch = await ledger.transact(add_batch)
    began = time.perf_counter()
    for first in range(0, lines, INTAKE):
        chunk = [
            NewRequest(line_no=n, offset=n * 300, length=300)
            for n in range(first, min(first + INTAKE, lines))
        ]
        await ledger.transact(lambda tx, chunk=chunk: tx.requests.add(batch.seq, chunk))
    took_s = time.perf_counter() - began
    await ledger.close()
    return batch, lines / took_s


def add_batch(tx: object) -> Batch:
    now = datetime.now(UTC)
    batch = Batch(
        id="batch-1",
        owner="ada",
        model="m",
        endpoint="/v1/chat/completions",
        input_file_id="file-1",
        completion_window="24h",
        state=BatchState.IN_PROGRESS,
        created_at=now,
        deadline_at=now + timedelta(hours=24),
    )
    made = Transition(
        subject=Subject.BATCH,
        subject_id=batch.id,
        at=now,
        event="created",
        from_state=None,
        to_state=batch.state,
        reason="a bench",
    )
    return tx.batches.add(batch, made)  # type: ignore[attr-defined]  # a Tx


async def work(url: str, batch: Batch, instance_id: str, lines: int) -> list[float]:
    """Lease and settle until *lines* are done or none is left; return each lease's seconds."""
    ledger = open_ledger(url)
    took = []
    done = 0
    while done < lines:
        began = time.perf_counter()
        lease = await ledger.transact(
            lambda tx: tx.requests.lease(
                batch=batch,
                instance_id=instance_id,
                limit=LEASE,
                now=datetime.now(UTC),
                ttl_s=TTL_S,
            )
        )
        took.append(time.perf_counter() - began)
        if lease is None:
            break
        done += await settle(ledger, lease)
    await ledger.close()
    return took


async def settle(ledger: Ledger, lease: Lease) -> int:
    results = [
        Result(
            line_no=request.line_no,
            event=RequestEvent.ANSWERED,
            segment=1,
            offset=request.line_no * 400,
            length=400,
            input_tokens=50,
            cached_tokens=10,
            output_tokens=100,
        )
        for request in lease.requests
    ]
    taken = await ledger.transact(
        lambda tx: tx.requests.settle(
            lease_id=lease.id,
            instance_id=lease.instance_id,
            results=results,
            now=datetime.now(UTC),
        )
    )
    assert len(taken) == len(results)
    return len(taken)


def run_worker(url: str, batch: Batch, instance_id: str, lines: int) -> list[float]:
    return asyncio.run(work(url, batch, instance_id, lines))


def rate(url: str, batch: Batch, lines: int, workers: int) -> tuple[float, float]:
    """Return requests a second leased and committed by *workers* processes, and the p99 in ms."""
    with ProcessPoolExecutor(workers) as pool:
        # the processes are there before the clock runs
        list(pool.map(abs, range(workers)))
        began = time.perf_counter()
        jobs = [
            pool.submit(run_worker, url, batch, f"inst-{n}", lines // workers)
            for n in range(workers)
        ]
        took = sorted(s for job in jobs for s in job.result())
        seconds = time.perf_counter() - began
    return lines / seconds, took[int(len(took) * 0.99)] * 1000


def figure(name: str, value: float, unit: str, bar: str) -> bool:
    """Print one figure against its bar (`>=N`, `<N`); return whether it is met."""
    at_least = bar.startswith(">=")
    number = float(bar.lstrip("><="))
    is_met = value >= number if at_least else value < number
    verdict = "ok" if is_met else "short"
    print(f"figure lease.{name} {value:.0f} {unit} bar {bar} {verdict}", flush=True)
    return is_met


def bench_sqlite(lines: int) -> list[bool]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "ledger.db"
        url = f"sqlite:///{file}"
        upgrade(url)
        empty_bytes = file.stat().st_size
        batch, inserted = asyncio.run(fill(url, lines))
        met = [figure("sqlite_insert", inserted, "rows/s", ">=200000")]
        done, p99_ms = rate(url, batch, lines, 1)
        met.append(figure("sqlite_1_worker", done, "requests/s", ">=100000"))
        print(f"lease p99 {p99_ms:.1f} ms")
        grown = file.stat().st_size - empty_bytes
        met.append(figure("sqlite_growth", grown / lines, "bytes/request", "<300"))
    return met


def bench_postgres(lines: int) -> list[bool]:
    met = []
    with running_server(*POSTGRES_SETTINGS) as server:
        for workers, bar in ((1, ">=30000"), (4, ">=60000")):
            url = server.database(f"bench{workers}")
            upgrade(url)
            empty_bytes = server.size_bytes(f"bench{workers}")
            batch, inserted = asyncio.run(fill(url, lines))
            if workers == 1:
                met.append(figure("postgres_insert", inserted, "rows/s", ">=200000"))
            done, p99_ms = rate(url, batch, lines, workers)
            noun = "worker" if workers == 1 else "workers"
            met.append(figure(f"postgres_{workers}_{noun}", done, "requests/s", bar))
            print(f"lease p99 {p99_ms:.1f} ms")
            if workers == 1:
                grown = server.size_bytes(f"bench{workers}") - empty_bytes
                met.append(figure("postgres_growth", grown / lines, "bytes/request", "<300"))
    return met


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--only", choices=("sqlite", "postgres"))
    options = parser.parse_args(arguments)
    met = []
    if options.only != "postgres":
        met += bench_sqlite(options.lines)
    if options.only != "sqlite":
        met += bench_postgres(options.lines)
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
