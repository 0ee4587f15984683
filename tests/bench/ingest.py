"""How fast an input file is validated and enqueued, and in how much memory.

Each case runs in a process of its own, whose peak resident memory is its own. Prints one line a
figure: `figure ingest.NAME VALUE UNIT bar OP NUMBER ok|short`; the exit code is 1 when one falls
short. Run: `python tests/bench/ingest.py [--lines N]`.

`growth` is the peak with a million lines over that with ten thousand: what grows is SQLite's page
cache up to its bound (64 MiB) and eight bytes a line, which tell custom_ids apart.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from hpcserve.batching.batches import NewBatch
from hpcserve.batching.services import services, worker
from hpcserve.config.tree import Batching
from hpcserve.domain.batch import BatchState
from hpcserve.ledger import open_ledger
from hpcserve.ledger.upgrade import upgrade
from hpcserve.wiring.system import SystemClock, SystemIds
from tests.contract.ledger.postgres_server import running_server

MIB = 1024**2


@dataclass(frozen=True)
class Measured:
    lines_per_s: float
    #: from create to in_progress, the worker's own pause included
    in_progress_s: float
    peak_mib: float
    #: of this process before it read a line
    idle_mib: float


def write_input(path: Path, lines: int, line_bytes: int) -> None:
    def line(number: int, content: str) -> bytes:
        body = {"model": "tiny", "messages": [{"role": "user", "content": content}]}
        text = {
            "custom_id": f"request-{number:08d}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": body,
        }
        return json.dumps(text).encode() + b"\n"

    filling = "x" * (line_bytes - len(line(0, "")))
    with path.open("wb") as file:
        for number in range(lines):
            file.write(line(number, filling))


def ingest(url: str, root: Path, source: Path, lines: int) -> Measured:
    return asyncio.run(_ingest(url, root, source, lines))


async def _ingest(url: str, root: Path, source: Path, lines: int) -> Measured:
    ledger, clock, ids, settings = open_ledger(url), SystemClock(), SystemIds(), Batching()
    leads = await ledger.transact(lambda tx: tx.leader.acquire("bench", clock.now(), 3600))
    served = services(ledger=ledger, clock=clock, ids=ids, settings=settings, root=root)
    runs = worker(
        ledger=ledger,
        clock=clock,
        ids=ids,
        settings=settings,
        root=root,
        leadership=lambda: leads,
        models=lambda: ("tiny",),
        describe=lambda _: {},
        version="bench",
        ended_max=10,
    )
    idle_mib = _peak_mib()
    task = asyncio.create_task(runs.run())
    file = await served.files.register("ada", str(source), expires_after_s=None)
    asked = NewBatch(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={},
        idempotency_key=None,
        is_retry=False,
    )
    created = time.perf_counter()
    batch = await served.batches.create("ada", asked)
    while batch.state is BatchState.VALIDATING:
        await asyncio.sleep(0.01)
        batch = await served.batches.get("ada", batch.id)
    took_s = time.perf_counter() - created
    assert batch.state is BatchState.IN_PROGRESS, batch.errors
    assert batch.counts.waiting == lines, batch.counts
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    served.close()
    await ledger.close()
    return Measured(lines / took_s, took_s, _peak_mib(), idle_mib)


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measured(url: str, root: Path, source: Path, lines: int) -> Measured:
    """Run one case in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(ingest, url, root, source, lines).result()


@contextmanager
def ledgers(scratch: Path) -> Iterator[dict[str, str]]:
    """Yield the address of an empty ledger of each kind."""
    sqlite = f"sqlite:///{scratch / 'ledger.db'}"
    with running_server() as server:
        urls = {"sqlite": sqlite, "postgres": server.database("ingest")}
        for url in urls.values():
            upgrade(url)
        yield urls


def figure(name: str, value: float, unit: str, bar: str) -> bool:
    limit = float(bar.lstrip("<>="))
    ok = value >= limit if bar.startswith(">=") else value <= limit
    print(
        f"figure ingest.{name} {value:.4g} {unit} bar {bar} {'ok' if ok else 'short'}", flush=True
    )
    return ok


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=1_000_000)
    lines = parser.parse_args().lines
    good = []
    with tempfile.TemporaryDirectory() as folder, ledgers(Path(folder)) as urls:
        scratch = Path(folder)
        big, small, large = (scratch / f"{name}.jsonl" for name in ("big", "small", "large"))
        write_input(big, lines, 300)
        write_input(small, 10_000, 300)
        write_input(large, 50_000, 4000)
        for name, url in urls.items():
            few = measured(url, scratch / name, small, 10_000)
            many = measured(url, scratch / name, big, lines)
            upload = measured(url, scratch / name, large, 50_000)
            good += [
                figure(f"{name}_rate", many.lines_per_s, "lines/s", ">=200000"),
                figure(f"{name}_peak", many.peak_mib, "MiB", "<=300"),
                figure(f"{name}_growth", many.peak_mib / few.peak_mib, "ratio", "<=2"),
                figure(f"{name}_200MB_in_progress", upload.in_progress_s, "s", "<=2.5"),
            ]
            print(
                f"note {name}: {few.idle_mib:.0f} MiB before, {few.peak_mib:.0f} with 10,000 lines"
            )
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
