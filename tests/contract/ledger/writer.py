"""A process that leases and settles lines of `batch-1` until none is left.

Usage: writer.py URL INSTANCE LIMIT. It prints the lines of each lease when their results are
committed, so that whoever kills it knows what must have survived.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from hpcserve.ledger import open_ledger
from tests.contract.ledger.work import answer, lease, line_nos, settle


async def main(url: str, instance_id: str, limit: int) -> None:
    ledger = open_ledger(url)
    batch = await ledger.transact(lambda tx: tx.batches.get("batch-1"))
    assert batch is not None
    while True:
        held = await lease(ledger, batch, limit, instance_id=instance_id)
        if held is None:
            break
        taken = await settle(ledger, held, *(answer(n) for n in line_nos(held)))
        sys.stdout.write(json.dumps(sorted(taken)) + "\n")
        sys.stdout.flush()
    await ledger.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
