"""Batch work as the control plane hands it to agents; `batching` does it, `gateway` asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from hpcserve.domain.instance import Instance
from hpcserve.ports.control import Grant, Outcome


class Work(Protocol):
    """Leases with their payload, and results."""

    async def lease(self, instance: Instance, limit: int) -> Grant | None:
        """Lease up to *limit* requests to this instance; None when there is nothing for it."""
        ...

    async def settle(
        self, instance_id: str, lease_id: int, outcomes: Sequence[Outcome]
    ) -> frozenset[int]:
        """Commit results, durable when it returns; return the lines that were taken.

        Raises FencedError when the lease is not live any more.
        """
        ...

    async def release(
        self, instance_id: str, lease_id: int, line_nos: Sequence[int] | None
    ) -> None:
        """Return lines undone (None: all that are left); costs them no attempt."""
        ...
