"""A control plane with one instance that waits for its agent, and a gateway in front of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.contract.control.site import Site, free_port, gateway


@pytest.fixture
async def site() -> Site:
    site = Site()
    await site.add_instance()
    return site


@pytest.fixture
async def gateway_url(site: Site, tmp_path: Path) -> AsyncIterator[str]:
    async with gateway(site, tmp_path / "gateways", free_port()) as url:
        yield url
